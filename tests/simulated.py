"""Every rank of a plan in one process: the boxes' arithmetic and the local compute, with copies instead of MPI."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mpiconv.graph.form import PICTURE, Graph
from mpiconv.graph.trace import Traced, trace
from mpiconv.models.registry import randomise
from mpiconv.models.slices import rows_of
from mpiconv.partition import Box, Plan
from mpiconv.partition.box import hull
from mpiconv.partition.making import fitted
from mpiconv.partition.receptive import layer_boxes, needs_of, unit_needs
from mpiconv.partition.schemes import Boxes, needs_all
from mpiconv.runtime.compute.local import LocalUnit
from mpiconv.runtime.compute.operations import WholeUnit


def at(box: Box, frame: Box) -> tuple[slice, ...]:
    return (slice(None), *box.within(frame))


def local_units(traced: Traced, plan: Plan, unit_index: int) -> list[LocalUnit | WholeUnit | None]:
    """What each rank computes of a unit, with its slices of the weights and nothing else."""
    unit, state = plan.graph.units[unit_index], traced.tensors
    found: list[LocalUnit | WholeUnit | None] = []
    for box in plan.boxes[unit_index]:
        if not box:
            found.append(None)
            continue
        if unit.opaque:
            found.append(WholeUnit(traced.modules[unit.layers[-1].name]))
            continue
        weights = []
        for layer, part in zip(unit.layers, layer_boxes(unit, box), strict=True):
            rows = slice(part.channels.lo, part.channels.hi)
            weights.append({param.role: rows_of(param, state[param.key])[rows].clone() for param in layer.params})
        found.append(LocalUnit(unit, box, weights))
    return found


@torch.inference_mode()
def run_split(model: nn.Module, plan: Plan, images: torch.Tensor, traced: Traced | None = None) -> object:
    """The network's output as the plan's ranks would compute it; what a rank was not sent is NaN."""
    traced = traced or trace(model, plan.graph.input_shape, batch=plan.batch)
    assert fitted(plan, traced.layers) is plan
    picture = Box.whole(plan.graph.input_shape)
    owned = {PICTURE: [(picture, images)] + [(Box(), None)] * (plan.ranks - 1)}
    held: dict[int, list[tuple[Box, torch.Tensor]]] = {}
    for index, unit in enumerate(plan.graph.units):
        for source in plan.incoming(index):
            spec = plan.exchanges[source]
            held[source] = []
            for rank, need in enumerate(spec.needed):
                buffer = torch.full((plan.batch, *need.shape), torch.nan)
                own, tensor = owned[source][rank]
                if own & need:
                    buffer[at(own & need, need)] = tensor[at(own & need, own)]
                for t in spec.transfers:
                    if t.target == rank:
                        theirs, part = owned[source][t.source]
                        buffer[at(t.box, need)] = part[at(t.box, theirs)]
                held[source].append((need, buffer))
        if index == len(plan.boxes):
            break
        owned[index] = []
        for rank, local in enumerate(local_units(traced, plan, index)):
            box = plan.boxes[index][rank]
            inputs = []
            for source, need in zip(unit.inputs, unit_needs(unit, box), strict=True):
                frame, buffer = held[source][rank]
                inputs.append(buffer[at(need, frame)] if need else None)
            output = local(*inputs) if local else None
            assert output is None or output.shape == (plan.batch, *box.shape), (unit.name, rank, output.shape, box)
            owned[index].append((box, output))
    head = plan.graph.units[-1]
    maps = [held[source][0][1] for source in head.inputs]
    before = head.layers[:-1]
    if before:
        state = traced.tensors
        weights = [{param.role: rows_of(param, state[param.key]) for param in layer.params} for layer in before]
        maps = [LocalUnit(type(head)(head.name, before, head.inputs), Box.whole(before[-1].out_shape), weights)(*maps)]
    return traced.head(*maps)


def sensible(model: nn.Module, picture: tuple[int, int, int]) -> None:
    """Random weights; batch normalisations that know the statistics of what they get, and shift it to the positive.

    Around zero, random networks with BatchNorm and ReLU are chaotic: rounding grows from layer to layer, until torch's
    own results in another memory format differ by more than 1e-5. Trained ones are not.
    """
    randomise(model, 0)
    random = torch.Generator().manual_seed(0)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # averages over what it sees
        norm.reset_running_stats()
        norm.train()
        with torch.no_grad():
            norm.weight.uniform_(0.5, 1.5, generator=random)
            norm.bias.uniform_(0.7, 1.3, generator=random)
    if norms:
        with torch.no_grad():
            model(torch.randn(4, *picture, generator=random))
            for norm in norms:  # a channel that is dead on four pictures would be made huge on the fifth
                norm.running_var.clamp_(min=0.1 * float(norm.running_var.mean()))
    model.eval().requires_grad_(False)


def largest_error(mine: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference as a part of the largest element wanted; NaN where a rank was not sent what it needs."""
    return float((mine - wanted).abs().max()) / max(float(wanted.abs().max()), 1e-6)


def assert_close(mine: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Within ``tolerance`` of the largest element wanted, and nowhere NaN."""
    largest = float(wanted.abs().max()) if wanted.numel() else 0.0
    assert mine.shape == wanted.shape
    assert not mine.isnan().any(), "a rank computed with something that it was not sent"
    error = float((mine - wanted).abs().max()) if wanted.numel() else 0.0
    assert error <= tolerance * max(largest, 1e-6), f"off by {error:.3g}, the largest output is {largest:.3g}"


def fused_before(graph: Graph, units: range, last: Sequence[Box]) -> Boxes | None:
    """The boxes of some units in a row so that every rank can compute ``last``, its box of the last one, by itself.

    None where a unit between needs a whole map, so that every rank would compute everything.
    """
    if any(graph.units[u].opaque for u in units) or any(needs_all(graph.units[u]) for u in units[1:]):
        return None
    boxes: Boxes = [list(last)]
    for unit in reversed(units[:-1]):
        readers = [j for j in graph.consumers(unit) if j in units]
        boxes.insert(
            0,
            [
                hull(need for j in readers for need in needs_of(graph.units[j], boxes[j - unit - 1][rank], unit))
                for rank in range(len(last))
            ],
        )
    return boxes
