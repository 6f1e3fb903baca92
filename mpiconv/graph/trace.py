"""Any ``nn.Module`` as a graph of units: the tracers find the operations, this groups them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from mpiconv.graph.calls import (
    CONVOLUTIONS,
    DROPOUTS,
    MOVES,
    PASSED_ON,
    TO_TYPE,
    CannotSplitError,
    Tensor,
    bound,
    kind_of,
)
from mpiconv.graph.form import PICTURE, Graph, Layer, Shape, Unit
from mpiconv.graph.grouping import Gather, Step, grouped, live, single_layers
from mpiconv.graph.layers import Map, build, resample
from mpiconv.graph.region import cut, whole_layer
from mpiconv.graph.resample import numbered, selection
from mpiconv.graph.tracers import Captured, captured_once


@dataclass(frozen=True)
class Traced:
    """A network as a graph, with what it takes to run it.

    Attributes
    ----------
    layers
        The network with every layer as a unit of its own.
    modules
        The torch modules of the layers that only the root runs, by the layer's name; the head's is called ``head``.
    tensors
        The weights and other constants that the layers name, by their key.
    tracer
        How the operations were found: ``run`` or ``export``.
    """

    layers: Graph
    modules: dict[str, nn.Module]
    tensors: dict[str, torch.Tensor]
    tracer: str = "run"

    @cached_property
    def graph(self) -> Graph:
        """Its layers grouped into units, as a plan has them unless told otherwise."""
        return self.grouped()

    @property
    def head(self) -> nn.Module:
        """The module of the head's last layer: from maps (N, C, H, W) to the model's output."""
        return self.modules["head"]

    def grouped(self, gather: Gather = "pool", head: str = "root") -> Graph:
        """Its layers grouped into units, as ``mpiconv.graph.grouping.grouped`` does it."""
        return grouped(self.layers, gather, head)


@dataclass(frozen=True)
class Moved:
    """Parts of a map in another order: tensors of the numbers of its elements."""

    source: Map
    value: Any


@dataclass
class _Walk:
    """What is known while walking along the operations; a node without a value can only be run by the root."""

    captured: Captured
    batch: int
    picture: Shape
    steps: list[Step] = field(default_factory=list)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    values: dict[fx.Node, Any] = field(default_factory=dict)

    def add(self, layer: Layer, *sources: Map) -> Map:
        """Note a layer; the map it makes."""
        self.steps.append(Step(layer, tuple(source.step for source in sources)))
        return Map(len(self.steps) - 1, layer.out_shape)

    def shape(self, step: int) -> Shape:
        """Shape (C, H, W) of what a step makes."""
        return self.picture if step == PICTURE else self.steps[step].layer.out_shape


def trace(model: nn.Module, picture: Sequence[int], *, batch: int = 1, tracer: str = "run") -> Traced:
    """Turn a module into a graph of layers; it is put into evaluation mode.

    What boxes cannot describe is computed by the root: as the head, where no convolution follows, else as a layer of
    its own.

    Parameters
    ----------
    model
        A module with one input and any output.
    picture
        (C, H, W) of its input.
    batch
        N, the number of pictures that travel together: a module may compute with it.
    tracer
        ``run``: the operations are noted while the module runs without values; ``export``: those that torch.export
        finds.

    Raises
    ------
    ModelError
        What is computed depends on the pictures' content; the line is named.

    Examples
    --------
    >>> trace(mpiconv.load_model("alexnet"), (3, 227, 227)).graph.unit_names
    ('features.0', 'features.3', 'features.6', 'features.8', 'features.10', 'head')
    """
    channels, rows, columns = (int(length) for length in picture)
    name = _name_of(model)
    captured = captured_once(model.eval(), (batch, channels, rows, columns), name, tracer)
    walk = _Walk(captured, batch, (channels, rows, columns))
    ahead = _before_a_convolution(captured)
    for node in captured.nodes:
        if node.op == "placeholder":
            walk.values[node] = Map(PICTURE, walk.picture)
        elif node.op == "get_attr":
            tensor = captured.tensors[str(node.target)]
            walk.values[node] = Tensor(str(node.target), tuple(tensor.shape), tensor.dtype)
        elif node.op.startswith("call"):
            _visit(walk, node, worth=node in ahead)
    output = next(node for node in captured.nodes if node.op == "output")
    rest = cut(captured, walk.values, output)
    steps, sources = live(walk.steps, rest.sources)
    shapes = tuple(walk.shape(source) for source in rest.sources)
    head = Unit("head", (rest.layer("head", "head", shapes, (1, 1, 1), batch),), sources)
    units = [Unit(step.layer.name, (step.layer,), step.inputs) for step in steps]
    modules = {step.layer.name: walk.modules[step.layer.name] for step in steps if step.layer.opaque}
    graph = single_layers(Graph(name, walk.picture, (*units, head)))
    return Traced(graph, modules | {"head": rest.module}, captured.tensors, captured.tracer)


def _name_of(model: nn.Module) -> str:
    """What the model's ``info`` calls it, else its class."""
    return str(getattr(getattr(model, "info", None), "name", type(model).__name__))


