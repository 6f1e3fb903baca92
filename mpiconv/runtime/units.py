"""The units as this rank computes them: made ready once, and kept if another plan leaves them unchanged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from mpiconv.graph.form import Unit
from mpiconv.models.slices import rows_of
from mpiconv.partition import Box, hull
from mpiconv.partition.plan import FLOAT_BYTES, cuts_channels
from mpiconv.partition.receptive import box_weights
from mpiconv.partition.schedule import Schedule
from mpiconv.partition.schemes import ROOT
from mpiconv.runtime.compute import onednn
from mpiconv.runtime.compute.engines import local_unit
from mpiconv.runtime.compute.local import LocalUnit, weights_of
from mpiconv.runtime.compute.operations import WholeUnit
from mpiconv.runtime.emulation import Paced
from mpiconv.runtime.faults import Slow, injected
from mpiconv.runtime.frames import Compute
from mpiconv.runtime.heap import trim_heap
from mpiconv.runtime.settings import Settings
from mpiconv.runtime.spares import key_of, spares
from mpiconv.runtime.weights import LayerWeights, Weights

WORTH_TRIMMING_BYTES = 2**20
"""Weights of a unit after which memory is returned that was taken to reorder them."""


@dataclass(frozen=True)
class Work:
    """What a rank does of one unit: ``box``, in the pieces ``cut``, and how.

    ``padded`` and ``sliced`` are what ``LocalUnit`` is told; all but the unit is the same on no two ranks.
    """

    unit: Unit
    box: Box
    cut: tuple[Box, ...]
    padded: bool
    sliced: bool


@dataclass
class Made:
    """A unit made ready on this rank: the functions of its pieces, its weights' size, and what to call when it goes."""

    work: Work
    computes: list[Compute | None]
    weight_bytes: int
    frees: list[Callable[[], object]]


