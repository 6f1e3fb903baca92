"""What boxes cannot describe: a part of the model that the root runs with the model's own modules."""

from __future__ import annotations

import linecache
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from mpiconv.graph.calls import writes
from mpiconv.graph.flops import flops_of
from mpiconv.graph.form import Layer, Param, Shape
from mpiconv.graph.layers import Map
from mpiconv.graph.noted import PREFIX
from mpiconv.graph.tracers import Captured


class Packed(nn.Module):
    """Operations that end in the model's output, packed as the model returns it."""

    def __init__(self, module: fx.GraphModule, captured: Captured) -> None:
        super().__init__()
        self.flat, self.captured = module, captured

    def forward(self, *maps: torch.Tensor) -> Any:
        """Maps (N, C, H, W) to the model's output."""
        return self.captured.packed(self.flat(*maps))


@dataclass(frozen=True)
class Region:
    """A module, the steps whose maps are its arguments, in order, and its FLOPs for the whole batch."""

    module: nn.Module
    flat: fx.GraphModule
    sources: tuple[int, ...]
    flops: int

    def layer(self, name: str, kind: str, shapes: tuple[Shape, ...], out: Shape, batch: int) -> Layer:
        """It as one opaque layer that reads maps of these shapes, ``batch`` of them at a time."""
        tensors = [*self.flat.named_parameters(), *self.flat.named_buffers()]
        params = tuple(
            Param(kind, key, tuple(tensor.shape)) for key, tensor in tensors if tensor.dtype == torch.float32
        )
        return Layer(name, kind, shapes, out, params=params, options={"flops": self.flops // batch})


def cut(captured: Captured, values: Mapping[fx.Node, Any], wanted: fx.Node, skip: fx.Node | None = None) -> Region:
    """The operations that compute a node, or the model's output, from maps; the value of ``skip`` does not count."""
    members: set[fx.Node] = set()
    stack = [wanted]
    while stack:
        node = stack.pop()
        if node not in members:
            members.add(node)
            if not isinstance(values.get(node), Map) or node is skip:
                stack.extend(node.all_input_nodes)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    arguments: dict[int, fx.Node] = {}
    for node in captured.nodes:
        value = values.get(node)
        if node in members and isinstance(value, Map) and node is not skip and value.step not in arguments:
            arguments[value.step] = graph.placeholder(f"map_{len(arguments)}")
    overwrites = any(writes(node) for node in members)
    method = "clone" if overwrites else "contiguous"  # the module's code may count on the order of memory
    order: dict[str, Any] = {"memory_format": torch.contiguous_format}
    sources = {step: graph.call_method(method, (argument,), order) for step, argument in arguments.items()}
    for node in captured.nodes:
        value = values.get(node)
        if node not in members:
            continue
        if isinstance(value, Map) and node is not skip:
            copies[node] = _ordered(graph, sources[value.step], value.order)
            continue
        copies[node] = graph.node_copy(node, lambda n: copies[n])
        if overwrites and node.op == "get_attr" and str(node.target).startswith(PREFIX):
            copies[node] = graph.call_method("clone", (copies[node],))  # made anew at every call of the model
    if wanted.op != "output":
        graph.output(copies[wanted])
    tensors = {str(node.target): captured.tensors[str(node.target)] for node in members if node.op == "get_attr"}
    flat = _forgotten_with(fx.GraphModule(dict(sorted(tensors.items())), graph).eval())
    flops = sum(flops_of(node) for node in members if not isinstance(values.get(node), Map) or node is skip)
    return Region(Packed(flat, captured).eval() if wanted.op == "output" else flat, flat, tuple(arguments), flops)


def _forgotten_with(module: fx.GraphModule) -> fx.GraphModule:
    """The module. torch.fx keeps the text of its code for tracebacks, now no longer than the module itself."""
    name = type(module).forward.__code__.co_filename
    kept = getattr(getattr(fx.graph_module, "_loader", None), "eval_cache", {})
    for texts in (linecache.cache, kept):
        weakref.finalize(module, texts.pop, name, None)
    return module


def _ordered(graph: fx.Graph, node: fx.Node, order: str) -> fx.Node:
    """A map (N, C, H, W) with its axes as the model has them there."""
    if order == "nhwc":
        return graph.call_method("permute", (node, 0, 2, 3, 1))
    return graph.call_method("flatten", (node, 1)) if order == "nc" else node


def whole_layer(name: str, region: Region, shapes: Sequence[Shape], made: Any, batch: int) -> Layer | None:
    """The region as one layer, if its output is a map; ``made`` is that output without values. Else None."""
    if not region.sources or not isinstance(made, torch.Tensor) or made.dim() != 4 or made.dtype != torch.float32:
        return None
    pictures, channels, rows, columns = (int(length) for length in made.shape)
    if pictures != batch:
        return None
    return region.layer(name, "whole", tuple(shapes), (channels, rows, columns), batch)