def _before_a_convolution(captured: Captured) -> set[fx.Node]:
    """The operations that are a convolution or have one behind them."""
    found: set[fx.Node] = set()
    for node in reversed(captured.nodes):
        own = node.op.startswith("call") and kind_of(node) in CONVOLUTIONS
        if own or any(user in found for user in node.users):
            found.add(node)
    return found


def _visit(walk: _Walk, node: fx.Node, *, worth: bool) -> None:
    """Give the node a value if it has one: a map by new steps, a moved map, a number.

    ``worth`` says that a convolution follows, so that what the root alone can compute is handed on.
    """
    kind = kind_of(node)
    try:
        if worth:
            _hand_on(walk, node, kind)
        if kind in PASSED_ON or (kind in TO_TYPE and _is_float(node) and _is_float(node.args[0])):
            _refuse_noise(node, kind)
            walk.values[node] = _value(walk, node.args[0])
        elif kind in MOVES:
            walk.values[node] = _moved(walk, node, kind)
        else:
            given = fx.node.map_arg(
                bound(node.target, node.args, node.kwargs, usual=False), lambda n: _operand(walk, n)
            )
            steps = len(walk.steps)
            made = build(kind, walk.add, _layer_name(node), given)
            if not _is_float(node) or tuple(node.meta["value"].shape) != _tensor_shape(made, walk.batch):
                del walk.steps[steps:]
                raise CannotSplitError(f"{kind} that makes something else than a map")
            walk.values[node] = made
    except CannotSplitError:
        pass


def _is_float(node: Any) -> bool:
    """Whether an operation makes one tensor of float32."""
    made = node.meta["value"] if isinstance(node, fx.Node) else None
    return isinstance(made, torch.Tensor) and made.dtype == torch.float32


def _tensor_shape(made: Map, batch: int) -> tuple[int, ...]:
    """The shape of the tensor that a map is."""
    channels, rows, columns = made.shape
    if made.order == "nc":
        return batch, channels * rows * columns
    return (batch, rows, columns, channels) if made.order == "nhwc" else (batch, channels, rows, columns)


def _layer_name(node: fx.Node) -> str:
    """The name of torch.nn's module that it is of; or of the module whose weights it reads; or its own."""
    if node.meta["name"]:
        return str(node.meta["name"])
    keys = [str(arg.target) for arg in node.all_input_nodes if arg.op == "get_attr" and "." in str(arg.target)]
    return keys[0].rpartition(".")[0] if keys else node.name


def _refuse_noise(node: fx.Node, kind: str) -> None:
    if kind in DROPOUTS:
        given = bound(node.target, node.args, node.kwargs)
        if given.get("training", given.get("train")) is not False:
            raise CannotSplitError("a dropout that is always on")


def _value(walk: _Walk, node: Any) -> Any:
    if not isinstance(node, fx.Node) or node not in walk.values:
        raise CannotSplitError("an operation on what only the root has")
    return walk.values[node]


