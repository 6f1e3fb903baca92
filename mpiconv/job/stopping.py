"""Ending a series of frames early and in step: a signal to any rank reaches the root, which starts no more of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from mpi4py import MPI

from mpiconv.partition.schemes import ROOT
from mpiconv.signals import signal_name

if TYPE_CHECKING:
    from mpiconv.job.team import Team
    from mpiconv.signals import Caught

TAG = 11


class Stopping:
    """What the ranks know of signals to any of them. Made by all of them.

    A rank sends the root one byte: the number of the signal that it got, as soon as it looks.

    Parameters
    ----------
    team
        The ranks of the run.
    caught
        What this rank's process was signalled.
    """

    def __init__(self, team: Team, caught: Caught) -> None:
        self._team = team.twin()
        self._caught, self._number = caught, 0
        self._sent: list[MPI.Request] = []
        self._heard = [np.zeros(1, np.uint8) for _ in range(team.size)]
        others = range(1, team.size) if team.rank == ROOT else ()
        self._awaited = {rank: self._team.comm.Irecv(self._heard[rank], rank, TAG) for rank in others}

    def look(self) -> bool:
        """Whether this rank knows of a signal: to itself, or on the root to any rank that has looked since."""
        for rank in [rank for rank, request in self._awaited.items() if _came(request)]:
            del self._awaited[rank]
            self._number = self._number or int(self._heard[rank][0])
        self._number = self._number or self._caught.number
        if self._number and self._team.rank != ROOT and not self._sent:
            self._sent = [self._team.comm.Isend(np.array([self._number], np.uint8), ROOT, TAG)]
        return self._number > 0

    @property
    def ended(self) -> str:
        """The name of the signal that ended the series, as this rank knows, empty if it was none."""
        return signal_name(self._number)

    def close(self) -> None:
        """Listen no more."""
        for request in self._awaited.values():
            request.Cancel()
            request.Free()
        self._awaited = {}


def _came(request: MPI.Request) -> bool:
    """Whether a message is there; one of a rank that died never is."""
    try:
        return bool(request.Test())
    except MPI.Exception:
        return False
