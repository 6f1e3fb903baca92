"""Moving pieces of maps between ranks with MPI, as a plan's exchange says. Buffers are made once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from mpi4py import MPI

from mpiconv.partition import Box, Span
from mpiconv.partition.box import union_size
from mpiconv.runtime.waiting import Waiting
from mpiconv.runtime.wire import FLOAT32, Wire

if TYPE_CHECKING:
    from mpiconv.partition import Exchange

Groups = dict[tuple[int, ...], MPI.Intracomm]
"""The communicator of each group of ranks that a collective needed, made once."""

TAG = 7
COLLECTIVES = ("bcast", "scatterv", "gatherv", "allgatherv")


class Counter:
    """Payload that one rank really moved, counted from the buffers handed to MPI."""

    def __init__(self) -> None:
        self.bytes_sent = 0
        self.bytes_received = 0
        self.multicast_bytes = 0
        self.messages_sent = 0

    def sent(self, size: int, receivers: int = 1, distinct: int | None = None) -> None:
        """Note ``size`` B sent to each of ``receivers``, ``distinct`` of them not counted before."""
        if size and receivers:
            self.bytes_sent += size * receivers
            self.multicast_bytes += size if distinct is None else distinct
            self.messages_sent += receivers

    def received(self, size: int) -> None:
        """Note ``size`` B received."""
        self.bytes_received += size


class Memory:
    """How maps lie in memory: by channels (N, C, H, W), or channels last (N, H, W, C), which oneDNN works on."""

    def __init__(self, *, channels_last: bool) -> None:
        self.axes = (1, 2, 0) if channels_last else (0, 1, 2)
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.channel_axis = 1 + self.axes.index(0)

    def empty(self, batch: int, box: Box) -> torch.Tensor:
        """A tensor (N, *box) without values."""
        return torch.empty(batch, *box.shape, memory_format=self.format)

    def stored(self, tensor: torch.Tensor) -> torch.Tensor:
        """The contiguous tensor (N, ...) with its axes in the order of memory; a copy only if it lies otherwise."""
        return self.turned(tensor.contiguous(memory_format=self.format))

    def turned(self, tensor: torch.Tensor) -> torch.Tensor:
        """A view (N, ...) of a tensor with its axes in the order of memory."""
        return tensor.permute(0, *(1 + axis for axis in self.axes))

    def spans(self, box: Box) -> tuple[Span, ...]:
        """The box's spans in the order of memory."""
        return tuple(box.spans[axis] for axis in self.axes)

    def shape(self, batch: int, box: Box) -> tuple[int, ...]:
        """(N, ...) of a stored piece."""
        return (batch, *(len(span) for span in self.spans(box)))

    def where(self, box: Box, frame: Box) -> tuple[slice, ...]:
        """Where the box lies in the stored tensor of a frame."""
        pairs = zip(self.spans(box), self.spans(frame), strict=True)
        return (slice(None), *(slice(a.lo - b.lo, a.hi - b.lo) for a, b in pairs))

    def contiguous(self, box: Box, frame: Box, batch: int) -> bool:
        """Whether the box is one piece of memory in a tensor of the frame."""
        lengths = self.shape(batch, box)
        wholes = [True, *(len(b) == len(f) for b, f in zip(self.spans(box), self.spans(frame), strict=True))]
        cut = max((axis for axis, whole in enumerate(wholes) if not whole), default=0)
        return all(length == 1 for length in lengths[:cut])

    def offset(self, box: Box, frame: Box) -> int:
        """The number of the box's first element in a tensor of the frame, for one picture."""
        number = 0
        for mine, whole in zip(self.spans(box), self.spans(frame), strict=True):
            number = number * len(whole) + mine.lo - whole.lo
        return number


