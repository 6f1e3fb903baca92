"""Any ``nn.Module`` as a graph of units: torch.fx finds the operations, this groups them."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from mpiconv.errors import ModelError, UsageError
from mpiconv.nets.graph import PICTURE, Graph, Layer, Param, Shape, Unit
from mpiconv.nets.layers import (
    ADDITIONS,
    CONCATENATIONS,
    FUNCTIONS,
    WINDOWED,
    WINDOWED_FUNCTIONS,
    CannotSplitError,
    add_layer,
    concat_layer,
    layer_of,
    module_of,
)
from mpiconv.nets.registry import info_of

GATHERS = ("conv", "pool")


@dataclass(frozen=True)
class Traced:
    """A network as a graph, and the torch module that is its head (what only the root runs)."""

    graph: Graph
    head: nn.Module


@dataclass
class _Step:
    """A layer with the steps whose outputs it reads; ``readers`` counts who reads its own."""

    layer: Layer
    inputs: tuple[int, ...]
    readers: int = 0


@dataclass
class _Walk:
    """What is known while walking along the operations: the steps so far, and which nodes the head has to run."""

    model: str
    picture: Shape
    steps: list[_Step] = field(default_factory=list)
    maps: dict[fx.Node, int] = field(default_factory=dict)
    blocked: dict[fx.Node, str] = field(default_factory=dict)

    def shape(self, step: int) -> Shape:
        return self.picture if step == PICTURE else self.steps[step].layer.out_shape


def trace(model: nn.Module, picture: Sequence[int], gather: str = "pool") -> Traced:
    """Turn a module into a graph of units; it is put into evaluation mode.

    What boxes cannot describe becomes the head, which the root runs, where no convolution or pooling follows it.

    Parameters
    ----------
    model
        A module with one input and any output.
    picture
        (C, H, W) of its input.
    gather
        ``pool``: a unit ends after the activation and pooling behind its convolution; ``conv``: right after it.

    Raises
    ------
    ModelError
        Control flow that depends on data, or a layer that cannot be split and comes before one that is; named.
    """
    if gather not in GATHERS:
        raise UsageError(f"unknown gather {gather!r}: choose from {', '.join(GATHERS)}")
    channels, rows, columns = (int(length) for length in picture)
    name = info_of(model).name
    module = _symbolic(model.eval(), name)
    walk = _Walk(name, (channels, rows, columns))
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    if not inputs or any(not node.args for node in inputs[1:]):
        raise ModelError(f"model {name} takes {len(inputs)} inputs: one is wanted, the pictures")
    walk.maps[inputs[0]] = PICTURE
    for node in module.graph.nodes:
        if node.op not in ("placeholder", "output", "get_attr"):
            _visit(walk, module, node)
    head, head_inputs = _cut_head(walk, module)
    return Traced(Graph(name, walk.picture, _units(walk, head, head_inputs, gather), gather), head)


def _symbolic(model: nn.Module, name: str) -> fx.GraphModule:
    try:
        return fx.symbolic_trace(model)
    except Exception as error:
        here = [f for f in traceback.extract_tb(error.__traceback__) if os.sep + "torch" + os.sep not in f.filename]
        where = f" at {os.path.basename(here[-1].filename)}:{here[-1].lineno}" if len(here) > 1 else ""
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"model {name} cannot be traced{where}: {reason}") from None


def _visit(walk: _Walk, module: fx.GraphModule, node: fx.Node) -> None:
    """Add the node as a step, or mark it as work for the head."""
    stuck = next((walk.blocked[n] for n in node.all_input_nodes if n in walk.blocked), None)
    name = str(node.target) if node.op == "call_module" else node.name
    sub = module.get_submodule(name) if node.op == "call_module" else None
    if stuck is not None:
        if isinstance(sub, WINDOWED) or node.target in WINDOWED_FUNCTIONS:
            raise ModelError(f"model {walk.model}: cannot split {stuck}, and layer {name} follows it")
        walk.blocked[node] = stuck
        return
    try:
        step = _step(walk, name, sub, node)
    except CannotSplitError as reason:
        walk.blocked[node] = f"layer {name} ({reason})"
        return
    if isinstance(step, _Step):
        walk.steps.append(step)
        for source in step.inputs:
            if source != PICTURE:
                walk.steps[source].readers += 1
        walk.maps[node] = len(walk.steps) - 1
    else:
        walk.maps[node] = step


def _step(walk: _Walk, name: str, sub: nn.Module | None, node: fx.Node) -> _Step | int:
    """The step for a node, or the number of the step whose output it passes on unchanged."""
    if node.target in ADDITIONS or node.target in CONCATENATIONS:
        return _joined(walk, name, node)
    if sub is None:
        if node.target not in FUNCTIONS or node.args[:1] == () or node.args[0] not in walk.maps:
            raise CannotSplitError(f"the operation {getattr(node.target, '__name__', node.target)}")
        sub = module_of(node.target, node.args[1:], dict(node.kwargs))
    if len(node.all_input_nodes) != 1:
        raise CannotSplitError(type(sub).__name__)
    source = walk.maps[node.all_input_nodes[0]]
    layer = layer_of(name, sub, walk.shape(source))
    return source if layer is None else _Step(layer, (source,))


def _joined(walk: _Walk, name: str, node: fx.Node) -> _Step:
    """The step for an addition of two maps, or a concatenation of any number along the channels."""
    parts: Any = node.args
    plain = len(parts) == 2 and not node.kwargs
    if node.target in CONCATENATIONS:
        parts = node.args[0] if node.args else None
        axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        plain = isinstance(parts, list | tuple) and axis in (1, -3)
    if not plain or not all(isinstance(part, fx.Node) and part in walk.maps for part in parts):
        raise CannotSplitError(f"the operation {name}")
    sources = tuple(walk.maps[part] for part in parts)
    make = add_layer if node.target in ADDITIONS else concat_layer
    return _Step(make(name, [walk.shape(source) for source in sources]), sources)


def _cut_head(walk: _Walk, module: fx.GraphModule) -> tuple[fx.GraphModule, tuple[int, ...]]:
    """The module of all blocked nodes and the output, and the steps whose maps are its arguments, in order."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    arguments: dict[int, fx.Node] = {}
    output = next(node for node in module.graph.nodes if node.op == "output")
    wanted = [node for node in module.graph.nodes if node in walk.blocked]
    for node in [*wanted, output]:
        for source in node.all_input_nodes:
            if source in walk.maps and walk.maps[source] not in arguments:
                arguments[walk.maps[source]] = graph.placeholder(f"map_{len(arguments)}")
    for node in module.graph.nodes:
        if node in walk.maps:
            if walk.maps[node] in arguments:
                copies[node] = arguments[walk.maps[node]]
        elif node.op in ("get_attr", "output") or node in walk.blocked:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    for source in arguments:
        if source != PICTURE:
            walk.steps[source].readers += 1
    return fx.GraphModule(module, graph).eval(), tuple(arguments)


