"""Small messages between all ranks of a job that outlives some of them: signs of life, and what is said of the lost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

from mpi4py import MPI

TAG = 20
ROOT = 0

PERIOD_S = 0.25
"""How often each rank gives a sign of life."""


class Pulses:
    """What one rank says to the others and hears of them: rank 0 of all, the others of rank 0.

    Attributes
    ----------
    rank, order
        This rank, and the ranks as they are numbered in the communicator.
    heard_s
        When each was heard last, by ``time.monotonic``; time in which this rank did not look does not count.
    gap_s
        The longest time between two words of a rank until now.
    dead
        The ranks of whose death MPI knows here.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        """``comm`` is a communicator of all ranks on which nobody waits for a message from any source."""
        self.comm, self.gap_s, self.dead = comm, 0.0, set[int]()
        self._sent: list[MPI.Request] = []
        self._beat_s = 0.0
        self.number(range(comm.size))

    def number(self, order: Sequence[int]) -> None:
        """Number the ranks anew: as these are in the communicator. On all of them, while nobody is lost."""
        self.order, self.rank = tuple(order), order.index(self.comm.rank)
        self._tag = TAG + (self.order != tuple(range(self.comm.size)))
        peers = range(1, self.comm.size) if self.rank == ROOT else (ROOT,)
        self._looked_s = monotonic()
        self.heard_s = dict.fromkeys(peers, self._looked_s)

    def look(self, living: Sequence[int]) -> Iterator[tuple[int, list[Any]]]:
        """What others have said since the last look, and who said it; gives a sign of life to those who live."""
        now = monotonic()
        if now - self._looked_s > PERIOD_S:  # it was this rank that was held up
            self.heard_s = {rank: when + now - self._looked_s for rank, when in self.heard_s.items()}
        self._looked_s = now
        self._find_dead()
        for rank in self.heard_s:
            yield from ((rank, words) for words in self._heard(rank, now))
        if now - self._beat_s >= PERIOD_S:
            self._beat_s = now
            for rank in self.heard_s:
                if rank in living:
                    self.say(rank, ["pulse"])

    def silent(self, patience_s: float) -> set[int]:
        """The ranks that were silent for longer."""
        return {rank for rank, when in self.heard_s.items() if monotonic() - when > patience_s}

    def say(self, rank: int, words: list[Any]) -> None:
        """Say something to a rank, without waiting until it hears."""
        data = json.dumps(words).encode()
        with suppress(MPI.Exception):  # it is dead
            self._sent = [request for request in self._sent if not _over(request)]
            if rank not in self.dead:
                self._sent.append(self.comm.Isend([data, MPI.BYTE], self.order[rank], self._tag))

    def _find_dead(self) -> None:
        failed = self.comm.Get_failed()
        if failed.size > len(self.dead):
            everyone = self.comm.Get_group()
            dead = MPI.Group.Translate_ranks(failed, list(range(failed.size)), everyone)
            self.dead = {self.order.index(place) for place in dead}
            everyone.Free()
        failed.Free()

    def _heard(self, rank: int, now: float) -> Iterator[list[Any]]:
        """All that a rank has said."""
        status = MPI.Status()
        with suppress(MPI.Exception):  # it is dead
            while rank not in self.dead and self.comm.Iprobe(self.order[rank], self._tag, status):
                data = bytearray(status.Get_count(MPI.BYTE))
                self.comm.Recv([data, MPI.BYTE], self.order[rank], self._tag)
                self.gap_s = max(self.gap_s, now - self.heard_s[rank])
                self.heard_s[rank] = now
                yield json.loads(data)


def _over(request: MPI.Request) -> bool:
    try:
        return bool(request.Test())
    except MPI.Exception:
        return True
