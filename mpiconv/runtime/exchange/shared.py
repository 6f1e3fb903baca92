"""Maps in memory that the ranks of one host share: they change hands by a copy and a flag, without a message.

A message between two ranks of a host is a copy into a buffer, one or two by MPI, and one out of a buffer, each into
cold caches. Here every rank writes what it made right where the others read it.
"""

from __future__ import annotations

import mmap
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from mpi4py import MPI

from mpiconv.job.control import allgather_json, bcast_json
from mpiconv.job.waiting import Awaited, Flags, meet, wait
from mpiconv.job.watch import Place, Watch
from mpiconv.partition import Box, Exchange
from mpiconv.partition.box import union_size
from mpiconv.partition.plan import FLOAT_BYTES
from mpiconv.runtime.exchange.parts import Counter, Frame, Memory

LINE_BYTES = 64
MARK_BYTES = 16
FINDING = "finding the ranks of each host"


class Host:
    """The ranks that see this rank's memory: those of its host, or itself alone where they cannot share. Collective.

    Attributes
    ----------
    ranks
        Their numbers in the communicator of the job, in order.
    """

    def __init__(self, comm: MPI.Intracomm, *, wanted: bool) -> None:
        meet(comm, FINDING)
        near = MPI.Intracomm(comm.Split_type(MPI.COMM_TYPE_SHARED))
        leader = bcast_json(near, comm.rank)
        near.Free()
        wanted = wanted and comm.size > 1 and in_order()
        found = allgather_json(comm, [leader, MPI.Get_processor_name()] if wanted else [comm.rank])
        self._of = [found.index(one) for one in found]
        self.ranks = tuple(rank for rank, first in enumerate(self._of) if first == self._of[comm.rank])
        meet(comm, FINDING)
        self.comm = MPI.Intracomm(comm.Split(self._of[comm.rank], comm.rank))
        Watch.of(comm).attach(self.comm)

    def near(self, ranks: Sequence[int]) -> bool:
        """Whether all of these ranks see one memory, this one's or another's."""
        return len({self._of[rank] for rank in ranks}) == 1

    def share(self, size: int) -> memoryview | None:
        """``size`` B of zeros that all these ranks see, for as long as one of them does. Collective over them.

        It has no name that would be left behind by a rank that is killed: the others open it through the first one's
        process, and look whether it is what was meant. None on all where it cannot be had: not Linux, too little
        memory, or ranks that do not see each other's processes.
        """
        handle, path, mark = -1, "", b""
        if self.comm.rank == 0:
            try:
                handle = os.memfd_create("mpiconv")
                os.posix_fallocate(handle, 0, size)
                path, mark = f"/proc/{os.getpid()}/fd/{handle}", os.urandom(MARK_BYTES)
                os.pwrite(handle, mark, 0)
            except (OSError, AttributeError):
                handle = _closed(handle)
        path, text = bcast_json(self.comm, [path if handle >= 0 else "", mark.hex()])
        memory: mmap.mmap | None = None
        try:
            if path and self.comm.rank:
                handle = os.open(path, os.O_RDWR)
            if handle >= 0 and os.pread(handle, MARK_BYTES, 0).hex() == text:
                memory = mmap.mmap(handle, size)
        except OSError:
            pass
        everywhere = all(allgather_json(self.comm, memory is not None))
        if everywhere and self.comm.rank == 0:
            os.pwrite(handle, bytes(MARK_BYTES), 0)
        _closed(handle)
        return memoryview(memory) if memory is not None and everywhere else None


def in_order() -> bool:
    """Whether this processor shows others its writes in their order, so that a flag is not seen before the map.

    Others need an instruction for it that Python does not have: there ranks of one host send messages.
    """
    return platform.machine().lower() in ("x86_64", "amd64", "i686")


def _closed(handle: int) -> int:
    if handle >= 0:
        os.close(handle)
    return -1


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
        rank: int,
        host: Host,
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
        wait(host.comm, [host.comm.Ibarrier()], Place("making shared memory ready"))


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
