"""How far the ranks' clocks are apart, measured by messages to and fro."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from mpiconv.job.waiting import wait
from mpiconv.job.watch import Place

if TYPE_CHECKING:
    from mpiconv.job.team import Team

ROUNDS = 16
TAG = 8


@dataclass(frozen=True)
class ClockReading:
    """Every rank's clock against the root's at one moment; arrays are (rank,), and only the root's are filled.

    ``offset_s`` is the rank's clock minus the root's, ``error_s`` the most it can be wrong by (half a round trip),
    ``when_s`` the time on the root's clock.
    """

    offset_s: np.ndarray
    error_s: np.ndarray
    when_s: float


def read_clocks(team: Team, rounds: int = ROUNDS) -> ClockReading:
    """Compare the clocks by ping-pong between the root and each rank; the fastest round trip counts. Collective."""
    offset, error = np.zeros(team.size), np.full(team.size, np.inf)
    error[0] = 0
    stamp, answer = np.zeros(1), np.empty(1)
    for rank in range(1, team.size):
        place = Place("comparing clocks", (rank if team.rank == 0 else 0,))
        for _ in range(rounds):
            if team.rank == 0:
                before = perf_counter()
                wait(team, [team.comm.Isend(stamp, rank, TAG), team.comm.Irecv(answer, rank, TAG)], place)
                after = perf_counter()
                if (after - before) / 2 < error[rank]:
                    error[rank] = (after - before) / 2
                    offset[rank] = answer[0] - (before + after) / 2
            elif team.rank == rank:
                wait(team, [team.comm.Irecv(answer, 0, TAG)], place)
                stamp[0] = perf_counter()
                wait(team, [team.comm.Isend(stamp, 0, TAG)], place)
    return ClockReading(offset, error, perf_counter())


def on_root_clock(stamps_s: np.ndarray, rank: int, begin: ClockReading, end: ClockReading) -> np.ndarray:
    """A rank's times on the root's clock, its offset taken to drift evenly from one reading to the other."""
    elapsed = max(end.when_s - begin.when_s, 1e-9)
    drift = (end.offset_s[rank] - begin.offset_s[rank]) / elapsed
    rough = stamps_s - begin.offset_s[rank]
    return np.asarray(rough - drift * (rough - begin.when_s))
