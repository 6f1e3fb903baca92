"""What one rank does for a frame (a batch on its way through the network), prepared once: steps, pieces, buffers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from enum import Enum
from time import perf_counter
from typing import Any

import torch
from mpi4py import MPI

from mpiconv.graph.form import PICTURE, Unit
from mpiconv.job.team import Team
from mpiconv.job.waiting import Awaitable, Awaited, Gate
from mpiconv.job.watch import Place as Where
from mpiconv.partition import Box
from mpiconv.partition.padding import margin
from mpiconv.partition.receptive import unit_needs
from mpiconv.partition.schedule import Schedule
from mpiconv.runtime.compute import onednn
from mpiconv.runtime.exchange.base import MEDIA, Exchanger
from mpiconv.runtime.exchange.parts import Memory
from mpiconv.runtime.exchange.point_to_point import ByMessages

Place = tuple[slice, ...] | None
"""Where an input lies in a map that the rank holds: None for all of it, an empty tuple for nothing."""

Compute = Callable[..., Any]

Seen = tuple[int, tuple[torch.Tensor, ...], torch.Tensor]
"""The number of a piece of a unit, what it got, and what it made."""


@dataclass(frozen=True)
class Piece:
    """A part of a unit's box on this rank: where its inputs lie and what computes it; None for nothing to compute."""

    inputs: tuple[tuple[int, Place], ...]
    compute: Compute | None


@dataclass(frozen=True)
class Step:
    """One unit on this rank.

    ``exchanges`` are the maps that are exchanged before it with this rank's part; ``pieces`` what is computed, in
    order; ``early`` the exchange that each piece starts as soon as it is computed, empty where the map's first reader
    starts it; ``room`` what has to be free before these exchanges start; ``finished`` the maps that nobody reads
    afterwards, ``shared`` the exchangers of those that were lent; ``where`` its name, and whom it waits for.
    """

    exchanges: tuple[int, ...]
    pieces: tuple[Piece, ...]
    early: tuple[Exchanger, ...]
    room: tuple[Awaitable, ...]
    finished: tuple[int, ...]
    shared: tuple[Exchanger, ...]
    where: Where


class Entry(Enum):
    """When the next frame may come into a slot that a frame is in."""

    AFTER = "once the frame is through"
    BEFORE_LAST = "before the frame's last unit, the picture having been sent"
    EARLY = "before the frame's last unit; the picture is still being sent while the root computes"


