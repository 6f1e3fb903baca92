"""Maps that go from rank to rank, halos mostly; and the medium that carries a map if no other does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from mpi4py import MPI

from mpiconv.job.team import Team
from mpiconv.partition import Exchange
from mpiconv.partition.schedule import Held, Move
from mpiconv.partition.wire import FLOAT32, Wire
from mpiconv.runtime.exchange.base import Exchanger, Medium, medium
from mpiconv.runtime.exchange.collective import PATTERNS, Collective
from mpiconv.runtime.exchange.messages import Messages, start_all
from mpiconv.runtime.exchange.parts import LARGEST_ITEMS, Memory

if TYPE_CHECKING:
    from mpiconv.runtime.settings import Settings

TAG = 7


class PointToPoint(Messages):
    """A map's exchange by messages from rank to rank; none where this rank takes no part."""

    def _prepare(self, exchange: Exchange) -> None:  # noqa: ARG002
        """Make persistent requests, started for every frame, for all buffers that stay in one place."""
        if self.receives:
            self.incoming = self._receiving(list(self.receives.values()))
            for number, source in enumerate(self.receives):
                self._ready.append(self.team.comm.Recv_init(self.incoming.part(number), source, TAG))
        if self.sends:
            self.outgoing = self._leaving(list(self.sends.values()), disjoint=False)
            if self.outgoing.fixed is not None:
                for number, to in enumerate(self.sends):
                    self._ready.append(self.team.comm.Send_init(self.outgoing.part(number), to, TAG))

    def _post(self, tensor: torch.Tensor | None) -> list[MPI.Request]:
        if self.incoming is not None:
            self.counter.received(self.incoming.total)
        if self.outgoing is not None:
            self.outgoing.pack(tensor)
            self._count_sends(self.outgoing)
        start_all(self._ready)
        if self.outgoing is None or self.outgoing.fixed is not None:
            return self._ready
        parts = enumerate(self.sends)
        return [*self._ready, *(self.team.comm.Isend(self.outgoing.part(n, tensor), to, TAG) for n, to in parts)]


def by_messages(
    exchange: Exchange,
    batch: int,
    team: Team,
    memory: Memory | None = None,
    wire: Wire = FLOAT32,
    held: Held | None = None,
    buffer: torch.Tensor | None = None,
) -> Messages:
    """The exchanger by MPI that fits an exchange's pattern; between those who are left all go from rank to rank."""
    collective = exchange.pattern in PATTERNS and team.rank in exchange.members and team.whole
    return (Collective if collective else PointToPoint)(exchange, batch, team, memory, wire, held, buffer)


@medium
class ByMessages(Medium):
    """MPI's messages: they carry any map, and are what is left where nothing else can."""

    name = "messages"
    largest_items = LARGEST_ITEMS

    def suits(self, exchange: Exchange, team: Team, settings: Settings) -> bool:  # noqa: ARG002
        """Always."""
        return True

    def exchangers(
        self, moves: Mapping[int, Move], batch: int, team: Team, memory: Memory
    ) -> dict[int, tuple[Exchanger, ...]]:
        """One exchanger for each part of each map; a map's parts share a buffer. Collective, in ``moves``' order."""
        found: dict[int, tuple[Exchanger, ...]] = {}
        for source, move in moves.items():
            made: list[Messages] = []
            for part in move.parts:
                held, buffer = move.held[team.rank], made[0].buffer if made else None
                made.append(by_messages(part, batch, team, memory, move.wire, held, buffer))
            found[source] = tuple(made)
        return found
