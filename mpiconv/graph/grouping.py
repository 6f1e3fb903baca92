"""From the steps that tracing found to units: one convolution each, and what is cheap behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from mpiconv.graph.form import MOVERS, PICTURE, Layer, Shape, Unit
from mpiconv.graph.region import Region


@dataclass(frozen=True)
class Step:
    """A layer with the steps whose outputs it reads, and its module where only the root can run it."""

    layer: Layer
    inputs: tuple[int, ...]
    module: nn.Module | None = None


def live(steps: list[Step], wanted: tuple[int, ...]) -> tuple[list[Step], tuple[int, ...]]:
    """The steps that something reads, renumbered."""
    needed = set(wanted)
    for i in reversed(range(len(steps))):
        if i in needed:
            needed.update(steps[i].inputs)
    number = {old: new for new, old in enumerate(i for i in range(len(steps)) if i in needed)} | {PICTURE: PICTURE}
    kept = [
        Step(steps[old].layer, tuple(number[i] for i in steps[old].inputs), steps[old].module)
        for old in number
        if old != PICTURE
    ]
    return kept, tuple(number[i] for i in wanted)


def _joins(chain: Sequence[Layer], layer: Layer, gather: str, *, reads_picture: bool) -> bool:
    """Whether a layer goes on with the unit of the layers before it: a unit has one convolution and what is cheap.

    A depthwise convolution right behind a pointwise one is cheap, and their map between them larger than what either
    unit beside it reads. What needs the whole map, or makes it larger, comes after the exchange; what only moves
    elements is done by whoever computes with them.
    """
    if layer.spans_map or chain[-1].opaque:
        return False
    has_kernels = any(before.has_kernels for before in chain)
    if not has_kernels and (gather == "conv" or reads_picture or chain[0].kind in MOVERS):
        return True
    cheap = not layer.has_kernels or _separable(chain, layer)
    return gather == "pool" and cheap and _size(layer.out_shape) <= _size(layer.in_shapes[0])


def _separable(chain: Sequence[Layer], layer: Layer) -> bool:
    """Whether a layer is the depthwise convolution of what one pointwise convolution makes."""
    kernels = [before for before in chain if before.has_kernels]
    if len(kernels) != 1 or (kernels[0].kind, kernels[0].kernel, kernels[0].groups) != ("conv", (1, 1), 1):
        return False
    return layer.kind == "conv" and 1 < layer.groups == layer.in_shapes[0][0] == layer.out_shape[0]


def _size(shape: Shape) -> int:
    return shape[0] * shape[1] * shape[2]


def units_of(
    steps: list[Step],
    head: Region,
    head_inputs: tuple[int, ...],
    shapes: Sequence[Shape],
    gather: str,
    batch: int,
) -> tuple[tuple[Unit, ...], dict[int, nn.Module]]:
    """Group the steps: a unit goes on as long as its output has one reader, and ends at ``gather``."""
    read = [source for step in steps for source in step.inputs] + list(head_inputs)
    chains: list[list[int]] = []
    chain_of: dict[int, int] = {}
    for i, step in enumerate(steps):
        before = step.inputs[0]
        chain = chain_of.get(before, -1)
        joins = False
        if len(step.inputs) == 1 and chain >= 0 and read.count(before) == 1 and chains[chain][-1] == before:
            layers = [steps[j].layer for j in chains[chain]]
            joins = _joins(layers, step.layer, gather, reads_picture=steps[chains[chain][0]].inputs == (PICTURE,))
        if not joins:
            chains.append([])
            chain = len(chains) - 1
        chains[chain].append(i)
        chain_of[i] = chain
    tail: list[Layer] = []
    last = chains[-1] if chains else []
    plain = not any(steps[i].layer.has_kernels or steps[i].layer.spans_map for i in last)
    if gather == "conv" and last and head_inputs == (last[-1],) and plain:
        tail = [steps[i].layer for i in last]
        head_inputs = steps[last[0]].inputs
        chains.pop()
    ends = {chain[-1]: unit for unit, chain in enumerate(chains)} | {PICTURE: PICTURE}
    names = _names([[steps[i].layer for i in chain] for chain in chains])
    units = [
        Unit(name, tuple(steps[i].layer for i in chain), tuple(ends[i] for i in steps[chain[0]].inputs))
        for name, chain in zip(names, chains, strict=True)
    ]
    modules = {u: module for u, chain in enumerate(chains) if (module := steps[chain[-1]].module) is not None}
    modules[len(units)] = head.module
    layer = head.layer("head", "head", (tail[-1].out_shape,) if tail else tuple(shapes), (1, 1, 1), batch)
    return (*units, Unit("head", (*tail, layer), tuple(ends[i] for i in head_inputs))), modules


def _names(chains: Sequence[Sequence[Layer]]) -> list[str]:
    """A label for every unit: its main layer's name, or its kind and number where that is a mere index."""
    names: list[str] = []
    counts: dict[str, int] = {}
    for chain in chains:
        main = next((layer for layer in chain if layer.has_kernels), chain[0])
        counts[main.kind] = counts.get(main.kind, 0) + 1
        label = f"{main.kind}{counts[main.kind]}" if main.name.rpartition(".")[2].isdigit() else main.name
        if label in names or label == "head":
            label = f"{main.name}#{len(names)}"
        names.append(label)
    return names
