"""Maps in memory that the ranks of one host share: they change hands by a copy and a flag, without a message.

A message between two ranks of a host is a copy into a buffer, one or two by MPI, and one out of a buffer, each into
cold caches. Here every rank writes what it made right where the others read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from mpiconv.job.team import Team
from mpiconv.job.waiting import Awaited, Flags, meet
from mpiconv.partition import Box, Exchange
from mpiconv.partition.box import union_size
from mpiconv.partition.plan import FLOAT_BYTES
from mpiconv.runtime.exchange.parts import Counter, Frame, Memory

LINE_BYTES = 64


@dataclass(frozen=True)
class _Region:
    """One place of a map in the shared memory: its frame, who reads it there, and where it starts, in B."""

    frame: Frame
    readers: tuple[int, ...]
    start: int


class SharedMaps:
    """The maps of one slot whose exchange is among ranks of this host, and their exchangers. Collective over the host.

    All its ranks work out alike where everything lies. Ranks that need the same box of a map read it at one place.

    Parameters
    ----------
    exchanges
        Of every such map its exchange.
    parts
        Of every map the parts in which its exchange is done, one after the other.
    frames
        Of every map what each rank holds of it afterwards.

    Attributes
    ----------
    exchangers
        This rank's, by map: one per part. Empty where no memory could be shared, and for a rank that takes no part.
    """

    def __init__(
        self,
        exchanges: Mapping[int, Exchange],
        parts: Mapping[int, Sequence[Exchange]],
        frames: Mapping[int, Sequence[Frame]],
        batch: int,
        team: Team,
        memory: Memory,
    ) -> None:
        self.exchangers: dict[int, tuple[SharedExchanger, ...]] = {}
        places: dict[int, list[_Region]] = {}
        flags: dict[int, int] = {}
        size = 0
        for source, whole in exchanges.items():
            flags[source] = size
            size += 2 * LINE_BYTES * len(parts[source]) * len(frames[source])
            places[source] = []
            for frame, readers in _sharing(whole, frames[source]).items():
                places[source].append(_Region(frame, readers, size))
                size += -(-FLOAT_BYTES * batch * frame.box.size // LINE_BYTES) * LINE_BYTES
        rank, host = team.rank, team.part(team.neighbours) if size else team
        shared = host.share(size) if size else None
        if shared is None:
            return
        for source, whole in exchanges.items():
            if rank not in whole.members:
                continue
            views = {}
            for region in places[source]:
                elements = batch * region.frame.box.size
                flat = torch.frombuffer(shared, dtype=torch.float32, count=elements, offset=region.start)
                views[region] = memory.view(flat, (batch, *region.frame.box.shape))
                if region.frame.padded and region.readers[0] == rank:
                    views[region].fill_(region.frame.padding)
            made = []
            for number, part in enumerate(parts[source]):
                begin = flags[source] + 2 * LINE_BYTES * len(frames[source]) * number
                mine = shared[begin : begin + 2 * LINE_BYTES * len(frames[source])].cast("q")
                made.append(SharedExchanger(part, batch, rank, frames[source], views, mine, memory, whole.pattern))
            self.exchangers[source] = tuple(made)
        meet(host, "making shared memory ready")


def _sharing(exchange: Exchange, frames: Sequence[Frame]) -> dict[Frame, tuple[int, ...]]:
    """The different places of a map that have to be in shared memory, and the ranks that read each."""
    found: dict[Frame, tuple[int, ...]] = {}
    for rank in exchange.members:
        if not frames[rank].holds:
            found[frames[rank]] = (*found.get(frames[rank], ()), rank)
    return found


class SharedExchanger:
    """One map's exchange on this rank, or a part of it, as ``Exchanger`` but through shared memory.

    Of each rank there are two numbers, its own to write: how many frames it has ``filled``, and ``freed`` by having
    read them. A place is written once all its readers have freed the frame before; it can be read once all its writers
    have filled it.
    """

    idle = False

    def __init__(
        self,
        exchange: Exchange,
        batch: int,
        rank: int,
        frames: Sequence[Frame],
        views: Mapping[_Region, torch.Tensor],
        flags: memoryview,
        memory: Memory,
        pattern: str,
    ) -> None:
        self.counter, self.pattern, self.frame = Counter(), pattern, frames[rank].box
        self.holds, self.padded = frames[rank].holds, frames[rank].padded
        self.buffer: torch.Tensor | None = None
        self.addresses = range(0)
        self._format = memory.format
        self._flags, self._frames = flags, 0
        line = LINE_BYTES // flags.itemsize
        self._filled, self._freed = line * rank, line * (len(frames) + rank)
        self._writes: list[tuple[torch.Tensor, tuple[slice, ...] | None]] = []
        own = exchange.owned[rank]
        writers: set[int] = set()
        readers: set[int] = set()
        for region, view in views.items():
            if rank in region.readers:
                self.buffer = view
                writers = {r for r in range(len(frames)) if any(_written(exchange, r, region.readers))} - {rank}
            for box in _written(exchange, rank, region.readers):
                where = (slice(None), *box.within(region.frame.box))
                self._writes.append((view[where], None if box == own else (slice(None), *box.within(own))))
                readers |= set(region.readers) - {rank}
                if self.holds and box == own == region.frame.box and self._alone(exchange, region):
                    self.buffer = view  # all of what it holds lies there, in the right order of memory
        if self.buffer is not None:
            start = self.buffer.data_ptr()
            self.addresses = range(start, start + FLOAT_BYTES * self.buffer.numel())
        self.ready = Flags(flags, tuple(line * r for r in sorted(writers)))
        self.room = Flags(flags, tuple(line * (len(frames) + r) for r in sorted(readers)))
        sent = [t for t in exchange.transfers if t.source == rank]
        self._received = FLOAT_BYTES * batch * exchange.received(rank)
        self._sent = FLOAT_BYTES * batch * exchange.sent(rank)
        self._distinct = FLOAT_BYTES * batch * union_size(t.box for t in sent)
        self._targets = len({t.target for t in sent})
        self._sending: torch.Tensor | None = None

    def start(self, tensor: torch.Tensor | None) -> Awaited:
        """Write what this rank made, (N, *own box) in any order of memory, where it is read; once there is ``room``."""
        self._frames += 1
        for there, cut in self._writes:
            assert tensor is not None  # noqa: S101 - it has something to write
            there.copy_(tensor if cut is None else tensor[cut])
        self._flags[self._filled] = self._frames
        self.room.wanted = self.ready.wanted = self._frames
        self._sending = tensor
        counter = self.counter
        counter.bytes_sent += self._sent
        counter.bytes_received += self._received
        counter.multicast_bytes += self._distinct
        counter.messages_sent += self._targets
        return Awaited([], [self.ready])

    def finish(self) -> torch.Tensor | None:
        """A tensor (N, *frame), None for an empty box; only after what ``start`` returned is there."""
        tensor, self._sending = self._sending, None
        if self.buffer is not None or tensor is None:
            return self.buffer
        return tensor.contiguous(memory_format=self._format)

    def close(self) -> None:
        """Nothing is left to give back: the memory goes with the last tensor in it."""

    @staticmethod
    def _alone(exchange: Exchange, region: _Region) -> bool:
        """Whether only one rank writes there."""
        return sum(any(_written(exchange, rank, region.readers)) for rank in range(len(exchange.owned))) == 1

    def release(self) -> None:
        """Say that this rank has read the frame."""
        self._flags[self._freed] = self._frames


def _written(exchange: Exchange, rank: int, readers: Sequence[int]) -> Iterator[Box]:
    """The boxes that a rank writes at the place where ``readers`` read a map."""
    boxes = {t.box for t in exchange.transfers if t.source == rank and t.target in readers}
    if rank in readers:
        boxes.add(exchange.owned[rank] & exchange.needed[rank])
    for box in sorted(boxes, key=lambda box: box.spans):
        if box and not any(box in other for other in boxes - {box}):
            yield box
