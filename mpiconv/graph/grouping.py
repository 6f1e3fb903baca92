"""Which layers form a unit: one with kernels, and what is cheap behind it. Pure: a network can be grouped again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mpiconv.errors import UsageError
from mpiconv.graph.form import MOVERS, PICTURE, Graph, Layer, Shape, Unit

GATHERS = ("conv", "pool")
HEADS = ("root", "split")
"""Where fully connected layers go: into the head, which the root computes, or into units of their own."""

Gather = str | Mapping[str, str]
"""Where units end: ``conv`` or ``pool`` for all, or for each by the name of its layer with kernels (else ``pool``)."""


@dataclass(frozen=True)
class Step:
    """A layer with the numbers of the steps whose outputs it reads (``PICTURE`` for the picture)."""

    layer: Layer
    inputs: tuple[int, ...]


def live(steps: Sequence[Step], wanted: tuple[int, ...]) -> tuple[list[Step], tuple[int, ...]]:
    """The steps that something reads, renumbered."""
    needed = set(wanted)
    for i in reversed(range(len(steps))):
        if i in needed:
            needed.update(steps[i].inputs)
    number = {old: new for new, old in enumerate(i for i in range(len(steps)) if i in needed)} | {PICTURE: PICTURE}
    kept = [Step(steps[i].layer, tuple(number[j] for j in steps[i].inputs)) for i in number if i != PICTURE]
    return kept, tuple(number[i] for i in wanted)


def single_layers(graph: Graph) -> Graph:
    """The same network with every layer as a unit of its own: its finest form, which all groupings of it share."""
    steps: list[Step] = []
    ends: dict[int, int] = {PICTURE: PICTURE}
    for index, unit in enumerate(graph.units):
        inputs = tuple(ends[source] for source in unit.inputs)
        for layer in unit.layers:
            steps.append(Step(layer, inputs))
            inputs = (len(steps) - 1,)
        ends[index] = len(steps) - 1
    names = _names([[step.layer] for step in steps[:-1]])
    units = [Unit(name, (step.layer,), step.inputs) for name, step in zip([*names, "head"], steps, strict=True)]
    return Graph(graph.model, graph.input_shape, tuple(units))


def grouped(graph: Graph, gather: Gather = "pool", head: str = "root") -> Graph:
    """The same network with its layers grouped into units anew.

    Parameters
    ----------
    graph
        In any grouping.
    gather
        Where a unit ends and its output is exchanged: ``pool``, after the activation and pooling behind its layer with
        kernels, or ``conv``, right after that layer, as in the paper; or a mapping with one of them by the name of the
        layer with kernels, ``pool`` for those that are not in it.
    head
        ``root``: fully connected layers at the end of the network are part of the head; ``split``: they are units.

    Raises
    ------
    UsageError
        Another ``gather`` or ``head``.

    Examples
    --------
    >>> graph = trace(model, (3, 227, 227)).graph
    >>> grouped(graph, gather={"features.0": "conv"}, head="split").unit_names
    """
    for found in [gather] if isinstance(gather, str) else gather.values():
        if found not in GATHERS:
            raise UsageError(f"unknown gather {found!r}: choose from {', '.join(GATHERS)}")
    if head not in HEADS:
        raise UsageError(f"unknown head {head!r}: choose from {', '.join(HEADS)}")
    key = "grouped", gather if isinstance(gather, str) else tuple(sorted(gather.items())), head
    known: Graph | None = graph.memo.get(key)
    if known is None:
        fine = single_layers(graph)
        steps = [Step(unit.layers[0], unit.inputs) for unit in fine.body]
        units = _units(steps, fine.units[-1], gather, apart=head == "root")
        known = graph.memo[key] = Graph(graph.model, graph.input_shape, units)
    return known


def gather_of(graph: Graph) -> str:
    """The ``gather`` by which a network is grouped; ``mixed`` where it differs between units."""
    ways = ((gather, head) for gather in ("pool", "conv") for head in HEADS)
    return next((gather for gather, head in ways if grouped(graph, gather, head).units == graph.units), "mixed")


def head_units(graph: Graph) -> frozenset[int]:
    """The units of the body that make up a classifier: fully connected ones, and those that read only their output.

    A fully connected layer in the midst of a network, as in squeeze-and-excitation blocks, is one too.
    """
    found: set[int] = set()
    for index, unit in enumerate(graph.body):
        plain = not unit.opaque and not any(layer.has_kernels for layer in unit.layers)
        if unit.fully_connected or (plain and set(unit.inputs) <= found):
            found.add(index)
    return frozenset(found)


def _units(steps: Sequence[Step], last: Unit, gather: Gather, *, apart: bool) -> tuple[Unit, ...]:
    """The units of some steps, and the head behind them, ``last``; ``apart``: it has fully connected layers in it."""
    head_inputs = last.inputs
    read = [source for step in steps for source in step.inputs] + list(head_inputs)
    chains: list[list[int]] = []
    chain_of: dict[int, int] = {}
    for i, step in enumerate(steps):
        chain = chain_of.get(step.inputs[0], -1)
        joins = False
        if len(step.inputs) == 1 and chain >= 0 and read.count(step.inputs[0]) == 1:
            numbers = chains[chain]
            joins = numbers[-1] == step.inputs[0] and not (apart and step.layer.kind == "linear")
            layers, reads_picture = [steps[j].layer for j in numbers], steps[numbers[0]].inputs == (PICTURE,)
            joins = joins and _joins(layers, step.layer, gather, reads_picture=reads_picture)
        if not joins:
            chains.append([])
            chain = len(chains) - 1
        chains[chain].append(i)
        chain_of[i] = chain
    count = _tail(steps, chains, head_inputs, gather, apart=apart)
    tail = [i for chain in chains[len(chains) - count :] for i in chain]
    chains = chains[: len(chains) - count]
    head_inputs = steps[tail[0]].inputs if tail else head_inputs
    ends = {chain[-1]: unit for unit, chain in enumerate(chains)} | {PICTURE: PICTURE}
    names = _names([[steps[i].layer for i in chain] for chain in chains])
    units = [
        Unit(name, tuple(steps[i].layer for i in chain), tuple(ends[i] for i in steps[chain[0]].inputs))
        for name, chain in zip(names, chains, strict=True)
    ]
    rest = (*(steps[i].layer for i in tail), last.layers[-1])
    return (*units, Unit("head", rest, tuple(ends[i] for i in head_inputs)))


def _joins(chain: Sequence[Layer], layer: Layer, gather: Gather, *, reads_picture: bool) -> bool:
    """Whether a layer goes on with the unit of the layers before it: a unit has one convolution and what is cheap.

    A depthwise convolution right behind a pointwise one is cheap, and their map between them larger than what either
    unit beside it reads. What needs the whole map, or makes it larger, comes after the exchange; what only moves
    elements is done by whoever computes with them.
    """
    if layer.spans_map or chain[-1].opaque:
        return False
    main = next((before for before in chain if before.has_kernels), None)
    if main is None and (_ends(layer, gather) == "conv" or reads_picture or chain[0].kind in MOVERS):
        return True
    cheap = not layer.has_kernels or _separable(chain, layer)
    return _ends(main, gather) == "pool" and cheap and _size(layer.out_shape) <= _size(layer.in_shapes[0])


def _ends(layer: Layer | None, gather: Gather) -> str:
    """Where the unit of a layer with kernels ends; None for a unit without one."""
    if isinstance(gather, str):
        return gather
    return "pool" if layer is None else gather.get(layer.name, "pool")


def _separable(chain: Sequence[Layer], layer: Layer) -> bool:
    """Whether a layer is the depthwise convolution of what one pointwise convolution makes."""
    kernels = [before for before in chain if before.has_kernels]
    if len(kernels) != 1 or (kernels[0].kind, kernels[0].kernel, kernels[0].groups) != ("conv", (1, 1), 1):
        return False
    return layer.kind == "conv" and 1 < layer.groups == layer.in_shapes[0][0] == layer.out_shape[0]


def _size(shape: Shape) -> int:
    return shape[0] * shape[1] * shape[2]


def _tail(
    steps: Sequence[Step], chains: Sequence[Sequence[int]], inputs: tuple[int, ...], gather: Gather, *, apart: bool
) -> int:
    """How many of the last chains belong to the head, which reads ``inputs``.

    With ``apart`` those are fully connected layers, one after the other; and where a unit ends right after its
    convolution, the cheap layers between the last one and the head.
    """
    read = [source for step in steps for source in step.inputs] + list(inputs)
    count, wanted = 0, inputs
    for back, chain in enumerate(reversed(chains) if apart else (), 1):
        layers = [steps[i].layer for i in chain]
        if wanted != (chain[-1],) or read.count(chain[-1]) > 1:
            break
        wanted = steps[chain[0]].inputs
        if layers[0].kind == "linear":
            count, inputs = back, wanted
        elif any(layer.has_kernels or layer.opaque for layer in layers) or layers[0].in_shapes[0][1:] != (1, 1):
            break
    before = chains[: len(chains) - count]
    if gather == "conv" and before and inputs == (before[-1][-1],) and read.count(inputs[0]) == 1:
        layers = [steps[i].layer for i in before[-1]]
        count += not any(layer.has_kernels or layer.spans_map for layer in layers)
    return count


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
