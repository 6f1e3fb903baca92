"""Ending a series of frames early and in step: a signal to any rank reaches the root, which starts no more of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from mpi4py import MPI

from mpiconv.job.control import bcast_json
from mpiconv.job.waiting import wait
from mpiconv.job.watch import Place
from mpiconv.partition.schemes import ROOT
from mpiconv.signals import signal_name

if TYPE_CHECKING:
    from mpiconv.job.team import Team
    from mpiconv.signals import Caught

TAG = 11
SETTLING = "the end of the series"


class Stopping:
    """What the ranks know of signals to any of them. Made, and settled at the end, by all of them.

    A rank sends the root exactly one byte in its life: the number of the signal it got, as soon as it looks, or 0 at
    the end. So the root never waits for one, and no message is left over.

    Parameters
    ----------
    team
        The ranks of the run.
    caught
        What this rank's process was signalled.
    """

    def __init__(self, team: Team, caught: Caught) -> None:
        self._team = team.twin()
        self._caught = caught
        self._silent = team.rank != ROOT
        self._heard = 0
        self._number = 0

    def look(self) -> bool:
        """Whether this rank knows of a signal: to itself, or on the root to any rank that has looked since."""
        if not self._silent and self._team.rank == ROOT and self._team.comm.Iprobe(MPI.ANY_SOURCE, TAG):
            self._hear()
        self._number = self._number or self._caught.number
        if self._silent and self._number:
            self._say(self._number)
        return self._number > 0

    def settle(self) -> str:
        """The name of the signal that ended the series, on all ranks the same, empty if it was none. Collective."""
        if self._silent:
            self._say(0)
        if self._team.rank == ROOT:
            while self._heard < self._team.size - 1:
                self._hear()
        ended: int = bcast_json(self._team, self._number, what=SETTLING)
        self._team.close()
        return signal_name(ended)

    def _say(self, number: int) -> None:
        self._silent = False
        wait(self._team, [self._team.comm.Isend(np.array([number], np.uint8), ROOT, TAG)], Place(SETTLING))

    def _hear(self) -> None:
        said = np.zeros(1, np.uint8)
        wait(self._team, [self._team.comm.Irecv(said, MPI.ANY_SOURCE, TAG)], Place(SETTLING))
        self._heard += 1
        self._number = self._number or int(said[0])