class Slot:
    """The buffers, messages and steps of one frame; several frames under way have one each.

    Attributes
    ----------
    team
        The slot's own, so that the messages of frames cannot be taken for each other's.
    exchangers
        What moves each map, by the number of the unit that makes it; its parts in order.
    steps
        What this rank does, unit by unit.
    entry
        When the next frame may come in.
    gate
        Shut while the last unit of the frame before has yet to read what the next one would write over.
    unread
        The exchangers of maps in which the output of the frame before may lie, until the next frame comes.
    takes_any_order
        Whether a picture may lie in memory in any order.
    only_passes_on
        Whether this rank computes nothing: others wait for what it passes on, which takes no time of its own.
    """

    def __init__(
        self,
        schedule: Schedule,
        team: Team,
        memory: Memory,
        computes: Sequence[Sequence[Compute | None]],
        *,
        ahead: bool = False,
        yields: bool = False,
    ) -> None:
        """``ahead``: the next frame may come in before this one's last unit, where that can be.

        ``yields``: after each unit that it computes, other frames may go on first.
        """
        plan = schedule.plan
        self.team, self.schedule, self.plan, self.memory = team, schedule, plan, memory
        self.exchangers: dict[int, tuple[Exchanger, ...]] = {}
        for name, carrier in reversed(MEDIA.items()):  # messages last: they carry what is left
            moves = {
                source: move
                for source, move in schedule.moves.items()
                if source not in self.exchangers and name in (move.medium, ByMessages.name)
            }
            self.exchangers |= carrier.exchangers(moves, plan.batch, team, memory) if moves else {}
        self.gate, self.unread = Gate(), tuple[Exchanger, ...]()
        self.sharing = any(found[0].lends for found in self.exchangers.values())
        self.takes_any_order = any(e.any_order for e in self.exchangers.get(PICTURE, ()))
        self.buffers = {
            e.buffer.data_ptr() for found in self.exchangers.values() for e in found if e.buffer is not None
        }
        self.steps = [self._step(u, found) for u, found in enumerate(computes)]
        self.entry = self._entry() if ahead else Entry.AFTER
        self.yields, last = yields, len(self.steps) - 1
        computed = any(piece.compute for step in self.steps[:last] for piece in step.pieces)
        self.only_passes_on = not computed and not plan.flops(last, team.rank)

    def _entry(self) -> Entry:
        picture, last = self.exchangers.get(PICTURE, ()), self.steps[-1]
        alone = not last.shared and not last.early and PICTURE not in self.plan.graph.units[-1].inputs
        if not alone or not any(e.messages for e in picture):
            return Entry.AFTER
        moves_meanwhile = all(e.holds for e in picture) and MPI.Query_thread() == MPI.THREAD_MULTIPLE
        return Entry.EARLY if moves_meanwhile else Entry.BEFORE_LAST

    def close(self) -> None:
        """Give back messages."""
        for found in self.exchangers.values():
            for exchanger in found:
                exchanger.close()
        self.exchangers = {}

    def _step(self, index: int, computes: Sequence[Compute | None]) -> Step:
        plan, rank = self.plan, self.team.rank
        unit = plan.graph.units[index]
        boxes = (
            [piece[rank] for piece in self.schedule.pieces[index]]
            if index < len(plan.boxes)
            else [plan.owned[index][rank]]
        )
        pieces = tuple(Piece(self._inputs(unit, box), compute) for box, compute in zip(boxes, computes, strict=True))
        early = self.exchangers[index] if len(boxes) > 1 else ()
        incoming = plan.incoming(index)
        written = {i: self.exchangers[i] for i in incoming if len(self.exchangers[i]) == 1} | {index: early}
        into = [e for found in written.values() for e in found]
        room: list[Awaitable] = [e.room for e in into if e.room is not None and e.room.places]
        if any(written.get(i) for i in plan.graph.units[-1].inputs):
            room.append(self.gate)
        finished = tuple(i for i in dict.fromkeys(unit.inputs) if plan.graph.consumers(i)[-1] == index)
        read = [e for i in finished for e in self.exchangers.get(i, ()) if e.lends]
        exchanges = tuple(i for i in incoming if not all(e.idle for e in self.exchangers[i]))
        moved = [t for i in incoming for t in plan.exchanges[i].transfers]
        peers = {t.source for t in moved if t.target == rank} | {t.target for t in moved if t.source == rank}
        where = Where(f"unit {unit.name}", tuple(sorted(peers - {rank})))
        return Step(exchanges, pieces, early, tuple(room), finished, tuple(read), where)

    def _inputs(self, unit: Unit, box: Box) -> tuple[tuple[int, Place], ...]:
        found: list[tuple[int, Place]] = []
        for source, need in zip(unit.inputs, unit_needs(unit, box), strict=True):
            last = self.exchangers[source][-1]
            if need and last.padded:
                rows, columns, _ = margin(unit, box, slow_at_edges=onednn.slow_at_edges())
                need = Box(need.channels, need.rows.wider(rows), need.columns.wider(columns))  # noqa: PLW2901
            whole = need == last.held
            found.append((source, None if whole else (slice(None), *need.within(last.held)) if need else ()))
        return tuple(found)

    def run(self, images: torch.Tensor | None) -> Generator[Awaited, None, tuple[Any, list[float]]]:
        """One frame, as ``Passage`` does it."""
        return Passage(self, images).run()


