"""How long messages take from rank to rank."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from mpiconv.measure.estimate import fit_link, scatter, undisturbed
from mpiconv.probe.speed import wait_quietly

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpiconv.job.lines import Lines
from mpiconv.job.team import Team

TAG = 9
SIZES = (1, 1024, *(4**power for power in range(7, 12)))
"""Message sizes in B, up to 4 MiB."""

LONG_S = 0.05
"""No size is tried beyond the first that takes so much longer than the least: on a slow link that is enough."""

SHORT_S = 0.015
"""Shorter messages are repeated within a round for about so long; the fastest counts, as delays come from outside."""

LEAST_REPEATS, MOST_REPEATS = 4, 32


def send_timed(comm: MPI.Intracomm | Lines, target: int, size: int) -> float:
    """Seconds from the start of a message of this size in B to its acknowledgement by a rank that runs ``answer``."""
    message, note = np.zeros(size, np.uint8), np.array([size], np.int64)
    comm.Send(note, target, TAG)
    comm.Recv(note, target, TAG)
    begin = perf_counter()
    comm.Send(message, target, TAG)
    comm.Recv(note, target, TAG)
    return perf_counter() - begin


def stop_answering(comm: MPI.Intracomm | Lines, target: int) -> None:
    """Tell a rank that runs ``answer`` that nothing more comes."""
    comm.Send(np.zeros(1, np.int64), target, TAG)


def answer(comm: MPI.Intracomm | Lines, source: int) -> None:
    """Take what ``send_timed`` sends, until it stops: the size first, so that the buffer is there when it counts."""
    note = np.empty(1, np.int64)
    while True:
        comm.Recv(note, source, TAG)
        if note[0] == 0:
            return
        message = np.empty(int(note[0]), np.uint8)
        comm.Send(note[:1], source, TAG)
        comm.Recv(message, source, TAG)
        comm.Send(note[:1], source, TAG)


class LinkProbe:
    """Measures the links between all ranks round by round, one ordered pair after the other.

    Making one, and every ``round``, is collective; the first round finds the sizes that suit each link.
    """

    def __init__(self, team: Team, dilation: float = 1.0) -> None:
        self.team, self.dilation = team, dilation
        self.seconds: dict[int, dict[int, list[float]]] = {}
        self._pairs(self._explore)

    def round(self) -> None:
        """Measure every pair once. Collective."""
        self._pairs(self._measure)

    def _pairs(self, talk: Callable[[int], None]) -> None:
        for source in range(self.team.size):
            for target in range(self.team.size):
                if source != target:
                    wait_quietly(self.team)
                    if self.team.rank == source:
                        talk(target)
                        stop_answering(self.team.comm, target)
                    elif self.team.rank == target:
                        answer(self.team.comm, source)

    def _explore(self, target: int) -> None:
        """Send ever longer messages until one takes long; this also makes the connection, so no time is kept."""
        chosen = self.seconds.setdefault(target, {})
        send_timed(self.team.comm, target, 1)
        latency = send_timed(self.team.comm, target, 1)
        for size in SIZES:
            chosen[size] = []
            if send_timed(self.team.comm, target, size) > latency + LONG_S:
                return

    def _measure(self, target: int) -> None:
        largest = max(self.seconds[target])
        for size, rounds in self.seconds[target].items():
            least = 1 if size == largest else LEAST_REPEATS
            times: list[float] = []
            while len(times) < least or (sum(times) < SHORT_S and len(times) < MOST_REPEATS):
                times.append(send_timed(self.team.comm, target, size))
            rounds.append(min(times))

    def fits(self) -> dict[int, tuple[float, float]]:
        """Alpha in s and beta in B/s of this rank's link to every other, of the lab where time is dilated."""
        return {target: self._fit(sizes) for target, sizes in self.seconds.items()}

    def scatter(self) -> float:
        """By how much of itself the time of the longest messages scatters, on the worst of this rank's links."""
        return max((scatter(sizes[max(sizes)]) for sizes in self.seconds.values()), default=0.0)

    def _fit(self, sizes: dict[int, list[float]]) -> tuple[float, float]:
        """The line through the times there; the acknowledgement's, half of what a smallest one takes, is taken off."""
        times = {size: undisturbed(rounds) / self.dilation for size, rounds in sizes.items()}
        back = times[SIZES[0]] / 2
        return fit_link({size: time - back for size, time in times.items()})