def _units(walk: _Walk, head: fx.GraphModule, head_inputs: tuple[int, ...], gather: str) -> tuple[Unit, ...]:
    """Group the steps: a unit goes on as long as its output has one reader, and ends at ``gather``."""
    chains: list[list[int]] = []
    chain_of: dict[int, int] = {}
    for i, step in enumerate(walk.steps):
        before = step.inputs[0]
        chain = chain_of.get(before, -1)
        if len(step.inputs) == 1 and chain >= 0 and walk.steps[before].readers == 1 and chains[chain][-1] == before:
            has_conv = any(walk.steps[j].layer.has_kernels for j in chains[chain])
            reads_picture = walk.steps[chains[chain][0]].inputs == (PICTURE,)
            takes_conv = not has_conv and (gather == "conv" or reads_picture)
            joins = takes_conv or (gather == "pool" and not step.layer.has_kernels)
        else:
            joins = False
        if not joins:
            chains.append([])
            chain = len(chains) - 1
        chains[chain].append(i)
        chain_of[i] = chain
    ends = {chain[-1]: unit for unit, chain in enumerate(chains)}
    ends[PICTURE] = PICTURE
    tail: list[Layer] = []
    last = chains[-1] if chains else []
    if gather == "conv" and head_inputs == tuple(last[-1:]) and not any(walk.steps[i].layer.has_kernels for i in last):
        tail = [walk.steps[i].layer for i in last]
        head_inputs = walk.steps[last[0]].inputs
        chains.pop()
    names = _names([[walk.steps[i].layer for i in chain] for chain in chains])
    units = [
        Unit(name, tuple(walk.steps[i].layer for i in chain), tuple(ends[i] for i in walk.steps[chain[0]].inputs))
        for name, chain in zip(names, chains, strict=True)
    ]
    shapes = (tail[-1].out_shape,) if tail else tuple(walk.shape(i) for i in head_inputs)
    layers = (*tail, _head_layer(head, shapes))
    return (*units, Unit("head", layers, tuple(ends[i] for i in head_inputs)))


def _head_layer(head: fx.GraphModule, shapes: tuple[Shape, ...]) -> Layer:
    """The head as one opaque layer whose output is a single element on the root."""
    tensors = [*head.named_parameters(), *head.named_buffers()]
    params = tuple(Param("head", name, tuple(tensor.shape)) for name, tensor in tensors if tensor.is_floating_point())
    calls = [head.get_submodule(str(node.target)) for node in head.graph.nodes if node.op == "call_module"]
    flops = sum(2 * module.in_features * module.out_features for module in calls if isinstance(module, nn.Linear))
    return Layer("head", "head", shapes, (1, 1, 1), params=params, options={"flops": flops})


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
