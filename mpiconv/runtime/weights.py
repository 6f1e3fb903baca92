"""Every rank gets the kernels of its boxes, and no others: from rank 0 by the same exchange as maps, or from a file."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from mpiconv.errors import ModelError
from mpiconv.job.control import allgather_json, bcast_json, on_root
from mpiconv.job.watch import Place
from mpiconv.models.slices import WeightsFile, fingerprint, rows_of
from mpiconv.partition import Box, Span
from mpiconv.partition.exchange import Exchange, exchange
from mpiconv.partition.plan import FLOAT_BYTES, Plan
from mpiconv.partition.receptive import layer_boxes
from mpiconv.partition.schedule import Held
from mpiconv.partition.schemes import ROOT
from mpiconv.runtime.exchange.point_to_point import by_messages

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from mpiconv.graph.form import Graph, Param
    from mpiconv.job.team import Team

LayerWeights = list[dict[str, torch.Tensor]]
Progress = Callable[[int, int], object]
"""Told how many B of weights the root has sent so far, and how many there are in all."""

CHUNK_BYTES = 2**22
"""What is sent at a time, so that a rank that waits long knows a slow link from one that is down."""


def check_state(graph: Graph, state: Mapping[str, torch.Tensor]) -> None:
    """Raise ModelError unless ``state`` has every tensor the graph names, float32 and of its shape."""
    for unit in graph.units:
        for param in unit.params:
            tensor = state.get(param.key)
            if tensor is None or not _fits(param, tensor) or tensor.dtype != torch.float32:
                found = "none" if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"
                raise ModelError(f"the plan wants {param.key} as float32 of shape {param.shape}, the model has {found}")


def _fits(param: Param, tensor: torch.Tensor) -> bool:
    try:
        return param.groups > 0 or tuple(rows_of(param, tensor).shape) == param.shape
    except (ValueError, RuntimeError):
        return False


def readers_of(team: Team, path: str) -> tuple[int, ...]:
    """The ranks but the root that have the same weights file as the root under this path. Collective.

    Raises ModelError on every rank if one has another file there; it is named.
    """
    found = allgather_json(team, fingerprint(path))

    def compare() -> list[int]:
        for rank, mark in enumerate(found):
            if mark and mark != found[ROOT]:
                raise ModelError(f"rank {rank} has another file {path} than rank {ROOT}: copy it anew, or remove it")
        return [rank for rank, mark in enumerate(found) if mark and rank != ROOT]

    return tuple(bcast_json(team, on_root(team, compare)))


class UnitWeights:
    """Gets every rank its slices of the tensors, unit by unit: ``readers`` from a file, the others from the root.

    The tensors ``always_sent`` are in no file: they come from the root for all.
    """

    def __init__(
        self,
        plan: Plan,
        state: Mapping[str, torch.Tensor],
        team: Team,
        path: str = "",
        readers: Collection[int] = (),
        always_sent: Collection[str] = (),
        progress: Progress | None = None,
    ) -> None:
        self.always_sent = always_sent
        self.plan, self.state, self.team, self.readers = plan, state, team, readers
        self.nbytes = 0  # of this rank's slices so far
        self.progress, self.sent_bytes = progress, 0
        units = range(len(plan.graph.body)) if progress is not None else ()
        self.all_bytes = sum(
            self._sent_bytes(param, spans) for unit in units for _, param, spans in self._tensors(unit)
        )
        wanted = [param.key for unit in plan.graph.units for param in unit.params]
        self.file = WeightsFile(path, wanted) if team.rank in readers else None

    def __call__(self, index: int) -> LayerWeights:
        """For every layer of a unit of the body, this rank's slices of the tensors by role. Collective.

        ``state`` counts on rank 0. A rank that computes nothing of the unit gets empty mappings, and so does the
        root for what it runs with the model's own modules.
        """
        mine: LayerWeights = [{} for _ in self.plan.graph.units[index].layers]
        for layer, param, spans in self._tensors(index):
            tensor = self._slice(param, spans)
            if tensor is not None:
                mine[layer][param.role] = tensor
                self.nbytes += tensor.nbytes
            self.sent_bytes += self._sent_bytes(param, spans)
        return mine

    def _tensors(self, index: int) -> Iterator[tuple[int, Param, list[Span]]]:
        """The tensors of a unit that ranks compute with: number of the layer, and which rows of it each rank needs."""
        unit = self.plan.graph.units[index]
        parts = [layer_boxes(unit, box) for box in self.plan.boxes[index]]
        for i, layer in enumerate(unit.layers):
            for param in () if layer.opaque else layer.params:
                yield i, param, [part[i].channels for part in parts]

    def _sent_bytes(self, param: Param, spans: list[Span]) -> int:
        """B of a tensor that the root has to send, once per receiver."""
        readers = self._readers(param)
        rows = sum(len(span) for rank, span in enumerate(spans) if rank != ROOT and rank not in readers)
        return FLOAT_BYTES * math.prod(param.shape[1:]) * rows

    def _readers(self, param: Param) -> Collection[int]:
        """The ranks that read a tensor from the file."""
        return () if param.key in self.always_sent else self.readers

    def _tell(self, more: float) -> None:
        """Say how much was sent, ``more`` B of the tensor that is on its way."""
        if self.progress is not None and self.all_bytes:
            self.progress(self.sent_bytes + round(more), self.all_bytes)

    def _slice(self, param: Param, spans: list[Span]) -> torch.Tensor | None:
        """This rank's rows of one tensor, None if they are none. Collective."""
        readers = self._readers(param)
        sent = [Span() if rank in readers else span for rank, span in enumerate(spans)]
        size = self._sent_bytes(param, spans)
        received = _sent(param, sent, self.state, self.team, lambda part: self._tell(part * size))
        mine = spans[self.team.rank]
        reads = self.file is not None and self.team.rank in readers and mine
        return self.file.rows(param, mine.lo, mine.hi) if self.file is not None and reads else received


