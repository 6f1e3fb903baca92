"""How the ranks that are left reach each other where some of a communicator's ranks are lost."""

# ruff: noqa: N802 - methods are named as mpi4py names them
from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
from mpi4py import MPI

TAGS = 32
"""Tags of one set of lines; the first is for what all of its ranks do together."""

PARTS = 512
"""Numbers of lines after each loss: those of all ranks are below, those of a part of them from here on."""


class Lines:
    """Messages between some ranks of a communicator, in place of a communicator of their own.

    MPI makes a communicator only with the help of all who are to be in it and, in practice, of who is lost. Here tags
    keep messages apart instead: of each set of lines they start at ``TAGS`` times its number. The methods are those of
    mpi4py's communicators of the same names; what all ranks do together goes from each rank to each.

    Parameters
    ----------
    comm
        The communicator, of which nobody waits for a message from any source.
    places
        The ranks in it, in their order here.
    numbers
        Gives the next number to lines of these ranks, the same on all of them, since all of them make them together.
    """

    def __init__(self, comm: MPI.Intracomm, places: Sequence[int], numbers: count[int], number: int = -1) -> None:
        self._comm, self.places, self._numbers = comm, tuple(places), numbers
        self._number = next(numbers) if number < 0 else number
        self._first_tag = TAGS * self._number
        self.rank, self.size = self.places.index(comm.rank), len(self.places)

    @classmethod
    def after(cls, comm: MPI.Intracomm, places: Sequence[int], losses: int) -> Lines:
        """The first lines between the surviving ranks after loss number ``losses``, counted from 1."""
        return cls(comm, places, count(2 * PARTS * losses))

    def twin(self) -> Lines:
        """Other lines between the same ranks. Collective, without a message."""
        return Lines(self._comm, self.places, self._numbers)

    def part(self, ranks: Sequence[int]) -> Lines:
        """Lines between some of the ranks, which are in no other part than this one."""
        places = [self.places[rank] for rank in ranks]
        beginning = self._number - self._number % (2 * PARTS)
        return Lines(self._comm, places, self._numbers, beginning + PARTS + places[0])

    def Isend(self, data: Any, to: int, tag: int = 0) -> MPI.Request:
        """Send to a rank."""
        return self._comm.Isend(data, self.places[to], self._first_tag + tag)

    def Send(self, data: Any, to: int, tag: int = 0) -> None:
        """Send to a rank, and wait until the data may be changed."""
        self._comm.Send(data, self.places[to], self._first_tag + tag)

    def Irecv(self, data: Any, source: int, tag: int = 0) -> MPI.Request:
        """Receive from a rank."""
        return self._comm.Irecv(data, self.places[source], self._first_tag + tag)

    def Recv(self, data: Any, source: int, tag: int = 0) -> None:
        """Receive from a rank, and wait for it."""
        self._comm.Recv(data, self.places[source], self._first_tag + tag)

    def Send_init(self, data: Any, to: int, tag: int = 0) -> MPI.Prequest:
        """Make ready to send to a rank again and again."""
        return self._comm.Send_init(data, self.places[to], self._first_tag + tag)

    def Recv_init(self, data: Any, source: int, tag: int = 0) -> MPI.Prequest:
        """Make ready to receive from a rank again and again."""
        return self._comm.Recv_init(data, self.places[source], self._first_tag + tag)

    def Iprobe(self, source: int, tag: int, status: MPI.Status) -> bool:
        """Whether a message is there, of a rank or of any, ``status.source`` then."""
        for rank in range(self.size) if source == MPI.ANY_SOURCE else [source]:
            if self._comm.Iprobe(self.places[rank], self._first_tag + tag, status):
                status.source = rank
                return True
        return False

    def Ibarrier(self) -> list[MPI.Request]:
        """Meet."""
        return self._exchanged(bytearray(1), [bytearray(1) for _ in self.places])

    def Ibcast(self, data: np.ndarray, root: int) -> list[MPI.Request]:
        """Give everyone what the root has."""
        if self.rank != root:
            return [self.Irecv(data, root)]
        return [self.Isend(data, rank) for rank in range(self.size) if rank != root]

    def Iallgatherv(self, mine: np.ndarray, parts: Sequence[np.ndarray]) -> list[MPI.Request]:
        """Give everyone what each has, a part of a buffer for each."""
        parts[self.rank][:] = mine
        return self._exchanged(mine, parts)

    def Igather(self, mine: np.ndarray, everything: np.ndarray | None, root: int) -> list[MPI.Request]:
        """Give the root what each has."""
        if everything is None:
            return [self.Isend(mine, root)]
        everything[root] = mine
        return [self.Irecv(everything[rank], rank) for rank in range(self.size) if rank != root]

    def _exchanged(self, mine: Any, parts: Sequence[Any]) -> list[MPI.Request]:
        others = [rank for rank in range(self.size) if rank != self.rank]
        return [self.Irecv(parts[rank], rank) for rank in others] + [self.Isend(mine, rank) for rank in others]

    def Free(self) -> None:
        """Nothing is to be given back."""