class Parts:
    """Boxes of one tensor as a flat buffer of bytes with one part per peer.

    The buffer is the tensor's own memory where every part is one contiguous piece of it and travels as it is, else a
    staging copy.
    """

    def __init__(
        self,
        frame: Box,
        boxes: Sequence[Sequence[Box]],
        batch: int,
        memory: Memory,
        wire: Wire = FLOAT32,
        *,
        disjoint: bool = True,
    ) -> None:
        flat = [box for peer in boxes for box in peer]
        elements, distinct = sum(box.size for box in flat), union_size(flat)
        self.memory, self.wire = memory, wire
        sizes = [[wire.size(memory.shape(batch, box), memory.channel_axis) for box in peer] for peer in boxes]
        self.counts = [sum(peer) for peer in sizes]
        self.total = sum(self.counts)
        self.distinct = self.total * distinct // elements if elements else 0
        single = all(len(peer) <= 1 for peer in boxes) and all(memory.contiguous(box, frame, batch) for box in flat)
        self.in_place = wire is FLOAT32 and single and (not disjoint or distinct == elements)
        if self.in_place:
            self.offsets = [FLOAT32.item_bytes * memory.offset(peer[0], frame) if peer else 0 for peer in boxes]
            self.staging = None
        else:
            self.offsets = [sum(self.counts[:i]) for i in range(len(self.counts))]
            self.staging = torch.empty(self.total, dtype=torch.uint8)
        self.slots: list[tuple[int, tuple[slice, ...], slice]] = []
        for owner, (peer, lengths, offset) in enumerate(zip(boxes, sizes, self.offsets, strict=True)):
            start = offset
            for box, length in zip(peer, lengths, strict=True):
                self.slots.append((owner, memory.where(box, frame), slice(start, start + length)))
                start += length

    def pack(self, stored: torch.Tensor, peer: int | None = None) -> np.ndarray:
        """The flat buffer with the parts of a tensor in it, all of them or one peer's; ``stored`` as ``target``'s."""
        if self.staging is not None:
            for owner, where, place in self.slots:
                if peer is None or owner == peer:
                    self.wire.encode(stored[where], self.staging[place], self.memory.channel_axis)
        return self.target(stored)

    def target(self, stored: torch.Tensor) -> np.ndarray:
        """The flat buffer to receive into; ``stored`` is the tensor in the order of memory."""
        flat = stored.reshape(-1).view(torch.uint8) if self.staging is None else self.staging
        return np.asarray(flat.numpy())

    def unpack(self, stored: torch.Tensor, but: int | None = None) -> None:
        """Put what was received where it belongs, but not one peer's part."""
        if self.staging is not None:
            for owner, where, place in self.slots:
                if owner == but:
                    continue
                self.wire.decode(self.staging[place], stored[where], self.memory.channel_axis)

    def part(self, flat: np.ndarray, number: int) -> np.ndarray:
        """What goes to or comes from peer ``number``."""
        return flat[self.offsets[number] : self.offsets[number] + self.counts[number]]


