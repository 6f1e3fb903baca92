"""What boxes cannot describe: a part of the model that the root runs with the model's own modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from mpiconv.nets.calls import ACTIVATIONS, PASSED_ON, is_inplace, kind_of
from mpiconv.nets.graph import Layer, Param, Shape
from mpiconv.nets.layers import Map
from mpiconv.nets.tracers import Captured, packed_output, quiet

CHEAP = {*ACTIVATIONS, *PASSED_ON, "clone", "flatten", "softmax", "log_softmax"}
"""Without FLOPs, and nothing that would let a fully connected layer run several times a picture."""

PROBED = 2
"""Pictures in the batch that a region's output shape is found with; one would hide what mixes them."""


class Packed(nn.Module):
    """A module traced by torch.export, with its outputs packed as the model returns them."""

    def __init__(self, module: fx.GraphModule, captured: Captured) -> None:
        super().__init__()
        self.flat, self.captured = module, captured

    def forward(self, *maps: torch.Tensor) -> Any:
        """Maps (N, C, H, W) to the model's output."""
        return packed_output(self.captured, self.flat(*maps))


@dataclass(frozen=True)
class Region:
    """A module, and the steps whose maps are its arguments, in order."""

    module: nn.Module
    flat: fx.GraphModule
    sources: tuple[int, ...]

    def layer(self, name: str, kind: str, shapes: tuple[Shape, ...], out: Shape, flops: int | None = None) -> Layer:
        """It as one opaque layer that reads maps of these shapes; ``flops`` for one picture, counted if not given."""
        tensors = [*self.flat.named_parameters(), *self.flat.named_buffers()]
        params = tuple(Param(kind, key, tuple(tensor.shape)) for key, tensor in tensors if tensor.is_floating_point())
        if flops is None:
            kinds = {kind_of(self.flat, node) for node in self.flat.graph.nodes if node.op.startswith("call")}
            flops = self._linear_flops() if kinds <= {*CHEAP, "linear"} else self.probed(shapes)[1]
        return Layer(name, kind, shapes, out, params=params, options={"flops": flops})

    def probed(self, shapes: Sequence[Shape]) -> tuple[Any, int]:
        """What it returns for maps of these shapes, without computing it, and its FLOPs for one picture."""
        from torch._subclasses.fake_tensor import (
            FakeTensorMode,
        )  # a second of imports that most networks can do without
        from torch.utils.flop_counter import FlopCounterMode

        counter = FlopCounterMode(display=False)
        try:
            with quiet(), FakeTensorMode(allow_non_fake_inputs=True), counter, torch.inference_mode():
                output = self.module(*(torch.empty(PROBED, *shape) for shape in shapes))
        except Exception:  # what depends on data has no shape before it is run
            return None, self._linear_flops()
        return output, counter.get_total_flops() // PROBED

    def _linear_flops(self) -> int:
        """FLOPs of the fully connected layers, each run once a picture."""
        calls = [node for node in self.flat.graph.nodes if node.op == "call_module"]
        modules = [self.flat.get_submodule(str(node.target)) for node in calls]
        return sum(2 * m.in_features * m.out_features for m in modules if isinstance(m, nn.Linear))


def cut(captured: Captured, values: Mapping[fx.Node, Any], wanted: fx.Node, skip: fx.Node | None = None) -> Region:
    """The region that computes a node, or the model's output, from maps; a value of ``skip`` is not looked at."""
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
    sources = dict(arguments)
    if any(is_inplace(captured.module, node) for node in members):
        sources = {step: graph.call_method("clone", (argument,)) for step, argument in arguments.items()}
    for node in captured.nodes:
        value = values.get(node)
        if node not in members:
            continue
        if isinstance(value, Map) and node is not skip:
            copies[node] = _ordered(graph, sources[value.step], value.order)
        elif node.op != "placeholder":
            copies[node] = graph.node_copy(node, lambda n: copies[n])
        else:
            copies[node] = graph.create_node("call_function", _nothing, ())
    if wanted.op != "output":
        graph.output(copies[wanted])
    flat = fx.GraphModule(captured.module, graph)
    flat.eval()
    packs = wanted.op == "output" and captured.packed is not None
    return Region(Packed(flat, captured).eval() if packs else flat, flat, tuple(arguments))


def _nothing() -> None:
    """What stands for an optional input of the model."""
    return


def _ordered(graph: fx.Graph, node: fx.Node, order: str) -> fx.Node:
    """A map (N, C, H, W) with its axes as the model has them there."""
    if order == "nhwc":
        return graph.call_method("permute", (node, 0, 2, 3, 1))
    return graph.call_method("flatten", (node, 1)) if order == "nc" else node


def whole_layer(name: str, region: Region, shapes: Sequence[Shape]) -> Layer | None:
    """The region as one layer that makes a map, None where what it makes is none."""
    if not region.sources:
        return None
    output, flops = region.probed(shapes)
    if not isinstance(output, torch.Tensor) or output.dim() != 4 or output.shape[0] != PROBED:
        return None
    if output.dtype != torch.float32:
        return None
    channels, rows, columns = (int(length) for length in output.shape[1:])
    return region.layer(name, "whole", tuple(shapes), (channels, rows, columns), flops)
