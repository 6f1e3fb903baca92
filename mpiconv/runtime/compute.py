"""What one rank computes: the layers of a unit on its box, with eager torch. Padding only at the map's true edges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter, sleep, thread_time
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from mpiconv.nets.graph import Layer, Unit
from mpiconv.partition import Box, Span
from mpiconv.partition.receptive import layer_boxes, needed, reach

Operation = Callable[..., torch.Tensor]
Weights = Mapping[str, torch.Tensor]


class LocalUnit:
    """A unit on a box: called with a tensor per input, each (N, *needed box), it returns (N, *box).

    Parameters
    ----------
    unit, box
        What to compute; the box is not empty.
    weights
        The tensors of every layer by role, sliced to the channels that the layer computes, one mapping per layer.
    """

    def __init__(self, unit: Unit, box: Box, weights: Sequence[Weights]) -> None:
        boxes = layer_boxes(unit, box)
        self.operations = [
            build(layer, out, mine, first=i == 0)
            for i, (layer, out, mine) in enumerate(zip(unit.layers, boxes, weights, strict=True))
        ]

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Run the layers one after the other."""
        first, *rest = self.operations
        tensor = first(*inputs)
        for operation in rest:
            tensor = operation(tensor)
        return tensor


class Paced:
    """A computation on a slower device: after it took t of CPU time it sleeps until ``pace`` times t has passed.

    ``overrun`` counts the calls that took longer than that anyway, because others wanted the core too.
    """

    def __init__(self, compute: Callable[..., Any], pace: float) -> None:
        self.compute, self.pace = compute, pace
        self.calls = self.overrun = 0

    def __call__(self, *inputs: Any) -> Any:
        """Compute, then sleep."""
        begin, busy = perf_counter(), thread_time()
        output = self.compute(*inputs)
        rest = begin + self.pace * (thread_time() - busy) - perf_counter()
        self.calls += 1
        if rest > 0:
            sleep(rest)
        else:
            self.overrun += 1
        return output


def build(layer: Layer, box: Box, weights: Weights, *, first: bool) -> Operation:
    """The function that computes ``box`` of a layer's output from the boxes of its inputs that it needs.

    ``first`` says that the inputs are not this unit's own, so that nothing may be written over them.
    """
    inputs = needed(layer, box)
    if layer.kind == "conv":
        return _conv(layer, box, inputs[0], weights)
    if layer.kind == "norm":
        mean, var = weights["running_mean"], weights["running_var"]
        scale, shift, eps = weights.get("weight"), weights.get("bias"), layer.options["eps"]
        return lambda x: F.batch_norm(x, mean, var, scale, shift, False, 0.0, eps)
    if layer.kind == "activation":
        module: nn.Module = getattr(nn, layer.options["module"])(**layer.options["arguments"])
        if not first and "inplace" in getattr(module, "__constants__", ()):
            module.inplace = True  # type: ignore[assignment]
        return module.eval()
    if layer.kind in ("maxpool", "avgpool"):
        return _pool(layer, box, inputs[0])
    if layer.kind == "add":
        return _sum
    if layer.kind == "concat":
        kept = [i for i, part in enumerate(inputs) if part]
        return lambda *maps: torch.cat([maps[i] for i in kept], 1)
    raise ValueError(f"layer {layer.name} of kind {layer.kind} is none that a rank computes on a box")


def _sum(*maps: torch.Tensor) -> torch.Tensor:
    total = maps[0] + maps[1]
    for more in maps[2:]:
        total += more
    return total


