"""What one rank does for a frame (a batch on its way through the network), prepared once: steps, pieces, buffers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from mpiconv.nets.graph import PICTURE, Unit
from mpiconv.partition import Box, Plan
from mpiconv.partition.pieces import Pieces
from mpiconv.partition.receptive import unit_needs
from mpiconv.runtime.compute import margin
from mpiconv.runtime.exchange import Exchanger, Groups, Memory
from mpiconv.runtime.wire import Wire

if TYPE_CHECKING:
    from mpi4py import MPI

Place = tuple[slice, ...] | None
"""Where an input lies in a map that the rank holds: None for all of it, an empty tuple for nothing."""

Compute = Callable[..., Any]
Around = tuple[tuple[int, int], tuple[int, int], float]


@dataclass(frozen=True)
class Piece:
    """A part of a unit's box on this rank: where its inputs lie and what computes it; None for nothing to compute."""

    inputs: tuple[tuple[int, Place], ...]
    compute: Compute | None


@dataclass(frozen=True)
class Step:
    """One unit on this rank.

    ``exchanges`` are the maps that are exchanged before it; ``pieces`` what is computed, in order; ``early`` the
    exchange that each piece starts as soon as it is computed, empty where the map's first reader starts it;
    ``finished`` the maps that nobody reads afterwards.
    """

    exchanges: tuple[int, ...]
    pieces: tuple[Piece, ...]
    early: tuple[Exchanger, ...]
    finished: tuple[int, ...]


class Slot:
    """The buffers, messages and steps of one frame; several frames under way have one each.

    ``comm`` is the slot's own, so that the messages of frames cannot be taken for each other's.
    """

    def __init__(
        self,
        plan: Plan,
        comm: MPI.Intracomm,
        memory: Memory,
        wire: Wire,
        cuts: Sequence[Pieces],
        computes: Sequence[Sequence[Compute | None]],
    ) -> None:
        self.comm, self.plan, self.memory = comm, plan, memory
        groups: Groups = {}
        rank = comm.rank
        self.exchangers: dict[int, tuple[Exchanger, ...]] = {}
        for source, spec in plan.exchanges.items():
            parts = cuts[source] if source != PICTURE else (spec.owned,)
            around = around_of(plan, source, rank)
            if len(parts) == 1:
                self.exchangers[source] = (Exchanger(spec, plan.batch, comm, groups, memory, wire, around),)
                continue
            made: list[Exchanger] = []
            for owned in parts:
                buffer = made[0].buffer if made else None
                part = Exchanger(spec.part(owned), plan.batch, comm, groups, memory, wire, around, buffer, shared=True)
                made.append(part)
            self.exchangers[source] = tuple(made)
        self.steps = [self._step(u, cuts, found) for u, found in enumerate(computes)]

    def _step(self, index: int, cuts: Sequence[Pieces], computes: Sequence[Compute | None]) -> Step:
        plan, rank = self.plan, self.comm.rank
        unit = plan.graph.units[index]
        boxes = [piece[rank] for piece in cuts[index]] if index < len(plan.boxes) else [plan.owned[index][rank]]
        pieces = tuple(Piece(self._inputs(unit, box), compute) for box, compute in zip(boxes, computes, strict=True))
        early = self.exchangers[index] if len(boxes) > 1 else ()
        finished = tuple(i for i in dict.fromkeys(unit.inputs) if plan.graph.consumers(i)[-1] == index)
        return Step(tuple(plan.incoming(index)), pieces, early, finished)

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

    def run(self, images: torch.Tensor | None) -> Generator[list[MPI.Request], None, tuple[Any, list[float]]]:
        """One frame: yields requests whenever it has to wait for them; returns output and stamps.

        The output is the head's on the root, None elsewhere. Stamped are the start of the frame and, of every unit, the
        ends of its exchange and of its computing, which is where the next one starts.
        """
        pending: dict[int, list[MPI.Request]] = {}
        output: Any = None
        stamps = [perf_counter()]
        if images is not None:  # torch turns them faster than oneDNN would inside the first convolution
            images = images.contiguous(memory_format=self.memory.format)
        maps: dict[int, torch.Tensor | None] = {PICTURE: images}
        for index, step in enumerate(self.steps):
            for source in step.exchanges:
                if source not in pending:
                    pending[source] = self.exchangers[source][0].start(maps[source])
            requests = [request for source in step.exchanges for request in pending.pop(source)]
            if requests:
                yield requests
            for source in step.exchanges:
                for exchanger in self.exchangers[source]:
                    maps[source] = exchanger.finish()
            stamps.append(perf_counter())
            if step.early:
                pending[index] = []
            for number, piece in enumerate(step.pieces):
                inputs = [_part(maps[source], where) for source, where in piece.inputs]
                output = None if piece.compute is None else piece.compute(*inputs)
                if step.early:
                    pending[index] += step.early[number].start(output)
            maps[index] = output
            for source in step.finished:
                del maps[source]
            stamps.append(perf_counter())
        return output, stamps


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
