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
from mpiconv.job.waiting import Awaited, Flags, Gate
from mpiconv.job.watch import Place as Where
from mpiconv.partition import Box, Exchange, Plan
from mpiconv.partition.pieces import Pieces
from mpiconv.partition.receptive import unit_needs
from mpiconv.runtime.compute.windows import margin
from mpiconv.runtime.exchange.messages import Exchanger
from mpiconv.runtime.exchange.parts import Around, Frame, Memory
from mpiconv.runtime.exchange.shared import SharedExchanger, SharedMaps
from mpiconv.runtime.exchange.wire import Wire

Place = tuple[slice, ...] | None
"""Where an input lies in a map that the rank holds: None for all of it, an empty tuple for nothing."""

Compute = Callable[..., Any]
AnyExchanger = Exchanger | SharedExchanger


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
    afterwards, ``shared`` the exchangers of those that lie in shared memory; ``where`` its name, and whom it waits for.
    """

    exchanges: tuple[int, ...]
    pieces: tuple[Piece, ...]
    early: tuple[AnyExchanger, ...]
    room: tuple[Flags | Gate, ...]
    finished: tuple[int, ...]
    shared: tuple[SharedExchanger, ...]
    where: Where


class Slot:
    """The buffers, messages and steps of one frame; several frames under way have one each.

    ``team`` is the slot's own, so that the messages of frames cannot be taken for each other's; ``sharing`` says that
    ranks that see one memory exchange maps through it, ``ahead`` that the next frame may come in before this one's
    last unit.
    """

    def __init__(
        self,
        plan: Plan,
        team: Team,
        memory: Memory,
        wire: Wire,
        cuts: Sequence[Pieces],
        computes: Sequence[Sequence[Compute | None]],
        *,
        sharing: bool = False,
        ahead: bool = False,
    ) -> None:
        self.team, self.plan, self.memory = team, plan, memory
        parts: dict[int, list[Exchange]] = {}
        frames: dict[int, list[Frame]] = {}
        for source, spec in plan.exchanges.items():
            made = cuts[source] if source != PICTURE else (spec.owned,)
            parts[source] = [spec.part(owned) for owned in made] if len(made) > 1 else [spec]
            frames[source] = [
                Frame.of(spec, rank, around_of(plan, source, rank), partial=len(made) > 1) for rank in range(team.size)
            ]
        self.exchangers: dict[int, tuple[AnyExchanger, ...]] = {}
        near = {s: spec for s, spec in plan.exchanges.items() if sharing and set(spec.members) <= set(team.neighbours)}
        self.exchangers |= SharedMaps(near, parts, frames, plan.batch, team, memory).exchangers
        self.sharing = bool(self.exchangers)
        others = [source for source in plan.exchanges if source not in self.exchangers]  # groups form in this order
        for source in others:
            buffer: torch.Tensor | None = None
            found: list[Exchanger] = []
            for part in parts[source]:
                frame = frames[source][team.rank]
                found.append(Exchanger(part, plan.batch, team, memory, wire, frame, buffer))
                buffer = found[0].buffer
            self.exchangers[source] = tuple(found)
        self._turning = isinstance(self.exchangers.get(PICTURE, (None,))[0], SharedExchanger)
        self._unread: tuple[SharedExchanger, ...] = ()
        self._gate = Gate()
        self._buffers = {
            e.buffer.data_ptr() for found in self.exchangers.values() for e in found if e.buffer is not None
        }
        self.steps = [self._step(u, cuts, found) for u, found in enumerate(computes)]
        last = self.steps[-1]
        sent = isinstance(self.exchangers.get(PICTURE, (None,))[0], Exchanger)
        alone = not last.shared and not last.early and PICTURE not in plan.graph.units[-1].inputs
        self._ahead = ahead and sent and alone
        holds = PICTURE in self.exchangers and all(e.holds for e in self.exchangers[PICTURE])
        self._leaves = self._ahead and holds and MPI.Query_thread() == MPI.THREAD_MULTIPLE  # moves while it computes

    def close(self) -> None:
        """Give back messages."""
        for found in self.exchangers.values():
            for exchanger in found:
                exchanger.close()
        self.exchangers = {}

    def _step(self, index: int, cuts: Sequence[Pieces], computes: Sequence[Compute | None]) -> Step:
        plan, rank = self.plan, self.team.rank
        unit = plan.graph.units[index]
        boxes = [piece[rank] for piece in cuts[index]] if index < len(plan.boxes) else [plan.owned[index][rank]]
        pieces = tuple(Piece(self._inputs(unit, box), compute) for box, compute in zip(boxes, computes, strict=True))
        early = self.exchangers[index] if len(boxes) > 1 else ()
        incoming = plan.incoming(index)
        written = {i: self.exchangers[i] for i in incoming if len(self.exchangers[i]) == 1} | {index: early}
        into = [e for found in written.values() for e in found]
        room: list[Flags | Gate] = [e.room for e in into if isinstance(e, SharedExchanger) and e.room.places]
        if any(written.get(i) for i in plan.graph.units[-1].inputs):
            room.append(self._gate)
        finished = tuple(i for i in dict.fromkeys(unit.inputs) if plan.graph.consumers(i)[-1] == index)
        read = [e for i in finished for e in self.exchangers.get(i, ()) if isinstance(e, SharedExchanger)]
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
                rows, columns, _ = margin(unit, box)
                need = Box(need.channels, need.rows.wider(rows), need.columns.wider(columns))  # noqa: PLW2901
            whole = need == last.frame
            found.append((source, None if whole else (slice(None), *need.within(last.frame)) if need else ()))
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


def _apart(output: torch.Tensor | None, shared: Sequence[SharedExchanger]) -> torch.Tensor | None:
    """The tensor itself, or a copy of one that lies where the map that was read does, and others may soon write."""
    if output is None:
        return None
    address = output.data_ptr()
    return output.clone() if any(address in e.addresses for e in shared) else output


def around_of(plan: Plan, source: int, rank: int) -> Around | None:
    """The padding that a rank's buffer of a map has around it: its only reader's; None where several read the map."""
    readers = plan.graph.consumers(source)
    reader = plan.graph.units[readers[0]]
    if len(readers) > 1 or readers[0] == len(plan.boxes) or len(reader.inputs) > 1:
        return None
    box = plan.owned[readers[0]][rank]
    if not box:
        return None
    rows, columns, value = margin(reader, box)
    return (rows, columns, value) if any(rows) or any(columns) else None


def _part(tensor: torch.Tensor | None, where: Place) -> torch.Tensor | None:
    """The piece of a map that a unit reads."""
    if where is None or tensor is None:
        return tensor
    return tensor[where] if where else None
