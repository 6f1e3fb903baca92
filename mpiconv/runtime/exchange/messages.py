"""Moving pieces of maps between ranks with MPI, as a plan's exchange says. Buffers are made once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from mpi4py import MPI

from mpiconv.job.waiting import ANYWHERE, Awaited, wait
from mpiconv.job.watch import Place
from mpiconv.partition import Box
from mpiconv.runtime.exchange.parts import Counter, Frame, Memory, Parts, given
from mpiconv.runtime.exchange.wire import FLOAT32, Wire

if TYPE_CHECKING:
    from mpiconv.job.team import Team
    from mpiconv.partition import Exchange

TAG = 7
COLLECTIVES = ("bcast", "scatterv", "gatherv", "allgatherv")


class Exchanger:
    """One map's exchange on this rank: ``start`` posts the messages, ``finish`` returns what the rank needs next.

    Collective over the exchange's members. Between the two calls what ``start`` returned has to be awaited.

    Parameters
    ----------
    frame
        What the rank has afterwards; None for what it needs and nothing around it.
    buffer
        Where that is put together, if another part of the same exchange has made it already.

    Attributes
    ----------
    idle
        Whether there is nothing to do for this rank: it has what it needs, where it made it, and sends nothing.
    """

    def __init__(
        self,
        exchange: Exchange,
        batch: int,
        team: Team,
        memory: Memory | None = None,
        wire: Wire = FLOAT32,
        frame: Frame | None = None,
        buffer: torch.Tensor | None = None,
    ) -> None:
        rank = team.rank
        self.team, self.rank, self.batch, self.wire = team, rank, batch, wire
        self.memory = memory or Memory(channels_last=False)
        self.counter = Counter()
        frame = frame or Frame.of(exchange, rank)
        self.own, need = exchange.owned[rank], exchange.needed[rank]
        self.frame, self.holds, self.padded = frame.box, frame.holds, frame.padded
        self.buffer = buffer
        if not self.holds and buffer is None:
            self.buffer = self.memory.empty(batch, self.frame)
            if self.padded:
                self.buffer.fill_(frame.padding)
        self.members = exchange.members
        self.pattern = exchange.pattern if rank in self.members else "none"
        self.idle = self.holds and self.pattern == "none"
        self.sends: dict[int, list[Box]] = {}
        self.receives: dict[int, list[Box]] = {}
        for t in exchange.transfers:
            if t.source == rank:
                self.sends.setdefault(t.target, []).append(t.box)
            if t.target == rank:
                self.receives.setdefault(t.source, []).append(t.box)
        if self.pattern in COLLECTIVES:
            self.group = team.part(self.members).comm
        self._keep(self.own & need)
        self.incoming: Parts | None = None
        self.outgoing: Parts | None = None
        self.place: int | None = None
        self._ready: list[MPI.Request] = []
        getattr(self, f"_prepare_{self.pattern}")(exchange)
        self._post = getattr(Exchanger, f"_{self.pattern}")  # not bound to self: such a circle is freed late
        self._sending: torch.Tensor | None = None

    def _keep(self, kept: Box) -> None:
        """Make ready to copy what the rank made and needs itself into its buffer."""
        self.kept = kept
        self._kept: torch.Tensor | None = None
        self._cut: tuple[slice, ...] | None = None
        if self.buffer is not None and kept:
            there, here = ((slice(None), *kept.within(frame)) for frame in (self.frame, self.own))
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
        return Awaited(list(self._post(self, tensor)))

    def finish(self) -> torch.Tensor | None:
        """A tensor (N, *frame), None for an empty box; only after what ``start`` returned is there."""
        if self.incoming is not None:
            self.incoming.unpack(self.place)
        tensor, self._sending = self._sending, None
        return tensor if self.holds else self.buffer

    def __call__(self, tensor: torch.Tensor | None, place: Place = ANYWHERE) -> torch.Tensor | None:
        """Start, wait, finish."""
        wait(self.team, self.start(tensor).requests, place)
        return self.finish()

    def close(self) -> None:
        """Give back the messages that were made once."""
        for request in self._ready:
            request.Free()
        self._ready = []

    def _receiving(self, boxes: Sequence[Sequence[Box]]) -> Parts:
        return Parts(self.frame, boxes, self.batch, self.memory, self.wire, self.buffer)

    def _leaving(self, boxes: Sequence[Sequence[Box]], *, disjoint: bool = True) -> Parts:
        """Parts of what this rank made, from its buffer where they lie there too and that saves a copy or two."""
        made = Parts(self.own, boxes, self.batch, self.memory, self.wire, disjoint=disjoint)
        if self._kept is None or not all(box in self.kept for peer in boxes for box in peer):
            return made
        there = Parts(self.frame, boxes, self.batch, self.memory, self.wire, self.buffer, disjoint=disjoint)
        return made if made.in_place and not there.in_place else there

    def _prepare_none(self, _exchange: Exchange) -> None:
        """Nothing to do."""

    def _none(self, _tensor: torch.Tensor | None) -> list[MPI.Request]:
        return []

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
        made = [exchange.owned[rank] & self.frame for rank in self.members]
        self.place = self.members.index(self.rank)
        self.incoming = self._receiving([[box] if box else [] for box in made])
        self._everything = self.incoming.all()
        self._mine = next((parcel for owner, parcel, *_ in self.incoming.parcels if owner == self.place), None)
        self._ready = _persistent(self.group, "Allgatherv_init", MPI.IN_PLACE, self._everything)

    def _allgatherv(self, tensor: torch.Tensor | None) -> list[MPI.Request]:
        """The own part lies in the frame already (``start``) and is sent from there or from a staging copy."""
        incoming = given(self.incoming)
        if self._mine is not None:
            self._mine.write(given(tensor) if self._cut is None else given(tensor)[self._cut])
        mine = incoming.counts[given(self.place)]
        self.counter.sent(mine, len(self.members) - 1)
        self.counter.received(incoming.total - mine)
        if not self._ready:
            return [self.group.Iallgatherv(MPI.IN_PLACE, self._everything)]
        _start(self._ready)
        return self._ready

    def _prepare_p2p(self, _exchange: Exchange) -> None:
        """Requests that are made once and started for every frame, as far as their memory is always the same."""
        if self.receives:
            self.incoming = self._receiving(list(self.receives.values()))
            for number, source in enumerate(self.receives):
                self._ready.append(self.team.comm.Recv_init(self.incoming.part(number), source, TAG))
        if self.sends:
            self.outgoing = self._leaving(list(self.sends.values()), disjoint=False)
            if self.outgoing.fixed is not None:
                for number, to in enumerate(self.sends):
                    self._ready.append(self.team.comm.Send_init(self.outgoing.part(number), to, TAG))

    _prepare_sendrecv = _prepare_p2p

    def _p2p(self, tensor: torch.Tensor | None) -> list[MPI.Request]:
        if self.incoming is not None:
            self.counter.received(self.incoming.total)
        if self.outgoing is not None:
            self.outgoing.pack(tensor)
            self._count_sends(self.outgoing)
        _start(self._ready)
        if self.outgoing is None or self.outgoing.fixed is not None:
            return self._ready
        parts = enumerate(self.sends)
        return [*self._ready, *(self.team.comm.Isend(self.outgoing.part(n, tensor), to, TAG) for n, to in parts)]

    _sendrecv = _p2p

    def _count_sends(self, parts: Parts) -> None:
        for count in parts.counts:
            self.counter.sent(count, distinct=0)
        self.counter.multicast_bytes += parts.distinct


def _persistent(group: MPI.Intracomm, name: str, *arguments: Any) -> list[MPI.Request]:
    """A collective's request to be started again and again (MPI 4); none where the library has no such thing."""
    try:
        return [getattr(group, name)(*arguments)]
    except (AttributeError, NotImplementedError, MPI.Exception):
        return []


def _start(requests: Sequence[MPI.Request]) -> None:
    for request in requests:
        if isinstance(request, MPI.Prequest):
            request.Start()
