"""What to do when mpirun has ended: nothing more, start again after a pause, or give up. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from signal import Signals

from mpiconv.words import counted

WRONG_USAGE = 2
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
SILENT = "did not answer"
"""Part of what a run says that ended because another rank was silent: the same again may go well."""


@dataclass(frozen=True)
class Ending:
    """How mpirun ended.

    Attributes
    ----------
    status
        Its exit status; that of a signal is negative, or 128 and its number where a rank died of it.
    said
        The error that the run, or mpirun, told; empty for none, and where a rank died.
    before, after
        How many pictures had their answer when it was started, and at its end.
    total
        How many pictures there are; None where that is not known yet.
    printed
        Whether the run printed its results. Open MPI may end with status 0 when a host is lost, but nothing is printed.
    """

    status: int
    said: str
    before: int
    after: int
    total: int | None
    printed: bool = True

    @property
    def answered(self) -> bool:
        """Whether it answered a picture."""
        return self.after > self.before

    @property
    def whole(self) -> bool:
        """Whether every picture has its answer."""
        return self.total is not None and self.after >= self.total

    @property
    def number(self) -> int:
        """The signal that it, or a rank, died of; 0 for none."""
        number = -self.status if self.status < 0 else self.status - 128
        return number if number in {int(each) for each in Signals} else 0


@dataclass(frozen=True)
class Again:
    """Start again, after a pause."""

    pause_s: float


@dataclass(frozen=True)
class Over:
    """It is over; ``why`` it failed, empty if it did not."""

    status: int
    why: str = ""


def decide(endings: list[Ending], most: int) -> Again | Over:
    """What to do after the last of the endings so far; ``most`` is how often mpirun may be started again."""
    last = endings[-1]
    if last.status == 0 and last.printed:
        return Over(0)
    if last.said and (last.status == WRONG_USAGE or last.whole or _same_again(endings)):
        return Over(WRONG_USAGE if last.status == WRONG_USAGE else 1, last.said)
    if len(endings) > most:
        reason = last.said or "it ended again"
        return Over(1, f"{reason} ({counted(most, 'restart')} are not enough; --max-restarts N allows more)")
    return Again(pause_s(endings))


def _same_again(endings: list[Ending]) -> bool:
    """Whether a run failed twice for the same reason without an answer in between: a third will, too."""
    last = endings[-1]
    if last.answered or SILENT in last.said or len(endings) < 2:
        return False
    return last.said == endings[-2].said


def pause_s(endings: list[Ending]) -> float:
    """How long to wait before the next start: not at all after answers, ever longer while there are none."""
    idle = 0
    for ending in reversed(endings):
        if ending.answered:
            break
        idle += 1
    return min(FIRST_PAUSE_S * 2 ** (idle - 1), LONGEST_PAUSE_S) if idle else 0.0


def progress(ending: Ending) -> str:
    """How many pictures have their answer, for people."""
    total = "" if ending.total is None else f" of {ending.total}"
    return f"{ending.after}{total} pictures answered"