class Exchanger:
    """One map's exchange on this rank: ``start`` posts the messages, ``finish`` returns what the rank needs next.

    Collective over the exchange's members. Between the two calls the requests that ``start`` returned have to complete.

    Parameters
    ----------
    around
        Rows and columns (before, after) that the buffer has around what the rank needs, and their value.
    shared
        Several exchanges fill one buffer, the first one's; the others are given it as ``buffer``.
    """

    def __init__(
        self,
        exchange: Exchange,
        batch: int,
        comm: MPI.Intracomm,
        groups: Groups,
        memory: Memory | None = None,
        wire: Wire = FLOAT32,
        around: tuple[tuple[int, int], tuple[int, int], float] | None = None,
        buffer: torch.Tensor | None = None,
        *,
        shared: bool = False,
    ) -> None:
        rank = comm.rank
        self.comm, self.rank, self.batch, self.wire = comm, rank, batch, wire
        self.memory = memory or Memory(channels_last=False)
        self.counter = Counter()
        self.own, need = exchange.owned[rank], exchange.needed[rank]
        self.holds = not need if shared else need in self.own
        self.padded = bool(around) and not self.holds
        self.frame = self.own if self.holds else need
        self.buffer = buffer
        if around is not None and self.padded:
            rows, columns, value = around
            self.frame = Box(need.channels, need.rows.wider(rows), need.columns.wider(columns))
            if buffer is None:
                self.buffer = self.memory.empty(batch, self.frame).fill_(value)
        elif not self.holds and buffer is None:
            self.buffer = self.memory.empty(batch, need)
        self._stored = None if self.buffer is None else self.memory.stored(self.buffer)
        self.kept = self.own & need
        self.members = exchange.members
        self.pattern = exchange.pattern if rank in self.members else "none"
        self.sends: dict[int, list[Box]] = {}
        self.receives: dict[int, list[Box]] = {}
        for t in exchange.transfers:
            if t.source == rank:
                self.sends.setdefault(t.target, []).append(t.box)
            if t.target == rank:
                self.receives.setdefault(t.source, []).append(t.box)
        if self.pattern in COLLECTIVES:
            if self.members not in groups:
                groups[self.members] = comm.Create_group(comm.group.Incl(self.members))
            self.group = groups[self.members]
        self.incoming: Parts | None = None
        self.place: int | None = None
        getattr(self, f"_prepare_{self.pattern}")(exchange)
        self._post = getattr(self, f"_{self.pattern}")
        self._sending: torch.Tensor | None = None

    def start(self, tensor: torch.Tensor | None) -> list[MPI.Request]:
        """Post the messages for a map of which this rank made ``tensor``, (N, *own box), or None if nothing."""
        self._sending = tensor
        if self._stored is not None and self.kept:
            stored = self.memory.turned(_given(tensor))
            self._stored[self.memory.where(self.kept, self.frame)] = stored[self.memory.where(self.kept, self.own)]
        requests: list[MPI.Request] = self._post(tensor)
        return requests

    def finish(self) -> torch.Tensor | None:
        """A tensor (N, *frame), None for an empty box; only after the requests are complete."""
        if self._stored is not None and self.incoming is not None:
            self.incoming.unpack(self._stored, self.place)
        tensor, self._sending = self._sending, None
        return tensor if self.holds else self.buffer

    def __call__(self, tensor: torch.Tensor | None, waiting: Waiting | None = None) -> torch.Tensor | None:
        """Start, wait, finish."""
        (waiting or Waiting("spin")).all(self.start(tensor))
        return self.finish()

    def _parts(self, frame: Box, boxes: Sequence[Sequence[Box]], *, disjoint: bool = True) -> Parts:
        return Parts(frame, boxes, self.batch, self.memory, self.wire, disjoint=disjoint)

    def _prepare_none(self, _exchange: Exchange) -> None:
        """Nothing to do."""

    def _none(self, _tensor: torch.Tensor | None) -> list[MPI.Request]:
        return []

    def _prepare_bcast(self, exchange: Exchange) -> None:
        self.root = self.members.index(exchange.transfers[0].source)
        if self.sends:
            self.outgoing = self._parts(self.own, [next(iter(self.sends.values()))])
        else:
            self.incoming = self._parts(self.frame, list(self.receives.values()))

    def _bcast(self, tensor: torch.Tensor | None) -> list[MPI.Request]:
        if self.incoming is None:
            flat, parts = self.outgoing.pack(self.memory.stored(_given(tensor))), self.outgoing
            self.counter.sent(parts.total, len(self.sends))
        else:
            flat, parts = self.incoming.target(_given(self._stored)), self.incoming
            self.counter.received(parts.total)
        return [self.group.Ibcast([parts.part(flat, 0), MPI.BYTE], self.root)]

    def _prepare_scatterv(self, exchange: Exchange) -> None:
        self.root = self.members.index(exchange.transfers[0].source)
        if self.sends:
            self.outgoing = self._parts(self.own, [self.sends.get(rank, []) for rank in self.members])
        else:
            self.incoming = self._parts(self.frame, list(self.receives.values()))

    def _scatterv(self, tensor: torch.Tensor | None) -> list[MPI.Request]:
        if self.incoming is None:
            parts, flat = self.outgoing, self.outgoing.pack(self.memory.stored(_given(tensor)))
            self._count_sends(parts)
            return [self.group.Iscatterv([flat, (parts.counts, parts.offsets), MPI.BYTE], MPI.IN_PLACE, self.root)]
        flat = self.incoming.target(_given(self._stored))
        self.counter.received(self.incoming.total)
        return [self.group.Iscatterv(None, [self.incoming.part(flat, 0), MPI.BYTE], self.root)]

    def _prepare_gatherv(self, exchange: Exchange) -> None:
        self.root = self.members.index(exchange.transfers[0].target)
        if self.receives:
            self.incoming = self._parts(self.frame, [self.receives.get(rank, []) for rank in self.members])
        else:
            self.outgoing = self._parts(self.own, list(self.sends.values()))

    def _gatherv(self, tensor: torch.Tensor | None) -> list[MPI.Request]:
        if self.incoming is not None:
            parts, flat = self.incoming, self.incoming.target(_given(self._stored))
            self.counter.received(parts.total)
            return [self.group.Igatherv(MPI.IN_PLACE, [flat, (parts.counts, parts.offsets), MPI.BYTE], self.root)]
        flat = self.outgoing.pack(self.memory.stored(_given(tensor)))
        self.counter.sent(self.outgoing.total)
        return [self.group.Igatherv([self.outgoing.part(flat, 0), MPI.BYTE], None, self.root)]

    def _prepare_allgatherv(self, exchange: Exchange) -> None:
        made = [exchange.owned[rank] & self.frame for rank in self.members]
        self.place = self.members.index(self.rank)
        self.incoming = self._parts(self.frame, [[box] if box else [] for box in made])

    def _allgatherv(self, _tensor: torch.Tensor | None) -> list[MPI.Request]:
        """The own part lies in the frame already (``start``) and is sent from there or from the staging copy."""
        incoming, stored = _present(self.incoming), _given(self._stored)
        flat, mine = incoming.pack(stored, self.place), incoming.counts[self.members.index(self.rank)]
        self.counter.sent(mine, len(self.members) - 1)
        self.counter.received(incoming.total - mine)
        return [self.group.Iallgatherv(MPI.IN_PLACE, [flat, (incoming.counts, incoming.offsets), MPI.BYTE])]

    def _prepare_p2p(self, _exchange: Exchange) -> None:
        self.outgoing = self._parts(self.own, list(self.sends.values()), disjoint=False)
        self.incoming = self._parts(self.frame, list(self.receives.values()))

    _prepare_sendrecv = _prepare_p2p

    def _p2p(self, tensor: torch.Tensor | None) -> list[MPI.Request]:
        requests = []
        if self.receives:
            incoming = _present(self.incoming)
            flat = incoming.target(_given(self._stored))
            for number, source in enumerate(self.receives):
                requests.append(self.comm.Irecv([incoming.part(flat, number), MPI.BYTE], source, TAG))
            self.counter.received(incoming.total)
        if self.sends:
            flat = self.outgoing.pack(self.memory.stored(_given(tensor)))
            for number, to in enumerate(self.sends):
                requests.append(self.comm.Isend([self.outgoing.part(flat, number), MPI.BYTE], to, TAG))
            self._count_sends(self.outgoing)
        return requests

    _sendrecv = _p2p

    def _count_sends(self, parts: Parts) -> None:
        for count in parts.counts:
            self.counter.sent(count, distinct=0)
        self.counter.multicast_bytes += parts.distinct


def _given(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None  # noqa: S101 - the plan says that the rank has it
    return tensor


def _present(parts: Parts | None) -> Parts:
    assert parts is not None  # noqa: S101 - this pattern made it
    return parts
