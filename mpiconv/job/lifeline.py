"""Who is lost: ranks that died or fell silent, found out by each, decided by rank 0, and told to those who are left."""

from __future__ import annotations

import atexit
import json
import os
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from enum import IntEnum
from time import monotonic, sleep
from typing import Any

from mpi4py import MPI

from mpiconv.errors import Lost, MpiconvError, Refused
from mpiconv.job.processes import ranks_here
from mpiconv.job.seats import Seat

TAG = 20
ROOT = 0

PERIOD_S, LOOK_S, POLL_S = 0.25, 0.02, 0.001
"""How often each rank gives a sign of life, how often its thread looks for others, and how often it does in haste."""

LEAST_S, STARTING_S, MOST_S = 2.0, 10.0, 30.0
"""How long a rank may be silent at least: once pictures are run, and before or where it is rank 0; and at most."""

GAPS = 4
"""A rank is lost that was silent for so many times the longest gap between two signs of life until then."""

READY_S = 30.0
"""How long a rank that lives may take to come to a recovery."""

EXPLAIN_S = 0.3
"""How long after an error of MPI's it may take until somebody is known to be dead."""


class Stage(IntEnum):
    """How far rank 0 is, which those who are left join in: before the network is sent, or from then on."""

    START = 0
    NETWORK = 1


