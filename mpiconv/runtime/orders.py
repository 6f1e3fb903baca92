"""What rank 0 has the other ranks do, in one small message each: nothing is implied by which call comes next."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from mpi4py import MPI

from mpiconv.job.team import Team
from mpiconv.job.waiting import Awaited
from mpiconv.job.watch import START, Place
from mpiconv.partition.schemes import ROOT

TAG = 15
TOLD = Place("the start of the next picture")


class Kind(IntEnum):
    """What an order is for."""

    RUN = 1
    END = 2
    REFUSED = 3
    RESET = 4
    COLLECT = 5
    DISMISS = 6
    CLOSE = 7
    ADOPT = 8
    REPORT = 9
    GUARD = 10
    REST = 11
    VERIFY = 12


CALLS = {
    Kind.RUN: "called the network",
    Kind.END: "ran a stream to its end",
    Kind.REFUSED: "called the network with a picture that does not fit",
    Kind.RESET: "called reset",
    Kind.COLLECT: "called collect",
    Kind.DISMISS: "dismissed the ranks that follow",
    Kind.CLOSE: "closed the network",
    Kind.ADOPT: "adopted another plan",
    Kind.REPORT: "asked for a report",
    Kind.GUARD: "asked for the first output that was not finite",
    Kind.REST: "had the others rest",
    Kind.VERIFY: "checked what a rank computes",
}
"""What rank 0 did that gave the order, for messages."""


@dataclass(frozen=True)
class Order:
    """An order: ``RUN`` frame ``number`` in slot ``slot``, or another kind, which needs no numbers."""

    kind: Kind
    number: int = 0
    slot: int = 0


class Orders:
    """Sends orders on rank 0; on the others receives them one after the other, in order.

    On those it is something to wait for, as ``Flags`` are: ``reached`` says whether the next order is there.
    """

    def __init__(self, team: Team) -> None:
        self._team = team.twin()
        self._sent: list[MPI.Request] = []
        self._message = np.empty(3, np.int64)
        self._request = self._next() if team.rank != ROOT else MPI.REQUEST_NULL
        self._there = False

    def give(self, order: Order) -> Awaited:
        """Send an order to all other ranks; returns what to wait for until it has left. On rank 0."""
        message = np.array([order.kind, order.number, order.slot], np.int64)
        others = (rank for rank in range(self._team.size) if rank != ROOT)
        sent = [self._team.comm.Isend(message, rank, TAG) for rank in others]
        self._sent = [request for request in self._sent if not request.Test()] + sent
        return Awaited(sent[:], place=TOLD)

    def reached(self) -> bool:
        """Whether the next order is there, to be looked at by ``first`` and taken by ``take``. Not on rank 0."""
        self._there = self._there or bool(self._request.Test())
        return self._there

    def awaited(self) -> Awaited:
        """The next order, as something to wait for."""
        return Awaited([], [self], place=START)

    @property
    def first(self) -> Order:
        """The next order, which is there."""
        kind, number, slot = (int(each) for each in self._message)
        return Order(Kind(kind), number, slot)

    def take(self) -> Order:
        """Remove the next order, which is there."""
        order, self._there = self.first, False
        if order.kind is not Kind.CLOSE:
            self._request = self._next()
        return order

    def close(self) -> None:
        """Finish: the last order, ``CLOSE``, was given or taken."""
        MPI.Request.Waitall(self._sent)
        self._sent = []

    def _next(self) -> MPI.Request:
        return self._team.comm.Irecv(self._message, ROOT, TAG)
