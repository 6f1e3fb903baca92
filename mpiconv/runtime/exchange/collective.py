"""Maps that all members of a group exchange at once: by MPI's collectives."""

from __future__ import annotations

from typing import Any

import torch
from mpi4py import MPI

from mpiconv.partition import Exchange
from mpiconv.runtime.exchange.messages import Messages, start_all
from mpiconv.runtime.exchange.parts import given

PATTERNS = ("bcast", "scatterv", "gatherv", "allgatherv")


class Collective(Messages):
    """A map's exchange by the collective that its pattern names."""

    def _prepare(self, exchange: Exchange) -> None:
        self.group = self.team.part(self.members).mpi
        getattr(self, f"_prepare_{self.pattern}")(exchange)

    def _post(self, tensor: torch.Tensor | None) -> list[MPI.Request]:
        posted: list[MPI.Request] = getattr(self, f"_{self.pattern}")(tensor)
        return posted

    def _prepare_bcast(self, exchange: Exchange) -> None:
        self.root = self.members.index(exchange.transfers[0].source)
        if self.sends:
            self.outgoing = self._leaving([next(iter(self.sends.values()))])
        else:
            self.incoming = self._receiving(list(self.receives.values()))

    def _bcast(self, tensor: torch.Tensor | None) -> list[MPI.Request]:
        if self.outgoing is not None:
            self.outgoing.pack(tensor)
            self.counter.sent(self.outgoing.total, len(self.sends))
        else:
            self.counter.received(given(self.incoming).total)
        return [self.group.Ibcast((self.outgoing or given(self.incoming)).part(0, tensor), self.root)]

    def _prepare_scatterv(self, exchange: Exchange) -> None:
        self.root = self.members.index(exchange.transfers[0].source)
        if self.sends:
            self.outgoing = self._leaving([self.sends.get(rank, []) for rank in self.members])
        else:
            self.incoming = self._receiving(list(self.receives.values()))

    def _scatterv(self, tensor: torch.Tensor | None) -> list[MPI.Request]:
        if self.outgoing is not None:
            self.outgoing.pack(tensor)
            self._count_sends(self.outgoing)
            return [self.group.Iscatterv(self.outgoing.all(tensor), MPI.IN_PLACE, self.root)]
        incoming = given(self.incoming)
        self.counter.received(incoming.total)
        return [self.group.Iscatterv(None, incoming.part(0), self.root)]

    def _prepare_gatherv(self, exchange: Exchange) -> None:
        self.root = self.members.index(exchange.transfers[0].target)
        if self.receives:
            self.incoming = self._receiving([self.receives.get(rank, []) for rank in self.members])
        else:
            self.outgoing = self._leaving(list(self.sends.values()))

    def _gatherv(self, tensor: torch.Tensor | None) -> list[MPI.Request]:
        if self.incoming is not None:
            self.counter.received(self.incoming.total)
            return [self.group.Igatherv(MPI.IN_PLACE, self.incoming.all(), self.root)]
        outgoing = given(self.outgoing)
        outgoing.pack(tensor)
        self.counter.sent(outgoing.total)
        return [self.group.Igatherv(outgoing.part(0, tensor), None, self.root)]

    def _prepare_allgatherv(self, exchange: Exchange) -> None:
        made = [exchange.owned[rank] & self.held for rank in self.members]
        self.place = self.members.index(self.rank)
        self.incoming = self._receiving([[box] if box else [] for box in made])
        self._everything = self.incoming.all()
        self._mine = next((encoded for owner, encoded, *_ in self.incoming.encoded if owner == self.place), None)
        self._ready = _persistent(self.group, "Allgatherv_init", MPI.IN_PLACE, self._everything)

    def _allgatherv(self, tensor: torch.Tensor | None) -> list[MPI.Request]:
        """The own part lies in the buffer already (``start``) and is sent from there or from a staging copy."""
        incoming = given(self.incoming)
        if self._mine is not None:
            self._mine.write(given(tensor) if self._cut is None else given(tensor)[self._cut])
        mine = incoming.counts[given(self.place)]
        self.counter.sent(mine, len(self.members) - 1)
        self.counter.received(incoming.total - mine)
        if not self._ready:
            return [self.group.Iallgatherv(MPI.IN_PLACE, self._everything)]
        start_all(self._ready)
        return self._ready


def _persistent(group: MPI.Intracomm, name: str, *arguments: Any) -> list[MPI.Request]:
    """A collective's request to be started again and again (MPI 4); none where the library has no such thing."""
    try:
        return [getattr(group, name)(*arguments)]
    except (AttributeError, NotImplementedError, MPI.Exception):
        return []