def _sent(
    param: Param,
    spans: list[Span],
    state: Mapping[str, torch.Tensor],
    team: Team,
    told: Callable[[float], object],
) -> torch.Tensor | None:
    """This rank's rows of one tensor: a map of as many channels as it has rows, which the root owns whole."""
    rows, width = param.shape[0], math.prod(param.shape[1:])
    whole = Box.whole((rows, 1, width))
    owned = [whole if rank == ROOT else Box() for rank in range(len(spans))]
    needed = [Box(span, whole.rows, whole.columns) for span in spans]
    spread = exchange(owned, needed, f"weights {param.key}")
    tensor = None
    if team.rank == ROOT:
        tensor = rows_of(param, state[param.key].detach()).contiguous().view(1, rows, 1, width)
    got = _in_chunks(spread, tensor, team, Place(f"weights {param.key}"), told)
    need = needed[team.rank]
    if not need or got is None:
        return None
    return got[0, slice(need.channels.lo, need.channels.hi) if team.rank == ROOT else slice(None)].reshape(
        len(need.channels), *param.shape[1:]
    )


def _in_chunks(
    spread: Exchange,
    tensor: torch.Tensor | None,
    team: Team,
    place: Place,
    told: Callable[[float], object],
) -> torch.Tensor | None:
    """Do the exchange of a map that the root owns whole, some channels at a time; what the rank has then.

    ``told`` is called after each time with the part of the channels that was exchanged.
    """
    whole, rank = spread.owned[ROOT], team.rank
    rows, width = whole.shape[0], whole.shape[2]
    step = max(1, CHUNK_BYTES // (FLOAT_BYTES * max(width, 1)))
    got, buffer, held = tensor, None, Held.of(spread, rank)
    for lo in range(0, rows, step):
        chunk = Box(Span(lo, min(lo + step, rows)), whole.rows, whole.columns)
        part = spread
        if rows > step:
            part = spread.part([chunk if r == ROOT else Box() for r in range(team.size)])
            part = replace(part, part_of="bcast" if spread.pattern == "bcast" else "p2p")
        exchanger = by_messages(part, 1, team, held=held, buffer=buffer)
        buffer = exchanger.buffer
        got = exchanger(tensor if tensor is None else tensor[:, chunk.channels.lo : chunk.channels.hi], place=place)
        exchanger.close()
        told(chunk.channels.hi / rows)
    return tensor if rank == ROOT else got
