"""Memory formats of maps, and which bytes of a tensor a message sends or receives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from mpi4py import MPI

from mpiconv.partition import Box, Span
from mpiconv.partition.box import union_size
from mpiconv.partition.wire import FLOAT32, Wire
from mpiconv.runtime.exchange.wire import Encoded

Message = list[Any]
"""What mpi4py takes as a buffer: memory, counts and offsets where there are several, type."""

ITEM_BYTES = 4
LARGEST_ITEMS = 2**31 - 1
"""MPI counts the items of a message in an int. All formats take a multiple of ``ITEM_BYTES``."""

T = TypeVar("T")


def given(value: T | None) -> T:
    """The value; the plan guarantees that this rank has one."""
    assert value is not None  # noqa: S101
    return value


class Counter:
    """Payload that one rank really moved, counted from the buffers handed to MPI."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Count from nothing again."""
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

    def empty(self, batch: int, box: Box) -> torch.Tensor:
        """A tensor (N, *box) without values."""
        return torch.empty(batch, *box.shape, memory_format=self.format)

    def view(self, flat: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """A flat tensor, its elements in the order of memory, as (N, C, H, W)."""
        stored = flat.view(shape[0], *(shape[1 + axis] for axis in self.axes))
        return stored.permute(0, *(1 + self.axes.index(axis) for axis in range(3)))

    def spans(self, box: Box) -> tuple[Span, ...]:
        """The box's spans in the order of memory."""
        return tuple(box.spans[axis] for axis in self.axes)

    def contiguous(self, box: Box, whole: Box, batch: int) -> bool:
        """Whether the box is one piece of memory in a tensor of the ``whole``."""
        lengths = (batch, *(len(span) for span in self.spans(box)))
        wholes = [True, *(len(b) == len(f) for b, f in zip(self.spans(box), self.spans(whole), strict=True))]
        cut = max((axis for axis, whole in enumerate(wholes) if not whole), default=0)
        return all(length == 1 for length in lengths[:cut])

    def offset(self, box: Box, whole: Box) -> int:
        """The number of the box's first element in a tensor of the ``whole``, for one picture."""
        number = 0
        for mine, axis in zip(self.spans(box), self.spans(whole), strict=True):
            number = number * len(axis) + mine.lo - axis.lo
        return number


class Parts:
    """The boxes of one tensor that are sent to, or received from, each peer, as memory that MPI takes.

    The memory is the tensor's own where every part is one contiguous piece of it and travels as it is, else a staging
    copy. Whatever can be made ready is made once: between two computations the caches are cold, and each call of torch
    or numpy then takes tens of us.

    Parameters
    ----------
    whole
        What the tensor holds.
    tensor
        The tensor (N, *whole) if it is always the same one; else it is given with every call.
    """

    def __init__(
        self,
        whole: Box,
        boxes: Sequence[Sequence[Box]],
        batch: int,
        memory: Memory,
        wire: Wire = FLOAT32,
        tensor: torch.Tensor | None = None,
        *,
        disjoint: bool = True,
    ) -> None:
        flat = [box for peer in boxes for box in peer]
        elements, distinct = sum(box.size for box in flat), union_size(flat)
        sizes = [[wire.size((batch, *box.shape)) for box in peer] for peer in boxes]
        self.counts = [sum(peer) for peer in sizes]
        self.total = sum(self.counts)
        self.distinct = self.total * distinct // elements if elements else 0
        single = all(len(peer) <= 1 for peer in boxes) and all(memory.contiguous(box, whole, batch) for box in flat)
        self.in_place = wire is FLOAT32 and single and (not disjoint or distinct == elements)
        self.encoded: list[tuple[int, Encoded, tuple[slice, ...] | None, torch.Tensor | None]] = []
        if self.in_place:
            self.offsets = [FLOAT32.item_bytes * memory.offset(peer[0], whole) if peer else 0 for peer in boxes]
            self.fixed = tensor
        else:
            self.offsets = [sum(self.counts[:i]) for i in range(len(self.counts))]
            self.fixed = torch.empty(self.total, dtype=torch.uint8)
            for owner, (peer, lengths, start) in enumerate(zip(boxes, sizes, self.offsets, strict=True)):
                for box, length in zip(peer, lengths, strict=True):
                    room = self.fixed[start : start + length]
                    encoded = Encoded.within(room, wire, (batch, *box.shape), memory.view)
                    where = (slice(None), *box.within(whole))
                    there = None if tensor is None else tensor[where]
                    self.encoded.append((owner, encoded, None if box == whole else where, there))
                    start += length  # noqa: PLW2901

    def pack(self, tensor: torch.Tensor | None = None) -> None:
        """Copy the parts from the tensor to where messages are sent from."""
        for _, encoded, where, there in self.encoded:
            if there is None:
                there = given(tensor) if where is None else given(tensor)[where]  # noqa: PLW2901
            encoded.write(there)

    def unpack(self, but: int | None = None) -> None:
        """Put what was received into the tensor, but not one peer's part."""
        for owner, encoded, _, there in self.encoded:
            if owner != but:
                encoded.read(given(there))

    def part(self, number: int, tensor: torch.Tensor | None = None) -> Message:
        """The message to or from peer ``number``; ``tensor`` where it is not always the same."""
        address = self._address(tensor) + self.offsets[number]
        count = self.counts[number]
        return [MPI.buffer.fromaddress(address, count), count // ITEM_BYTES, MPI.FLOAT]

    def all(self, tensor: torch.Tensor | None = None) -> Message:
        """The messages of all peers, as a collective takes them."""
        reach = max((o + c for o, c in zip(self.offsets, self.counts, strict=True)), default=0)
        buffer = MPI.buffer.fromaddress(self._address(tensor), reach)
        items = tuple([size // ITEM_BYTES for size in sizes] for sizes in (self.counts, self.offsets))
        return [buffer, items, MPI.FLOAT]

    def _address(self, tensor: torch.Tensor | None) -> int:
        return (given(tensor) if self.fixed is None else self.fixed).data_ptr()