class Passage:
    """One frame on its way through a slot.

    ``maps`` are those that are read later, ``pending`` what has to be awaited of the exchanges that are under way;
    ``seen`` copies of what the unit ``watched`` got and made here.
    """

    def __init__(self, slot: Slot, images: torch.Tensor | None, watched: int = -1) -> None:
        self._slot, self._watched, self.seen = slot, watched, list[Seen]()
        self.maps: dict[int, torch.Tensor | None] = {PICTURE: images}
        self.pending: dict[int, Awaited] = {}

    def run(self) -> Generator[Awaited, None, tuple[Any, list[float]]]:
        """Do it: yields what it has to wait for whenever it has to; returns output and stamps.

        Where the slot's ``entry`` says so it also yields before its last unit: the next frame may come in then, and go
        on up to where it would write over what this unit reads.
        The output is the head's on the root, None elsewhere. Stamped are the start of the frame and, of every unit, the
        ends of its exchange and of its computing, which is where the next one starts.
        """
        slot, maps = self._slot, self.maps
        output: Any = None
        stamps = [perf_counter()]
        for read in slot.unread:
            read.release()
        images = maps[PICTURE]
        if images is not None and not slot.takes_any_order:  # faster than oneDNN would inside the first convolution
            maps[PICTURE] = images.contiguous(memory_format=slot.memory.format)
        for index, step in enumerate(slot.steps):
            if step.exchanges or step.room:
                yield from self._exchanged(step)
            if index == len(slot.steps) - 1 and slot.entry is not Entry.AFTER:
                yield from self._before_last()
            stamps.append(perf_counter())
            if step.early:
                self.pending[index] = Awaited()
            for number, piece in enumerate(step.pieces):
                output = self._computed(index, number, piece)
                if step.early:
                    self.pending[index] += step.early[number].start(output)
            maps[index] = output
            for source in step.finished:
                del maps[source]
            if step.shared and index < len(slot.steps) - 1:
                maps[index] = _apart(output, step.shared)
                for read in step.shared:
                    read.release()
            stamps.append(perf_counter())
            if slot.yields and index < len(slot.steps) - 1 and any(piece.compute for piece in step.pieces):
                yield Awaited(place=step.where)
        slot.gate.open = True
        slot.unread = slot.steps[-1].shared  # the output may still lie there
        return output, stamps

    def _computed(self, index: int, number: int, piece: Piece) -> Any:
        """What this rank makes of a piece of a unit; None for nothing."""
        inputs = [_part(self.maps[source], where) for source, where in piece.inputs]
        if piece.compute is None:
            return None
        output = piece.compute(*inputs)
        if index == self._watched:
            copies = tuple(each.clone(memory_format=torch.contiguous_format) for each in (*inputs, output))
            self.seen.append((number, copies[:-1], copies[-1]))
        return output

    def _exchanged(self, step: Step) -> Generator[Awaited, None, None]:
        """Start the exchanges before a step, unless they are under way, and wait for those that bring something."""
        slot = self._slot
        taken = [flags for flags in step.room if not flags.reached()]
        if taken:
            yield Awaited([], taken, place=step.where)
        awaited = Awaited(place=step.where)
        for source in step.exchanges:
            started = source in self.pending
            found = self.pending.pop(source) if started else slot.exchangers[source][0].start(self.maps[source])
            if source == PICTURE and slot.entry is Entry.EARLY:
                self.pending[source] = found
            else:
                awaited += found
        if awaited and not awaited.done():
            yield awaited
        for source in step.exchanges:
            for exchanger in slot.exchangers[source]:
                self.maps[source] = exchanger.finish()

    def _before_last(self) -> Generator[Awaited, None, None]:
        """The picture has been sent, from here on only buffers behind the gate are read: the next frame may come in.

        A map that is a view of another one, in the buffer of that one's exchange, is copied.
        """
        slot, maps = self._slot, self.maps
        for source in slot.plan.graph.units[-1].inputs:
            tensor, found = maps[source], slot.exchangers.get(source, ())
            guarded = {e.buffer.data_ptr() for e in found if e.buffer is not None}
            if tensor is not None and tensor.untyped_storage().data_ptr() in slot.buffers - guarded:
                maps[source] = tensor.clone()
        sent = self.pending.pop(PICTURE, Awaited())
        sent.place = slot.steps[-1].where
        if not sent.done():
            yield sent
        slot.gate.open = False
        yield Awaited(last=True)


def _apart(output: torch.Tensor | None, shared: Sequence[Exchanger]) -> torch.Tensor | None:
    """The tensor, copied if it lies in the shared buffer that was read and that others may soon overwrite."""
    if output is None:
        return None
    address = output.data_ptr()
    return output.clone() if any(address in e.addresses for e in shared) else output


def _part(tensor: torch.Tensor | None, where: Place) -> torch.Tensor | None:
    """The piece of a map that a unit reads."""
    if where is None or tensor is None:
        return tensor
    return tensor[where] if where else None
