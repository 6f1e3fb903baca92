"""What every rank's last frames took, for the root to see while the series goes on: no rank waits for it."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from mpi4py import MPI

from mpiconv.errors import Lost
from mpiconv.job.team import Team
from mpiconv.job.waiting import wait
from mpiconv.job.watch import Place
from mpiconv.partition.schemes import ROOT
from mpiconv.planner.rebalancing import Window
from mpiconv.runtime.orders import Kind, Order, Orders
from mpiconv.runtime.recording import Recorder

FRAMES = 3
"""How many frames a report is of."""

TAG = 16
PLACE = Place("a report of what frames took")


class Reports:
    """Asked for by the root in an order between two frames, sent by the others when they come to that order.

    Parameters
    ----------
    team
        The ranks; its communicator carries the reports.
    recorder
        What this rank measures.
    orders
        What rank 0 has the others do.
    """

    def __init__(self, team: Team, recorder: Recorder, orders: Orders) -> None:
        self._team, self._recorder, self._orders = team, recorder, orders
        self._requests: list[MPI.Request] = []
        self._rows = np.empty((0, 0, 0))

    @property
    def measured(self) -> int:
        """How many frames this rank ran by the plan that runs, since the last ``reset``."""
        return self._recorder.measured

    def ask(self) -> None:
        """Have every rank report. On rank 0, which has to take one report before it asks for the next."""
        own = self._recorder.last(FRAMES)
        self._rows = np.empty((self._team.size, *own.shape))
        self._rows[ROOT] = own
        others = (rank for rank in range(self._team.size) if rank != ROOT)
        with suppress(MPI.Exception):  # a rank is lost: whoever waits for it next will know
            self._requests = [self._team.comm.Irecv(self._rows[rank], rank, TAG) for rank in others]
            self._orders.give(Order(Kind.REPORT))

    def send(self) -> None:
        """Report, as ordered. Not on rank 0."""
        self._requests = [request for request in self._requests if not request.Test()]
        self._requests.append(self._team.comm.Isend(self._recorder.last(FRAMES), ROOT, TAG))

    def take(self) -> Window | None:
        """The report that was asked for, once all of it is there; None before, and if none was. On rank 0."""
        try:
            if not len(self._rows) or not all(request.Test() for request in self._requests):
                return None
        except MPI.Exception:  # a rank is lost, and its report with it
            self._rows, self._requests = np.empty((0, 0, 0)), []
            return None
        rows, self._rows, self._requests = self._rows, np.empty((0, 0, 0)), []
        spans = np.diff(rows[..., :-1]).transpose(1, 0, 2)
        return Window(spans[..., 0::2], spans[..., 1::2], rows[ROOT, :, -1])

    def settle(self) -> None:
        """Wait for a report that is on its way, which nobody wants any more. On rank 0."""
        with suppress(MPI.Exception, Lost):
            wait(self._team, self._requests, PLACE)
        self._rows, self._requests = np.empty((0, 0, 0)), []