def _operand(walk: _Walk, node: fx.Node) -> Any:
    """What a builder gets for a node: a Map or a Tensor."""
    value = _value(walk, node)
    if isinstance(value, Moved):
        value = walk.values[node] = _picked(walk, value, node.name)
    return value


def _moved(walk: _Walk, node: fx.Node, kind: str) -> Moved | Map:
    """What an operation that moves elements does, found by doing it to their numbers."""
    sources: list[Map] = []

    def numbers(source: fx.Node) -> Any:
        value = _value(walk, source)
        if isinstance(value, Tensor):
            raise CannotSplitError("moving the elements of a constant, or by one")
        sources.append(value if isinstance(value, Map) else value.source)
        return _numbers(value, walk.batch) if isinstance(value, Map) else value.value

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), numbers)
    if len({source.step for source in sources}) > 1 and kind not in ("expand_as", "view_as", "reshape_as"):
        raise CannotSplitError(kind)
    try:
        if node.op == "call_method":
            result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            result = node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception as error:  # whatever it is, it is no move that can be followed
        raise CannotSplitError(f"{kind}: {error}") from None
    moved = Moved(sources[0], result)
    return (_unchanged(walk, moved) if isinstance(result, torch.Tensor) else None) or moved


def _numbers(source: Map, batch: int) -> torch.Tensor:
    plain = numbered(source.shape, batch)
    return {"nchw": plain, "nhwc": plain.permute(0, 2, 3, 1), "nc": plain.flatten(1)}[source.order]


_AS_MAP: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nchw": lambda t: t,
    "nhwc": lambda t: t.permute(0, 3, 1, 2) if t.dim() == 4 else t,
    "nc": lambda t: t[:, :, None, None] if t.dim() == 2 else t,
}


def _unchanged(walk: _Walk, moved: Moved) -> Map | None:
    """The map itself, if only the order of its axes has changed, or if it was flattened for a linear layer."""
    if torch.equal(moved.value, numbered(moved.source.shape, walk.batch).flatten(1)):
        return Map(moved.source.step, moved.source.shape, "nc")
    for order, back in _AS_MAP.items():
        if selection(back(moved.value), moved.source.shape, walk.batch) == (None, None, None):
            return Map(moved.source.step, moved.source.shape, order)
    return None


def _picked(walk: _Walk, moved: Moved, name: str) -> Map:
    """The map made of some channels, rows and columns of another, as a step."""
    if isinstance(moved.value, torch.Tensor):
        for order, back in _AS_MAP.items():
            tables = selection(back(moved.value), moved.source.shape, walk.batch)
            if tables is not None:
                made = resample(walk.add, name, Map(moved.source.step, moved.source.shape), tables)
                return Map(made.step, made.shape, order)
    raise CannotSplitError("elements in an order that is no map")


def _hand_on(walk: _Walk, node: fx.Node, kind: str) -> None:
    """Make what only the root can compute a unit of its own, where a convolution or a layer of two maps reads it."""
    sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
    has_map = any(isinstance(walk.values.get(source), Map | Moved) for source in sources)
    for source in sources:
        value = walk.values.get(source)
        if isinstance(value, Moved) and kind in CONVOLUTIONS:
            try:
                _operand(walk, source)
                continue
            except CannotSplitError:
                pass
        if (value is None or (isinstance(value, Moved) and kind in CONVOLUTIONS)) and (kind in CONVOLUTIONS or has_map):
            region = cut(walk.captured, walk.values, source, skip=source)
            shapes = [walk.shape(step) for step in region.sources]
            name = f"{source.name}.whole" if source.name == "head" else source.name
            layer = whole_layer(name, region, shapes, source.meta["value"], walk.batch)
            if layer is not None:
                walk.steps.append(Step(layer, region.sources))
                walk.modules[name] = region.module
                walk.values[source] = Map(len(walk.steps) - 1, layer.out_shape)