def _edges(layer: Layer, box: Box, held: Box) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of padding (before, after) around what is held; negative where less than that is read."""
    rows, columns = (
        (have.lo - read.lo, read.hi - have.hi)
        for read, have in zip(reach(layer, box), (held.rows, held.columns), strict=True)
    )
    return rows, columns


def _conv(layer: Layer, box: Box, held: Box, weights: Weights) -> Operation:
    """The convolution, padded by itself along an axis that is whole and evenly padded, else explicitly."""
    padding, around = [0, 0], [(0, 0), (0, 0)]
    for axis, edges in enumerate(_edges(layer, box, held)):
        before, after = layer.padding[axis]
        if box.shape[1 + axis] == layer.out_shape[1 + axis] and before == after:
            padding[axis] = before
        else:
            around[axis] = edges
    pad = _padding(around[0], around[1])
    pieces = _group_pieces(layer, box.channels)
    start, first = box.channels.lo, held.channels.lo
    kernels, bias = weights["weight"], weights.get("bias")
    calls = []
    for outs, ins, groups in pieces:
        mine = slice(outs.lo - start, outs.hi - start)
        calls.append(
            (slice(ins.lo - first, ins.hi - first), kernels[mine], None if bias is None else bias[mine], groups)
        )

    def conv(x: torch.Tensor) -> torch.Tensor:
        x = pad(x)
        if len(calls) == 1:
            _, weight, shift, groups = calls[0]
            return F.conv2d(x, weight, shift, layer.stride, tuple(padding), layer.dilation, groups)
        return torch.cat(
            [
                F.conv2d(x[:, ins], weight, shift, layer.stride, tuple(padding), layer.dilation, groups)
                for ins, weight, shift, groups in calls
            ],
            1,
        )

    return conv


def _group_pieces(layer: Layer, channels: Span) -> list[tuple[Span, Span, int]]:
    """Cut output channels into runs that one grouped convolution computes: (output channels, input channels, groups).

    A slice that starts or ends inside a group takes that group alone; the whole groups between go together.
    """
    outs, ins = layer.out_shape[0] // layer.groups, layer.in_shapes[0][0] // layer.groups
    pieces, lo = [], channels.lo
    while lo < channels.hi:
        group = lo // outs
        whole = (channels.hi - lo) // outs if lo % outs == 0 else 0
        hi = lo + whole * outs if whole else min(channels.hi, (group + 1) * outs)
        groups = max(whole, 1)
        pieces.append((Span(lo, hi), Span(group * ins, (group + groups) * ins), groups))
        lo = hi
    return pieces


def _pool(layer: Layer, box: Box, held: Box) -> Operation:
    options, kernel, stride = layer.options, layer.kernel, layer.stride
    if box.shape[1:] == layer.out_shape[1:]:
        padding = (layer.padding[0][0], layer.padding[1][0])
        if layer.kind == "maxpool":
            return lambda x: F.max_pool2d(x, kernel, stride, padding, layer.dilation, options["ceil_mode"])
        include, override = options["count_include_pad"], options["divisor_override"]
        return lambda x: F.avg_pool2d(x, kernel, stride, padding, options["ceil_mode"], include, override)
    edges = _edges(layer, box, held)
    if layer.kind == "maxpool":
        pad = _padding(*edges, value=-torch.inf)
        return lambda x: F.max_pool2d(pad(x), kernel, stride, 0, layer.dilation)
    pad, divisor = _padding(*edges), _divisor(layer, box)
    return lambda x: F.avg_pool2d(pad(x), kernel, stride, divisor_override=1) / divisor


def _padding(rows: tuple[int, int], columns: tuple[int, int], value: float = 0) -> Operation:
    """The function that adds so many rows and columns around a map, and takes away where the number is negative."""
    around = [*columns, *rows]
    more, less = [max(n, 0) for n in around], [min(n, 0) for n in around]
    if not any(around):
        return lambda x: x
    if not any(less):
        return lambda x: F.pad(x, more, value=value)
    return lambda x: F.pad(F.pad(x, more, value=value), less)


def _divisor(layer: Layer, box: Box) -> torch.Tensor:
    """What each sum of an average pooling is divided by, as torch counts it: (h, w) of the box."""
    if layer.options["divisor_override"]:
        return torch.tensor(float(layer.options["divisor_override"]))
    counts = []
    for axis, span in enumerate((box.rows, box.columns)):
        length, (before, after) = layer.in_shapes[0][1 + axis], layer.padding[axis]
        low = torch.arange(span.lo, span.hi) * layer.stride[axis] - before
        high = (low + layer.kernel[axis]).clamp(max=length + after)
        if not layer.options["count_include_pad"]:
            low, high = low.clamp(min=0), high.clamp(max=length)
        counts.append((high - low).float())
    return counts[0][:, None] * counts[1][None, :]
