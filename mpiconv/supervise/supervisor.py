"""Starting mpirun, and starting it again on the hosts that answer, until every picture has its answer."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGUSR1
from time import monotonic, sleep, strftime

from mpiconv.measure.answers import read_answers, read_identity
from mpiconv.signals import Caught, Ended
from mpiconv.supervise.child import Child
from mpiconv.supervise.command import for_ranks
from mpiconv.supervise.deciding import Ending, Over, decide, progress
from mpiconv.supervise.hosts import Place, ranks_left
from mpiconv.supervise.taking_in import TakingIn, asked
from mpiconv.words import counted, seconds

LOOK_S = 0.03

WORTH_S = 30.0
"""A host is taken in again where the pictures to come would take so long without it."""

BACK = "what was lost answers again"
"""Why a run was ended that goes well."""

NOBODY = 1
"""The status of a start that there was no host for."""


@dataclass(frozen=True)
class Order:
    """What is to be kept going.

    Attributes
    ----------
    words
        The options of ``mpiconv run``, without those that say how it is started and where its answers go.
    known
        All options of ``mpiconv run``.
    launcher
        mpirun, with options of the user's own.
    ranks
        How many; None: as many as there are slots.
    places
        The hosts with their slots; empty for this host, or those that the launcher knows of.
    hostfile
        The file that has them, where there is one.
    answers
        The answers file, which every host that may become that of rank 0 sees.
    resume
        Whether it may have answers that count.
    most
        How often mpirun may be started again.
    take_in_s
        How long after a loss a host that answers again is taken in again at the earliest.
    """

    words: Sequence[str]
    known: Collection[str]
    launcher: Sequence[str]
    ranks: int | None
    places: Sequence[Place]
    hostfile: str | None
    answers: str
    resume: bool
    most: int
    take_in_s: float = 60.0

    def command(self, living: set[str], restarts: int, folder: Path, *, resume: bool) -> tuple[list[str], str]:
        """The command line that starts it on the hosts that answer, and which options had to be left out there."""
        words, told, ranks, hostfile = list(self.words), "", self.ranks, self.hostfile
        if any(place.host not in living for place in self.places):
            left = ranks_left(self.places, living, self.ranks)
            whole = ranks_left(self.places, {place.host for place in self.places}, self.ranks)
            words, told = for_ranks(words, left, len(whole), self.known)
            ranks, hostfile = len(left), str(folder / "hosts")
            lines = (place.line for place in self.places if place.host in living)
            Path(hostfile).write_text("\n".join(lines) + "\n", encoding="utf-8")
        start = [
            *self.launcher,
            *(["-n", str(ranks)] if ranks else []),
            *(["--hostfile", hostfile] if hostfile else []),
        ]
        own = ["--answers", self.answers, *(["--resume"] if resume else []), "--restarted", str(restarts)]
        return [*start, sys.executable, "-m", "mpiconv", "run", *words, *own], told


class Supervisor:
    """Keeps a run going.

    Parameters
    ----------
    order
        What is to be run.
    ask
        Tells for each host why it does not answer; empty if it does.
    caught
        The signals to this process.
    """

    def __init__(self, order: Order, ask: Callable[[list[str]], dict[str, str]], caught: Caught) -> None:
        self._order, self._ask, self._caught = order, ask, caught
        self._before = self._state()
        self._endings: list[Ending] = []
        self._passed_on = set[str]()
        self._lost_s = 0.0
        self._taken_in = 0

    def run(self) -> tuple[bytes, Over]:
        """Run until all pictures are answered, or no other start would help; what the last one printed, and how.

        Raises
        ------
        MpiconvError
            mpirun cannot be started.
        Ended
            It was ended by SIGTERM.
        """
        with tempfile.TemporaryDirectory(prefix="mpiconv-") as folder:
            living = self._living()
            while True:
                out, ending, how = b"", self._ending(NOBODY, ""), "no host answers"
                if self._signal_came():
                    return out, self._signalled(ending)
                if living or not self._order.places:
                    out, ending, how = self._attempt(living, Path(folder))
                if how == BACK and not ending.whole and not self._signal_came():
                    living = self._living()
                    _tell(f"{how}: {progress(ending)}; starts with all that answer")
                    continue
                self._endings.append(ending)
                if self._signal_came():
                    return out, self._signalled(ending)
                step = decide(self._endings, self._order.most)
                if isinstance(step, Over):
                    return out, step
                living = self._living()
                _tell(f"{how}: {self._standing(ending, living, step.pause_s)}")
                _rest(step.pause_s, self._caught)

    def _attempt(self, living: set[str], folder: Path) -> tuple[bytes, Ending, str]:
        """Start mpirun once and wait for its end: what it printed, how it ended, and that in words."""
        begun = self._begun
        before, size = read_answers(self._order.answers) if begun else ([], 0)
        restarts = len(self._endings) + self._taken_in
        command, left_out = self._order.command(living, restarts, folder, resume=begun)
        if left_out:
            _tell(f"without {left_out}, which wants the hosts that are gone: the planner makes another plan")
        child = Child(command, self._passed_on)
        self._caught.tell(lambda: child.signal(SIGUSR1) if self._caught.number == SIGUSR1 else None)
        try:
            waiting, back, started_s = restarts > 0, False, monotonic()
            taking_in = TakingIn(self._order.places, self._order.take_in_s * 2**self._taken_in, self._ask)
            while (status := child.ended()) is None:
                if self._caught.ending:
                    child.end()
                    continue
                if waiting and begun and self._size() > size:
                    waiting = False
                    _tell(f"restart {restarts}: the next answer came after {seconds(monotonic() - self._lost_s)}")
                if not back and taking_in.due(child, living) and self._much_is_left(started_s, len(before)):
                    back = True
                    self._taken_in += 1
                    child.signal(SIGUSR1)
                sleep(LOOK_S)
        except BaseException:
            child.end()
            raise
        finally:
            self._caught.tell(None)
        self._lost_s = monotonic()
        why = child.said or ("" if child.death else child.last_words)
        ending = replace(self._ending(status, why, len(before)), printed=bool(child.out))
        how = BACK if back and not child.death else child.death or why or f"mpirun ended with status {status}"
        return child.out, ending, how

    def _much_is_left(self, started_s: float, before: int) -> bool:
        """Whether the pictures to come are worth a start with a host more."""
        ending = self._ending(0, "", before)
        each_s = (monotonic() - started_s) / max(ending.after - before, 1)
        return ending.total is not None and (ending.total - ending.after) * each_s > WORTH_S

    def _ending(self, status: int, said: str, before: int | None = None) -> Ending:
        """How a start ended, with the pictures that have their answer by now."""
        known = read_identity(self._order.answers) if self._begun else None
        after = len(read_answers(self._order.answers)[0]) if known else 0
        return Ending(status, said, after if before is None else before, after, known.count if known else None)

    @property
    def _begun(self) -> bool:
        """Whether the answers file has answers that count: a start has written to it, or it is to be gone on with."""
        return self._order.resume or self._state() != self._before

    def _state(self) -> tuple[int, ...]:
        try:
            found = os.stat(self._order.answers)
        except OSError:
            return ()
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _size(self) -> int:
        state = self._state()
        return state[1] if state else 0

    def _living(self) -> set[str]:
        """The hosts that answer; none where there is no list of them, or a signal comes meanwhile."""
        hosts = list(dict.fromkeys(place.host for place in self._order.places))
        if not hosts:
            return set()
        asking = asked(self._ask, hosts)
        while not asking.done():
            if self._caught.number:
                return set()
            sleep(LOOK_S)
        return {host for host, reason in asking.result().items() if not reason}

    def _standing(self, ending: Ending, living: set[str], pause_s: float) -> str:
        hosts = len({place.host for place in self._order.places})
        left = f"{len(living)} of {counted(hosts, 'host')} left, " if hosts else ""
        pause = f" in {seconds(pause_s)}" if pause_s else ""
        return f"{left}{progress(ending)}; restart {len(self._endings)} of {self._order.most}{pause}"

    def _signal_came(self) -> bool:
        return self._caught.number > 0

    def _signalled(self, ending: Ending) -> Over:
        """What becomes of the end that a signal to this process asked for. Raises Ended for SIGTERM."""
        if self._caught.ending:
            raise Ended(f"ended by SIGTERM with {progress(ending)}; the same again with --resume goes on")
        if ending.status == 0:
            return Over(0)
        return Over(1, ending.said or f"ended by {self._caught.name} with {progress(ending)}")


def _tell(text: str) -> None:
    """A line about what happened, on stderr."""
    print(f"mpiconv: {strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _rest(pause_s: float, caught: Caught) -> None:
    """Sleep so long, or until a signal comes."""
    end = monotonic() + pause_s
    while monotonic() < end and not caught.number:
        sleep(LOOK_S)
