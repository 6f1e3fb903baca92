"""Moving pieces of maps between ranks with MPI, as a plan's exchange says. Buffers are made once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from mpi4py import MPI

from mpiconv.partition import Box
from mpiconv.partition.box import union_size

if TYPE_CHECKING:
    from mpiconv.partition import Exchange

Groups = dict[tuple[int, ...], MPI.Intracomm]
"""The communicator of each group of ranks that a collective needed, made once."""

ITEM_BYTES = 4
TAG = 7


class Counter:
    """Payload that one rank really moved, counted from the buffers handed to MPI."""

    def __init__(self) -> None:
        self.bytes_sent = 0
        self.bytes_received = 0
        self.multicast_bytes = 0
        self.messages_sent = 0

    def sent(self, elements: int, receivers: int = 1, distinct: int | None = None) -> None:
        """Note ``elements`` sent to each of ``receivers``, ``distinct`` of them not counted before."""
        if elements and receivers:
            self.bytes_sent += ITEM_BYTES * elements * receivers
            self.multicast_bytes += ITEM_BYTES * (elements if distinct is None else distinct)
            self.messages_sent += receivers

    def received(self, elements: int) -> None:
        """Note ``elements`` received."""
        self.bytes_received += ITEM_BYTES * elements


class Parts:
    """Boxes of one tensor as a flat buffer with one part per peer.

    The buffer is the tensor's own memory where every part is one contiguous piece of it, else a staging copy.
    """

    def __init__(self, frame: Box, boxes: Sequence[Sequence[Box]], batch: int, *, disjoint: bool = True) -> None:
        flat = [box for peer in boxes for box in peer]
        self.counts = [batch * sum(box.size for box in peer) for peer in boxes]
        self.total = sum(self.counts)
        self.distinct = batch * union_size(flat)
        in_place = all(len(peer) <= 1 for peer in boxes) and all(_contiguous(frame, box, batch) for box in flat)
        self.in_place = in_place and (not disjoint or self.distinct == self.total)
        if self.in_place:
            self.offsets = [_offset(frame, peer[0]) if peer else 0 for peer in boxes]
            self.staging = None
        else:
            self.offsets = [sum(self.counts[:i]) for i in range(len(self.counts))]
            self.staging = torch.empty(self.total)
        self.slots: list[tuple[tuple[slice, ...], int, tuple[int, ...]]] = []
        for peer, offset in zip(boxes, self.offsets, strict=True):
            start = offset
            for box in peer:
                self.slots.append((_at(box, frame), start, (batch, *box.shape)))
                start += batch * box.size

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """The flat buffer with the parts of ``tensor`` in it."""
        if self.staging is None:
            return tensor.reshape(-1)
        for where, start, shape in self.slots:
            self._view(start, shape).copy_(tensor[where])
        return self.staging

    def target(self, tensor: torch.Tensor) -> torch.Tensor:
        """The flat buffer to receive into."""
        return tensor.view(-1) if self.staging is None else self.staging

    def unpack(self, tensor: torch.Tensor) -> None:
        """Put what was received where it belongs."""
        if self.staging is not None:
            for where, start, shape in self.slots:
                tensor[where] = self._view(start, shape)

    def _view(self, start: int, shape: tuple[int, ...]) -> torch.Tensor:
        assert self.staging is not None  # noqa: S101 - the callers looked
        return self.staging[start : start + int(np.prod(shape))].view(shape)


class Exchanger:
    """One map's exchange on this rank.

    Called with what the rank computed of the map (None if nothing), it returns a tensor that holds ``frame``: all that
    the rank needs of it next. Collective over the exchange's members.
    """

    def __init__(self, exchange: Exchange, batch: int, comm: MPI.Intracomm, groups: Groups) -> None:
        rank = comm.rank
        self.comm, self.rank, self.batch = comm, rank, batch
        self.counter = Counter()
        self.own, need = exchange.owned[rank], exchange.needed[rank]
        self.holds = need in self.own
        self.frame = self.own if self.holds else need
        self.buffer = None if self.holds else torch.empty(batch, *need.shape)
        self.kept = self.own & need
        self.members = exchange.members
        mine = rank in self.members
        self.pattern = exchange.pattern if mine else "none"
        self.sends: dict[int, list[Box]] = {}
        self.receives: dict[int, list[Box]] = {}
        for t in exchange.transfers:
            if t.source == rank:
                self.sends.setdefault(t.target, []).append(t.box)
            if t.target == rank:
                self.receives.setdefault(t.source, []).append(t.box)
        if self.pattern in ("bcast", "scatterv", "gatherv", "allgatherv"):
            if self.members not in groups:
                groups[self.members] = comm.Create_group(comm.group.Incl(self.members))
            self.group = groups[self.members]
        getattr(self, f"_prepare_{self.pattern}")(exchange)
        self._run = getattr(self, f"_{self.pattern}")

    def __call__(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        """Exchange: ``tensor`` is (N, *own box), the result (N, *frame); None stands for an empty box."""
        if self.buffer is not None and self.kept and self.pattern != "allgatherv":
            assert tensor is not None  # noqa: S101 - it owns something
            self.buffer[_at(self.kept, self.frame)] = tensor[_at(self.kept, self.own)]
        self._run(tensor)
        return tensor if self.holds else self.buffer

    def _prepare_none(self, exchange: Exchange) -> None:
        pass

    def _none(self, tensor: torch.Tensor | None) -> None:
        pass

    def _prepare_bcast(self, exchange: Exchange) -> None:
        self.root = self.members.index(exchange.transfers[0].source)
        boxes = next(iter(self.sends.values()), None) or next(iter(self.receives.values()))
        self.parts = Parts(self.own if self.sends else self.frame, [boxes], self.batch)

    def _bcast(self, tensor: torch.Tensor | None) -> None:
        parts = self.parts
        flat = parts.pack(tensor) if self.sends else parts.target(self.buffer)  # type: ignore[arg-type]
        start, count = parts.offsets[0], parts.counts[0]
        self.group.Bcast(flat.numpy()[start : start + count], self.root)
        if self.sends:
            self.counter.sent(count, len(self.members) - 1)
        else:
            self.counter.received(count)
            parts.unpack(self.buffer)  # type: ignore[arg-type]

    def _prepare_scatterv(self, exchange: Exchange) -> None:
        self.root = self.members.index(exchange.transfers[0].source)
        if self.sends:
            self.parts = Parts(self.own, [self.sends.get(rank, []) for rank in self.members], self.batch)
        else:
            self.parts = Parts(self.frame, list(self.receives.values()), self.batch)

    def _scatterv(self, tensor: torch.Tensor | None) -> None:
        parts = self.parts
        if self.sends:
            flat = parts.pack(tensor).numpy()  # type: ignore[arg-type]
            self.group.Scatterv([flat, (parts.counts, parts.offsets), MPI.FLOAT], MPI.IN_PLACE, self.root)
            self._count_sends(parts)
        else:
            flat = parts.target(self.buffer).numpy()  # type: ignore[arg-type]
            start, count = parts.offsets[0], parts.counts[0]
            self.group.Scatterv(None, flat[start : start + count], self.root)
            self.counter.received(count)
            parts.unpack(self.buffer)  # type: ignore[arg-type]

    def _prepare_gatherv(self, exchange: Exchange) -> None:
        self.root = self.members.index(exchange.transfers[0].target)
        if self.receives:
            self.parts = Parts(self.frame, [self.receives.get(rank, []) for rank in self.members], self.batch)
        else:
            self.parts = Parts(self.own, list(self.sends.values()), self.batch)

    def _gatherv(self, tensor: torch.Tensor | None) -> None:
        parts = self.parts
        if self.receives:
            flat = parts.target(self.buffer).numpy()  # type: ignore[arg-type]
            self.group.Gatherv(MPI.IN_PLACE, [flat, (parts.counts, parts.offsets), MPI.FLOAT], self.root)
            self.counter.received(parts.total)
            parts.unpack(self.buffer)  # type: ignore[arg-type]
        else:
            flat = parts.pack(tensor).numpy()  # type: ignore[arg-type]
            start, count = parts.offsets[0], parts.counts[0]
            self.group.Gatherv(flat[start : start + count], None, self.root)
            self.counter.sent(count)

    def _prepare_allgatherv(self, exchange: Exchange) -> None:
        made = [exchange.owned[rank] & self.frame for rank in self.members]
        self.place = self.members.index(self.rank)
        self.outgoing = Parts(self.own, [[box] if (box := made[self.place]) else []], self.batch)
        self.incoming = Parts(self.frame, [[box] if box else [] for box in made], self.batch)

    def _allgatherv(self, tensor: torch.Tensor | None) -> None:
        outgoing, incoming = self.outgoing, self.incoming
        start, count = outgoing.offsets[0], outgoing.counts[0]
        flat = outgoing.pack(tensor).numpy() if count else np.empty(0, np.float32)  # type: ignore[arg-type]
        target = incoming.target(self.buffer).numpy()  # type: ignore[arg-type]
        self.group.Allgatherv(flat[start : start + count], [target, (incoming.counts, incoming.offsets), MPI.FLOAT])
        incoming.unpack(self.buffer)  # type: ignore[arg-type]
        self.counter.sent(count, len(self.members) - 1)
        self.counter.received(incoming.total - count)

    def _prepare_p2p(self, exchange: Exchange) -> None:
        self.outgoing = Parts(self.own, list(self.sends.values()), self.batch, disjoint=False)
        self.incoming = Parts(self.frame, list(self.receives.values()), self.batch)
        self.offsets = sorted({t.target - t.source for t in exchange.transfers}, key=lambda d: (abs(d), d))

    _prepare_sendrecv = _prepare_p2p

    def _sendrecv(self, tensor: torch.Tensor | None) -> None:
        """Rounds of Sendrecv, one for each distance between sender and receiver: +1, -1, and more for thin bands."""
        sends, receives = self._messages(tensor)
        nothing = np.empty(0, np.float32)
        for offset in self.offsets:
            to = self.rank + offset if self.rank + offset in sends else MPI.PROC_NULL
            source = self.rank - offset if self.rank - offset in receives else MPI.PROC_NULL
            if to != MPI.PROC_NULL or source != MPI.PROC_NULL:
                self.comm.Sendrecv(sends.get(to, nothing), to, TAG, receives.get(source, nothing), source, TAG)
        self._received()

    def _p2p(self, tensor: torch.Tensor | None) -> None:
        sends, receives = self._messages(tensor)
        requests = [self.comm.Irecv(part, source, TAG) for source, part in receives.items()]
        requests += [self.comm.Isend(part, to, TAG) for to, part in sends.items()]
        MPI.Request.Waitall(requests)
        self._received()

    def _messages(self, tensor: torch.Tensor | None) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
        """What goes to each receiver and where what comes from each sender goes, as flat arrays."""
        sends: dict[int, np.ndarray] = {}
        receives: dict[int, np.ndarray] = {}
        if self.sends:
            flat = self.outgoing.pack(tensor).numpy()  # type: ignore[arg-type]
            for to, start, count in zip(self.sends, self.outgoing.offsets, self.outgoing.counts, strict=True):
                sends[to] = flat[start : start + count]
            self._count_sends(self.outgoing)
        if self.receives:
            flat = self.incoming.target(self.buffer).numpy()  # type: ignore[arg-type]
            for source, start, count in zip(self.receives, self.incoming.offsets, self.incoming.counts, strict=True):
                receives[source] = flat[start : start + count]
        return sends, receives

    def _received(self) -> None:
        if self.receives:
            self.counter.received(self.incoming.total)
            self.incoming.unpack(self.buffer)  # type: ignore[arg-type]

    def _count_sends(self, parts: Parts) -> None:
        for count in parts.counts:
            self.counter.sent(count, distinct=0)
        self.counter.multicast_bytes += ITEM_BYTES * parts.distinct


def _at(box: Box, frame: Box) -> tuple[slice, ...]:
    """Where the box lies in a (N, *frame) tensor."""
    return (slice(None), *box.within(frame))


def _contiguous(frame: Box, box: Box, batch: int) -> bool:
    """Whether the box is one piece of memory in a contiguous (N, *frame) tensor."""
    wholes = [True, *(len(b) == len(f) for b, f in zip(box.spans, frame.spans, strict=True))]
    lengths = [batch, *box.shape]
    cut = max((axis for axis, whole in enumerate(wholes) if not whole), default=0)
    return all(length == 1 for length in lengths[:cut])


def _offset(frame: Box, box: Box) -> int:
    """Where a contiguous box starts in a flat (*frame) tensor."""
    c, r, w = box.within(frame)
    return int((c.start * len(frame.rows) + r.start) * len(frame.columns) + w.start)
