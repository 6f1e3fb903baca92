"""What both kinds of MPI exchange share, collectives and messages from rank to rank: buffers, packing, counting."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from mpi4py import MPI

from mpiconv.job.team import Team
from mpiconv.job.waiting import ANYWHERE, Awaited, wait
from mpiconv.job.watch import Place
from mpiconv.partition import Box, Exchange
from mpiconv.partition.schedule import Held
from mpiconv.partition.wire import FLOAT32, Wire
from mpiconv.runtime.exchange.base import Exchanger
from mpiconv.runtime.exchange.parts import Memory, Parts, given


class Messages(Exchanger):
    """A map's exchange by MPI messages: ``start`` posts them. Made once, its buffers are kept.

    Collective over the exchange's members.

    Parameters
    ----------
    held
        What the rank has afterwards; None for what it needs and nothing around it.
    buffer
        Where that is put together, if another part of the same exchange has made it already.
    """

    messages = True

    def __init__(
        self,
        exchange: Exchange,
        batch: int,
        team: Team,
        memory: Memory | None = None,
        wire: Wire = FLOAT32,
        held: Held | None = None,
        buffer: torch.Tensor | None = None,
    ) -> None:
        rank = team.rank
        self.team, self.rank, self.batch, self.wire = team, rank, batch, wire
        self.memory = memory or Memory(channels_last=False)
        held = held or Held.of(exchange, rank)
        super().__init__(held, exchange.pattern if rank in exchange.members else "none")
        self.own, need = exchange.owned[rank], exchange.needed[rank]
        self.buffer = buffer
        if not self.holds and buffer is None:
            self.buffer = self.memory.empty(batch, self.held)
            if self.padded:
                self.buffer.fill_(held.padding)
        self.members = exchange.members
        self.idle = self.holds and self.pattern == "none"
        self.sends: dict[int, list[Box]] = {}
        self.receives: dict[int, list[Box]] = {}
        for t in exchange.transfers:
            if t.source == rank:
                self.sends.setdefault(t.target, []).append(t.box)
            if t.target == rank:
                self.receives.setdefault(t.source, []).append(t.box)
        self._keep(self.own & need)
        self.incoming: Parts | None = None
        self.outgoing: Parts | None = None
        self.place: int | None = None
        self._ready: list[MPI.Request] = []
        self._sending: torch.Tensor | None = None
        self._prepare(exchange)

    def _keep(self, kept: Box) -> None:
        """Prepare the copy of what this rank both made and needs into its buffer."""
        self.kept = kept
        self._kept: torch.Tensor | None = None
        self._cut: tuple[slice, ...] | None = None
        if self.buffer is not None and kept:
            there, here = ((slice(None), *kept.within(box)) for box in (self.held, self.own))
            self._kept = self.buffer[there]
            self._cut = None if kept == self.own else here

    def start(self, tensor: torch.Tensor | None) -> Awaited:
        """Post the messages for a map of which this rank made ``tensor``, (N, *own box), or None if nothing."""
        if self._kept is not None:
            mine = given(tensor)
            self._kept.copy_(mine if self._cut is None else mine[self._cut])
        if self.outgoing is not None and self.outgoing.fixed is None:  # sent from where it lies
            tensor = given(tensor).contiguous(memory_format=self.memory.format)
        self._sending = tensor
        return Awaited(list(self._post(tensor)))

    def finish(self) -> torch.Tensor | None:
        """A tensor (N, *held), None for an empty box; only after what ``start`` returned is there."""
        if self.incoming is not None:
            self.incoming.unpack(self.place)
        tensor, self._sending = self._sending, None
        return tensor if self.holds else self.buffer

    def __call__(self, tensor: torch.Tensor | None, place: Place = ANYWHERE) -> torch.Tensor | None:
        """Start, wait, finish."""
        wait(self.team, self.start(tensor).requests, place)
        return self.finish()

    def close(self) -> None:
        """Free the persistent requests."""
        for request in self._ready:
            request.Free()
        self._ready = []

    @abstractmethod
    def _prepare(self, exchange: Exchange) -> None:
        """Make ready what is the same for every frame."""

    @abstractmethod
    def _post(self, tensor: torch.Tensor | None) -> Sequence[MPI.Request]:
        """Send and receive."""

    def _receiving(self, boxes: Sequence[Sequence[Box]]) -> Parts:
        return Parts(self.held, boxes, self.batch, self.memory, self.wire, self.buffer)

    def _leaving(self, boxes: Sequence[Sequence[Box]], *, disjoint: bool = True) -> Parts:
        """The parts to send of what this rank made, from its buffer if they lie there too and that saves a copy."""
        made = Parts(self.own, boxes, self.batch, self.memory, self.wire, disjoint=disjoint)
        if self._kept is None or not all(box in self.kept for peer in boxes for box in peer):
            return made
        there = Parts(self.held, boxes, self.batch, self.memory, self.wire, self.buffer, disjoint=disjoint)
        return made if made.in_place and not there.in_place else there

    def _count_sends(self, parts: Parts) -> None:
        for count in parts.counts:
            self.counter.sent(count, distinct=0)
        self.counter.multicast_bytes += parts.distinct


def start_all(requests: Sequence[MPI.Request]) -> None:
    """Start the requests that were made once."""
    for request in requests:
        if isinstance(request, MPI.Prequest):
            request.Start()
