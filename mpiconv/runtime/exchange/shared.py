"""Exchanges through memory that the ranks of one host share: a copy and a flag instead of a message.

A message between two ranks of a host is a copy into a buffer, one or two by MPI, and one out of a buffer, each into
cold caches. Here every rank writes what it made right where the others read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mpiconv.job.shared_memory import share
from mpiconv.job.team import Team
from mpiconv.job.waiting import Awaited, Flags, meet
from mpiconv.partition import Box, Exchange
from mpiconv.partition.box import union_size
from mpiconv.partition.plan import FLOAT_BYTES
from mpiconv.partition.schedule import Held, Move
from mpiconv.runtime.exchange.base import Exchanger, Medium, medium
from mpiconv.runtime.exchange.parts import Memory

if TYPE_CHECKING:
    from mpiconv.runtime.settings import Settings

LINE_BYTES = 64


@dataclass(frozen=True)
class _Place:
    """One place of a map in the shared memory: what is held there, who reads it there, and where it starts, in B."""

    held: Held
    readers: tuple[int, ...]
    start: int


@medium
class Shared(Medium):
    """Memory that ranks of one host share. All of them work out alike where everything lies.

    Ranks that need the same box of a map read it at one place.
    """

    name = "shared"
    hides = False

    def suits(self, exchange: Exchange, team: Team, settings: Settings) -> bool:
        """Whether all members see one memory."""
        return settings.same_host == "auto" and team.together(exchange.members)

    def exchangers(
        self, moves: Mapping[int, Move], batch: int, team: Team, memory: Memory
    ) -> dict[int, tuple[Exchanger, ...]]:
        """For the maps whose members are all on this host; none if memory cannot be shared. Collective there."""
        here = {source: move for source, move in moves.items() if set(move.exchange.members) <= set(team.neighbours)}
        places: dict[int, list[_Place]] = {}
        flags: dict[int, int] = {}
        size = 0
        for source, move in here.items():
            flags[source] = size
            size += 2 * LINE_BYTES * len(move.parts) * team.size
            places[source] = []
            for held, readers in _sharing(move).items():
                places[source].append(_Place(held, readers, size))
                size += -(-FLOAT_BYTES * batch * held.box.size // LINE_BYTES) * LINE_BYTES
        if not size:
            return {}
        rank, host = team.rank, team.part(team.neighbours)
        shared = share(host, size)
        found: dict[int, tuple[Exchanger, ...]] = {}
        if shared is None:
            return found
        for source, move in here.items():
            if rank not in move.exchange.members:
                continue
            views = {}
            for place in places[source]:
                elements = batch * place.held.box.size
                flat = torch.frombuffer(shared, dtype=torch.float32, count=elements, offset=place.start)
                views[place] = memory.view(flat, (batch, *place.held.box.shape))
                if place.held.padded and place.readers[0] == rank:
                    views[place].fill_(place.held.padding)
            made = []
            for number, part in enumerate(move.parts):
                begin = flags[source] + 2 * LINE_BYTES * team.size * number
                mine = shared[begin : begin + 2 * LINE_BYTES * team.size].cast("q")
                pattern = move.exchange.pattern
                made.append(SharedExchanger(part, batch, rank, move.held, views, mine, memory, pattern))
            found[source] = tuple(made)
        meet(host, "making shared memory ready")
        return found


def _sharing(move: Move) -> dict[Held, tuple[int, ...]]:
    """The different places of a map that have to be in shared memory, and the ranks that read each."""
    found: dict[Held, tuple[int, ...]] = {}
    for rank in move.exchange.members:
        held = move.held[rank]
        if not held.holds:
            found[held] = (*found.get(held, ()), rank)
    return found


class SharedExchanger(Exchanger):
    """One map's exchange on this rank, or a part of it, through shared memory.

    Of each rank there are two numbers, its own to write: how many frames it has ``filled``, and ``freed`` by having
    read them. A place is written once all its readers have freed the frame before; it can be read once all its writers
    have filled it.
    """

    lends = any_order = True
    room: Flags

    def __init__(
        self,
        exchange: Exchange,
        batch: int,
        rank: int,
        held: Sequence[Held],
        views: Mapping[_Place, torch.Tensor],
        flags: memoryview,
        memory: Memory,
        pattern: str,
    ) -> None:
        super().__init__(held[rank], pattern)
        self._format = memory.format
        self._flags, self._frames = flags, 0
        line = LINE_BYTES // flags.itemsize
        self._filled, self._freed = line * rank, line * (len(held) + rank)
        self._writes: list[tuple[torch.Tensor, tuple[slice, ...] | None]] = []
        own = exchange.owned[rank]
        writers: set[int] = set()
        readers: set[int] = set()
        for place, view in views.items():
            if rank in place.readers:
                self.buffer = view
                writers = {r for r in range(len(held)) if any(_written(exchange, r, place.readers))} - {rank}
            for box in _written(exchange, rank, place.readers):
                where = (slice(None), *box.within(place.held.box))
                self._writes.append((view[where], None if box == own else (slice(None), *box.within(own))))
                readers |= set(place.readers) - {rank}
                if self.holds and box == own == place.held.box and self._alone(exchange, place):
                    self.buffer = view  # all of what it holds lies there, in the right order of memory
        if self.buffer is not None:
            start = self.buffer.data_ptr()
            self.addresses = range(start, start + FLOAT_BYTES * self.buffer.numel())
        self.ready = Flags(flags, tuple(line * r for r in sorted(writers)))
        self.room = Flags(flags, tuple(line * (len(held) + r) for r in sorted(readers)))
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
        """A tensor (N, *held), None for an empty box; only after what ``start`` returned is there."""
        tensor, self._sending = self._sending, None
        if self.buffer is not None or tensor is None:
            return self.buffer
        return tensor.contiguous(memory_format=self._format)

    @staticmethod
    def _alone(exchange: Exchange, place: _Place) -> bool:
        """Whether only one rank writes there."""
        return sum(any(_written(exchange, rank, place.readers)) for rank in range(len(exchange.owned))) == 1

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