class LocalUnits:
    """The units of the plan that runs, as this rank computes them.

    Parameters
    ----------
    rank
        This one.
    weights
        The rows of weights that it has.
    settings
        How to compute; the ``pace`` is this rank's own.
    modules, state
        On the root what it runs with the model's own modules, by the layer's name, and the model's tensors.
    """

    def __init__(
        self,
        rank: int,
        weights: Weights,
        settings: Settings,
        modules: Mapping[str, nn.Module],
        state: Mapping[str, torch.Tensor],
    ) -> None:
        self._rank, self._weights, self._settings = rank, weights, settings
        self._modules, self._state = modules, state
        self._made: dict[str, list[Made]] = {}

    def adopt(self, carried: Sequence[Schedule]) -> list[list[list[Compute | None]]]:
        """What this rank computes of each unit, the head included, by each of the plans in turn: its pieces in order.

        A unit of which the rank does what it did before, or what it does by another of the plans, is there once; the
        largest of those that are not there are made first.
        """
        plan = carried[0].plan
        wanted = [[self._work(each, index) for each in carried] for index in range(len(plan.graph.units))]
        had, self._made = self._made, {}
        for works in wanted:
            name = works[0].unit.name
            before = had.pop(name, [])
            self._made[name] = [made for made in before if made.work in works]
            _free(*(made for made in before if made.work not in works))
        _free(*(made for each in had.values() for made in each))
        computes: list[list[list[Compute | None]]] = [[[] for _ in wanted] for _ in carried]
        sizes = [sum(param.size for param in unit.params) for unit in plan.graph.units]
        for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
            for turn, work in enumerate(wanted[index]):
                computes[turn][index] = self._of(work, plan.batch).computes
        return computes

    def _of(self, work: Work, batch: int) -> Made:
        """The unit for some work, made ready now if it is not yet."""
        ready = self._made[work.unit.name]
        for made in ready:
            if made.work == work:
                return made
        ready.append(self._make(work, batch))
        if ready[-1].weight_bytes >= WORTH_TRIMMING_BYTES:
            trim_heap()  # before the next largest takes its room to reorder weights in
        return ready[-1]

    @property
    def weight_bytes(self) -> int:
        """B of weights that this rank computes with; rows that it needs by several plans count once."""
        return sum(map(_weight_bytes, self._made.values()))

    @property
    def paced(self) -> list[Paced]:
        """The wrappers that emulate a slower device."""
        every = (made for each in self._made.values() for made in each)
        return [one for made in every for one in made.computes if isinstance(one, Paced)]

    def close(self) -> None:
        """Give compiled units to the spares."""
        _free(*(made for each in self._made.values() for made in each))
        self._made = {}

    def _work(self, carried: Schedule, index: int) -> Work:
        """What this rank does of a unit."""
        plan, unit = carried.plan, carried.plan.graph.units[index]
        box = plan.owned[index][self._rank]
        if index == len(plan.boxes):
            return Work(unit, box, (box,), padded=False, sliced=False)
        cut = tuple(piece[self._rank] for piece in carried.pieces[index])
        sliced = unit.name in self._settings.as_slices or cuts_channels(plan, index)
        return Work(unit, box, cut, carried.padded(index, self._rank), sliced)

    def _make(self, work: Work, batch: int) -> Made:
        """Make a unit ready."""
        unit, frees = work.unit, list[Callable[[], object]]()
        if unit.opaque:
            there = self._rank == ROOT
            size = sum(FLOAT_BYTES * param.size for param in unit.params) if there else 0
            computes: list[Compute | None] = [self._opaque(unit) if there else None]
        else:
            mine = self._weights.of(unit, work.box)
            size = sum(tensor.nbytes for layer in mine for tensor in layer.values())
            computes = self._pieces(work, mine, batch, frees)
        faults = [each for each in map(injected, self._settings.inject) if each.rank == self._rank]
        slow = [each for each in faults if isinstance(each, Slow)]
        wrong = min((each.frame for each in faults if each.kind == "corrupt" and not unit.opaque), default=None)
        if self._settings.pace > 1 or slow or wrong is not None:
            computes = [None if one is None else Paced(one, self._settings.pace, slow, wrong) for one in computes]
        return Made(work, computes, size, frees)

    def _pieces(
        self, work: Work, weights: LayerWeights, batch: int, frees: list[Callable[[], object]]
    ) -> list[Compute | None]:
        """What computes each piece of the rank's box."""
        packed: onednn.Packed | None = {} if _share_kernels(work.cut) else None
        found: list[Compute | None] = []
        for box in reversed(work.cut):  # the largest piece packs the weights for all
            parts = weights_of(work.unit, work.box, weights, box) if box else []
            found.append(self._piece(work, box, parts, batch, packed, frees) if box else None)
        return found[::-1]

    def _piece(
        self,
        work: Work,
        box: Box,
        weights: LayerWeights,
        batch: int,
        packed: onednn.Packed | None,
        frees: list[Callable[[], object]],
    ) -> LocalUnit:
        """A unit on a box, taken from the spares if possible; if it is compiled, it will go back there."""
        compute, how = self._settings.compute, {"padded": work.padded, "sliced": work.sliced}
        key = ""
        if compute != "eager" and packed is None:
            threads = torch.get_num_threads()
            key = key_of(work.unit, box, weights, batch, compute, work.padded, work.sliced, threads)
        made = spares.take(key) if key else None
        made = made or local_unit(work.unit, box, weights, batch, compute, **how, packed=packed)
        if key and made.compiled:
            frees.append(lambda: spares.give(key, made))
        return made

    def _opaque(self, unit: Unit) -> Callable[..., Any]:
        """A layer that the root runs with the model's own module; for the head also the layers before that."""
        module, rest = self._modules[unit.layers[-1].name], unit.layers[:-1]
        if unit.layers[-1].kind != "head":
            return WholeUnit(module)
        if not rest:
            return module
        weights = [{param.role: rows_of(param, self._state[param.key]) for param in layer.params} for layer in rest]
        before = LocalUnit(replace(unit, layers=rest), Box.whole(rest[-1].out_shape), weights)
        return lambda *maps: module(before(*maps))


def _free(*made: Made) -> None:
    """Give compiled units to the spares."""
    for each in made:
        for free in each.frees:
            free()


def _weight_bytes(each: Sequence[Made]) -> int:
    """B of weights of one unit, of which a rank does different parts by different plans."""
    unit = each[0].work.unit
    if len(each) == 1 or unit.opaque:
        return max(made.weight_bytes for made in each)
    return FLOAT_BYTES * box_weights(unit, hull(made.work.box for made in each))


def _share_kernels(cut: Sequence[Box]) -> bool:
    """Whether pieces of a unit are computed with the same kernels, of which they have one copy then."""
    channels = [box.channels for box in cut if box]
    return len(set(channels)) < len(channels)
