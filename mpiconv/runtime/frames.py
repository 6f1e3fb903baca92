"""What one rank does for a frame (a batch on its way through the network), prepared once: steps, pieces, buffers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
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
from mpiconv.runtime.exchange.wire import Wire

Place = tuple[slice, ...] | None
"""Where an input lies in a map that the rank holds: None for all of it, an empty tuple for nothing."""

Compute = Callable[..., Any]


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


class Slot:
    """The buffers, messages and steps of one frame; several frames under way have one each.

    ``team`` is the slot's own, so that the messages of frames cannot be taken for each other's; ``ahead`` says that the
    next frame may come in before this one's last unit.
    """

    def __init__(
        self,
        schedule: Schedule,
        team: Team,
        memory: Memory,
        wire: Wire,
        computes: Sequence[Sequence[Compute | None]],
        *,
        ahead: bool = False,
    ) -> None:
        plan = schedule.plan
        self.team, self.schedule, self.plan, self.memory = team, schedule, plan, memory
        self.exchangers: dict[int, tuple[Exchanger, ...]] = {}
        for name, carrier in reversed(MEDIA.items()):  # messages last: they carry what is left
            moves = {
                source: move
                for source, move in schedule.moves.items()
                if source not in self.exchangers and name in (move.medium, ByMessages.name)
            }
            self.exchangers |= carrier.exchangers(moves, plan.batch, team, memory, wire) if moves else {}
        picture = self.exchangers.get(PICTURE, ())
        self.sharing = any(found[0].lends for found in self.exchangers.values())
        self._turning = any(e.any_order for e in picture)
        self._unread: tuple[Exchanger, ...] = ()
        self._gate = Gate()
        self._buffers = {
            e.buffer.data_ptr() for found in self.exchangers.values() for e in found if e.buffer is not None
        }
        self.steps = [self._step(u, found) for u, found in enumerate(computes)]
        last = self.steps[-1]
        sent = any(e.messages for e in picture)
        alone = not last.shared and not last.early and PICTURE not in plan.graph.units[-1].inputs
        self._ahead = ahead and sent and alone
        holds = bool(picture) and all(e.holds for e in picture)
        self._leaves = self._ahead and holds and MPI.Query_thread() == MPI.THREAD_MULTIPLE  # moves while it computes

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
            room.append(self._gate)
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
        """One frame: yields what it has to wait for whenever it has to; returns output and stamps.

        With ``ahead`` it also yields before its last unit: the next frame may come in then, and go on up to where it
        would write over what this unit reads. What the root sends of the picture travels while it computes.
        The output is the head's on the root, None elsewhere. Stamped are the start of the frame and, of every unit, the
        ends of its exchange and of its computing, which is where the next one starts.
        """
        pending: dict[int, Awaited] = {}
        output: Any = None
        stamps = [perf_counter()]
        for read in self._unread:
            read.release()
        if images is not None and not self._turning:  # faster than oneDNN would inside the first convolution
            images = images.contiguous(memory_format=self.memory.format)
        maps: dict[int, torch.Tensor | None] = {PICTURE: images}
        for index, step in enumerate(self.steps):
            if step.exchanges or step.room:
                yield from self._exchanged(step, maps, pending)
            stamps.append(perf_counter())
            if self._ahead and index == len(self.steps) - 1:
                yield from self._before_last(maps, pending)
            if step.early:
                pending[index] = Awaited()
            for number, piece in enumerate(step.pieces):
                inputs = [_part(maps[source], where) for source, where in piece.inputs]
                output = None if piece.compute is None else piece.compute(*inputs)
                if step.early:
                    pending[index] += step.early[number].start(output)
            maps[index] = output
            for source in step.finished:
                del maps[source]
            if step.shared and index < len(self.steps) - 1:
                maps[index] = _apart(output, step.shared)
                for read in step.shared:
                    read.release()
            stamps.append(perf_counter())
        self._gate.open = True
        self._unread = self.steps[-1].shared  # the output may still lie there
        return output, stamps

    def _exchanged(
        self, step: Step, maps: dict[int, torch.Tensor | None], pending: dict[int, Awaited]
    ) -> Generator[Awaited, None, None]:
        """The exchanges before a step: started if not under way yet, and awaited as far as something comes in."""
        taken = [flags for flags in step.room if not flags.reached()]
        if taken:
            yield Awaited([], taken, place=step.where)
        awaited = Awaited(place=step.where)
        for source in step.exchanges:
            found = pending.pop(source) if source in pending else self.exchangers[source][0].start(maps[source])
            if source == PICTURE and self._leaves:
                pending[source] = found
            else:
                awaited += found
        if awaited and not awaited.done():
            yield awaited
        for source in step.exchanges:
            for exchanger in self.exchangers[source]:
                maps[source] = exchanger.finish()

    def _before_last(
        self, maps: dict[int, torch.Tensor | None], pending: dict[int, Awaited]
    ) -> Generator[Awaited, None, None]:
        """The picture has been sent, nothing but what the gate guards is read from now on: the next frame may come in.

        A map that is a view of another one, in the buffer of that one's exchange, is copied.
        """
        for source in self.plan.graph.units[-1].inputs:
            tensor, found = maps[source], self.exchangers.get(source, ())
            guarded = {e.buffer.data_ptr() for e in found if e.buffer is not None}
            if tensor is not None and tensor.untyped_storage().data_ptr() in self._buffers - guarded:
                maps[source] = tensor.clone()
        sent = pending.pop(PICTURE, Awaited())
        sent.place = self.steps[-1].where
        if not sent.done():
            yield sent
        self._gate.open = False
        yield Awaited(last=True)


def _apart(output: torch.Tensor | None, shared: Sequence[Exchanger]) -> torch.Tensor | None:
    """The tensor itself, or a copy of one that lies where the map that was read does, and others may soon write."""
    if output is None:
        return None
    address = output.data_ptr()
    return output.clone() if any(address in e.addresses for e in shared) else output


def _part(tensor: torch.Tensor | None, where: Place) -> torch.Tensor | None:
    """The piece of a map that a unit reads."""
    if where is None or tensor is None:
        return tensor
    return tensor[where] if where else None