class Lifeline:
    """What one rank knows of the others' lives, from a thread that looks after it where MPI can be called by several.

    All but rank 0 send it signs of life, it to all of them. Rank 0 decides who is lost: of whose death MPI knows, there
    or on another rank, and who was silent for too long. It tells all others, also who is silent, should that wake.

    Parameters
    ----------
    comm
        A communicator of all ranks on which nobody waits for a message from any source. Its messages have two tags;
        those of ``Lines`` between those who are left have others.

    Attributes
    ----------
    alarm
        Whether somebody is lost that this rank still counts on: what it does with the others has to be given up.
    living
        The ranks that are left; ranks are numbered as ``number`` says.
    seats
        Where each rank runs, as far as it is known.
    losses
        How often some were lost.
    timeout_s
        After how many s of silence a rank is lost; None for four times the longest gap until then, 2 at least.
    settled
        Whether pictures are run: before that more patience is needed.
    kept
        What MPI may still write to, of what was given up.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        self.comm, self.settled = comm, False
        self.timeout_s: float | None = None
        self.alarm, self.losses, self.living = False, 0, tuple(range(comm.size))
        self.kept: list[Any] = []
        self.seats: dict[int, Seat] = {}
        self._sent: list[MPI.Request] = []
        self._lock, self._over = threading.RLock(), threading.Event()
        self._lost: set[int] = set()
        self._dead: set[int] = set()
        self._gap_s, self._beat_s = 0.0, 0.0
        self._told: tuple[int, tuple[int, ...], Stage] = (0, self.living, Stage.START)
        self.number(self.living)
        if MPI.Query_thread() == MPI.THREAD_MULTIPLE:
            threading.Thread(target=self._watch, daemon=True).start()
            atexit.register(self.stop)

    def number(self, order: Sequence[int]) -> None:
        """Number the ranks anew: as these are in the communicator. On all of them, while nobody is lost."""
        with self._lock:
            self._order, self._rank = tuple(order), order.index(self.comm.rank)
            self._tag = TAG + (self._order != tuple(range(self.comm.size)))
            peers = range(1, self.comm.size) if self._rank == ROOT else (ROOT,)
            self._looked_s = monotonic()
            self._heard_s = dict.fromkeys(peers, self._looked_s)
            self._ready = dict.fromkeys(peers, 0)

    @property
    def places(self) -> tuple[int, ...]:
        """The ranks that are left as they are in the communicator."""
        return tuple(self._order[rank] for rank in self.living)

    def stop(self) -> None:
        """Look after it no more."""
        self._over.set()
        with self._lock:
            pass

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            with self._lock:
                if not self._over.is_set():
                    self.look()

    def look(self) -> None:
        """Hear what others have said, give a sign of life, find out who is lost."""
        with self._lock:
            now = monotonic()
            if now - self._looked_s > PERIOD_S:  # it was this rank that was held up
                self._heard_s = {rank: when + now - self._looked_s for rank, when in self._heard_s.items()}
            self._looked_s = now
            self._find_dead()
            for rank in self._heard_s:
                self._hear(rank, now)
            if now - self._beat_s >= PERIOD_S:
                self._beat_s = now
                for rank in self._heard_s:
                    if rank in self.living:
                        self._say(rank, ["pulse"])
            self._judge(now)

    def _find_dead(self) -> None:
        failed = self.comm.Get_failed()
        if failed.size > len(self._dead):
            everyone = self.comm.Get_group()
            dead = MPI.Group.Translate_ranks(failed, list(range(failed.size)), everyone)
            self._dead = {self._order.index(place) for place in dead}
            self._lost |= self._dead
            everyone.Free()
        failed.Free()

    def _hear(self, rank: int, now: float) -> None:
        """Take all that a rank has said."""
        status = MPI.Status()
        with suppress(MPI.Exception):  # it is dead
            while rank not in self._dead and self.comm.Iprobe(self._order[rank], self._tag, status):
                data = bytearray(status.Get_count(MPI.BYTE))
                self.comm.Recv([data, MPI.BYTE], self._order[rank], self._tag)
                self._gap_s = max(self._gap_s, now - self._heard_s[rank])
                self._heard_s[rank] = now
                self._take(rank, *json.loads(data))

    def _take(self, rank: int, kind: str, *words: Any) -> None:
        if kind == "lost" and rank in self.living:  # a word about a loss that is over says nothing
            losses, ranks = words
            if losses == self.losses:
                self._lost |= set(ranks)
                self.alarm = True
        elif kind == "left":
            losses, living, stage = words
            self._told = losses, tuple(living), Stage(stage)
        elif kind == "ready":
            self._ready[rank] = words[0]

    def _say(self, rank: int, words: list[Any]) -> None:
        data = json.dumps(words).encode()
        with suppress(MPI.Exception):  # it is dead
            self._sent = [request for request in self._sent if not _over(request)]
            if rank not in self._dead:
                self._sent.append(self.comm.Isend([data, MPI.BYTE], self._order[rank], self._tag))

    def _judge(self, now: float) -> None:
        """Count those as lost who are silent for too long, and see whether this rank counts on somebody lost."""
        least_s = LEAST_S if self.settled and self._rank == ROOT else STARTING_S
        patience_s = self.timeout_s or min(max(least_s, GAPS * self._gap_s), MOST_S)
        self._lost |= {rank for rank, when in self._heard_s.items() if now - when > patience_s and rank in self.living}
        if self._lost & set(self.living) or self._told[0] > self.losses:
            self.alarm = True

    def check(self) -> None:
        """Raise Lost where somebody is lost that this rank counts on."""
        if self.alarm:
            raise Lost(self.who())

    def who(self) -> str:
        """Who is lost, in a sentence."""
        gone = sorted((self._lost & set(self.living)) or set(self.living) - set(self._told[1]))
        names = ", ".join(map(self._name, gone)) or "a rank"
        return f"{names} {'are' if len(gone) > 1 else 'is'} lost"

    def _name(self, rank: int) -> str:
        return f"rank {rank} (host {self.seats[rank].host})" if rank in self.seats else f"rank {rank}"

    def explains(self, error: BaseException) -> bool:
        """Whether an error is for somebody's loss."""
        if isinstance(error, Lost):
            return not isinstance(error, Refused)
        if not isinstance(error, MPI.Exception):
            return False
        end = monotonic() + EXPLAIN_S
        while not self.alarm and monotonic() < end:
            self.look()
            sleep(POLL_S)
        return self.alarm

    def agree(self, stage: Stage) -> Stage:
        """Agree on who is left: ``living`` from now on. On all who are left; rank 0's stage is theirs.

        Raises
        ------
        Refused
            This rank is counted as lost.
        MpiconvError
            Rank 0 is lost, without which nothing can go on.
        """
        return self._lead(stage) if self._rank == ROOT else self._follow()

    def _lead(self, stage: Stage) -> Stage:
        while True:
            with self._lock:
                self.losses += 1
                self.living = tuple(rank for rank in self.living if rank not in self._lost)
                self.alarm = False
                for rank in self._heard_s:
                    self._say(rank, ["left", self.losses, self.living, stage])
            end = monotonic() + READY_S
            while not self.alarm:
                self.look()
                waited = {rank for rank in self.living[1:] if self._ready[rank] < self.losses}
                if not waited:
                    return stage
                if monotonic() > end:
                    self._lost |= waited
                sleep(POLL_S)

    def _follow(self) -> Stage:
        self.look()
        if self._told[0] <= self.losses:
            self._say(ROOT, ["lost", self.losses, sorted(self._lost)])
        while self._told[0] <= self.losses:
            self.look()
            if ROOT in self._lost:
                raise MpiconvError(f"{self._name(ROOT)} is lost, which the others need")
            sleep(POLL_S)
        with self._lock:
            self.losses, living, stage = self._told
            if self._rank not in living:
                raise Refused("it was silent for too long and counts as lost")
            self.living, self.alarm = living, False
            self._say(ROOT, ["ready", self.losses])
        return stage

    def end_silent(self) -> None:
        """End the processes that were counted as lost and still are there, as far as this rank sees them."""
        places = {self._order[rank] for rank in set(range(len(self._order))) - set(self.living)}
        for place, pid in ranks_here().items():
            if place in places:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)


def _over(request: MPI.Request) -> bool:
    try:
        return bool(request.Test())
    except MPI.Exception:
        return True
