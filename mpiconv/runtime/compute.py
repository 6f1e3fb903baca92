"""What one rank computes: the layers of a unit on its box. Padding only at the map's true edges."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from time import perf_counter, sleep, thread_time
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from mpiconv.nets.graph import Layer, Pair, Unit
from mpiconv.partition import Box, Span
from mpiconv.partition.plan import FLOAT_BYTES
from mpiconv.partition.receptive import layer_boxes, needed, reach
from mpiconv.runtime import fuser, onednn, operations

Operation = Callable[..., torch.Tensor]
Weights = Mapping[str, torch.Tensor]
Make = Callable[..., Operation]
Form = Callable[[Layer | None], tuple[Make, bool]]
"""What makes convolutions with a certain activation after them, and whether they include that."""

WORTH_COMPUTING = 4
"""Of so many rows of a band one more may be computed and dropped."""

FUSED = {"conv", "norm", "activation", "maxpool", "avgpool", "add"}
"""The kinds of layers that torch's fuser knows."""


class LocalUnit:
    """A unit on a box: called with a tensor per input, each (N, *needed box), it returns (N, *box).

    Parameters
    ----------
    unit, box
        What to compute; the box is not empty.
    weights
        The tensors of every layer by role, sliced to the channels that the layer computes, one mapping per layer.
    batch
        N, the number of pictures that travel together.
    compute
        ``eager``: torch's operations one by one. ``auto``: a unit of convolutions, norms, activations, poolings and
        additions is compiled by torch's fuser for oneDNN, when it is called first; where this torch lacks that, a
        convolution and the activation after it are one call of oneDNN with reordered weights, where it has that.
    padded
        Whether the first layer's input comes with its ``margin`` around it.
    sliced
        Whether the unit is split by channels. Of a large map oneDNN computes a pointwise convolution and the depthwise
        one after it in one go, adding in another order, but slices one after the other: then all are computed so.
    packed
        Reordered weights that several pieces of a box share; the unit is not compiled then.
    """

    def __init__(
        self,
        unit: Unit,
        box: Box,
        weights: Sequence[Weights],
        batch: int = 1,
        compute: str = "eager",
        *,
        padded: bool = False,
        sliced: bool = False,
        packed: onednn.Packed | None = None,
    ) -> None:
        layers = list(operations.folded(unit.layers, layer_boxes(unit, box), weights))
        compiled = compute == "auto" and packed is None and _compiles(unit) and fuser.available()
        form: Form | None = None
        if compiled:
            form = _to_be_fused
        elif compute == "auto" and onednn.available():
            form = partial(_reordered, batch, {} if packed is None else packed)
        self.operations: list[Operation] = []
        self._together = 0
        while layers:
            first = not self.operations
            bare = padded and first
            layer, out, mine = layers[0]
            if form and layer.kind == "conv":
                if compiled and sliced and self.operations and layer.groups > 1:
                    self.operations.append(_apart(needed(layer, out)[0]))
                operation, used = _with_activation(layers, form, bare=bare)
            else:
                operation, used = build(layer, out, mine, first=first or compiled, bare=bare), 1
            self.operations.append(operation)
            layers = layers[used:]
            if layer.kind == "conv" or not onednn.slow_at_edges():
                self._together = len(self.operations)
        self._run: Operation = self._compiled if compiled else _chain(self.operations)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Run the layers."""
        return self._run(*inputs)

    def _compiled(self, *inputs: torch.Tensor) -> torch.Tensor:
        fused = fuser.fused(_chain(self.operations[: self._together]), inputs)
        rest = self.operations[self._together :]
        self._run = _chain([fused, *rest])
        return self._run(*inputs)


def _apart(box: Box) -> Operation:
    """What keeps the fuser from computing what is before it and what is after it, on that box, in one go."""
    count = len(box.channels)
    return lambda x: x[:, :count]


def _chain(operations: Sequence[Operation]) -> Operation:
    """The function that runs one after the other."""
    first, *rest = operations
    if not rest:
        return first

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        tensor = first(*inputs)
        for operation in rest:
            tensor = operation(tensor)
        return tensor

    return run


def weights_of(unit: Unit, box: Box, weights: Sequence[Weights], piece: Box) -> list[dict[str, torch.Tensor]]:
    """The weights for a piece of a box, as views of those for the box."""
    found = []
    for whole, part, mine in zip(layer_boxes(unit, box), layer_boxes(unit, piece), weights, strict=True):
        rows = slice(part.channels.lo - whole.channels.lo, part.channels.hi - whole.channels.lo)
        found.append({role: tensor[rows] for role, tensor in mine.items()})
    return found


class Paced:
    """A computation on a slower device: it takes ``pace`` times as long, the rest of it asleep.

    How long it takes on this core undisturbed is the median CPU time of second runs on the same input during the first
    calls: later ones find the caches cold from sleeping, which a slower device would not. ``overrun`` counts the calls
    after those that took longer than ``pace`` times that anyway, because others wanted the core too.
    """

    TRIED = 3

    def __init__(self, compute: Callable[..., Any], pace: float) -> None:
        self.compute, self.pace = compute, pace
        self.tried: list[float] = []
        self.calls = self.overrun = 0

    def __call__(self, *inputs: Any) -> Any:
        """Compute, then sleep."""
        begin = perf_counter()
        output = self.compute(*inputs)
        if len(self.tried) < self.TRIED:
            busy = thread_time()
            output = self.compute(*inputs)
            self.tried.append(thread_time() - busy)
        else:
            self.calls += 1
        rest = begin + self.pace * median(self.tried) - perf_counter()
        if rest > 0:
            sleep(rest)
        elif len(self.tried) == self.TRIED and self.calls:
            self.overrun += 1
        return output


def margin(unit: Unit, box: Box) -> tuple[tuple[int, int], tuple[int, int], float]:
    """Rows and columns (before, after) that the first layer pads what it needs with, and the value.

    All 0 where the operation pads by itself, reads less than it is given, or does not pad.
    """
    layer, out = unit.layers[0], layer_boxes(unit, box)[0]
    nothing = (0, 0), (0, 0), 0.0
    if layer.kind == "conv":
        value, (rows, columns) = 0.0, _conv_padding(layer, out, needed(layer, out)[0])[1]
    elif layer.kind == "maxpool" and out.shape[1:] != layer.out_shape[1:]:
        value, (rows, columns) = -math.inf, _edges(layer, out, needed(layer, out)[0])
    else:
        return nothing
    return (rows, columns, value) if min(*rows, *columns) >= 0 else nothing


def build(layer: Layer, box: Box, weights: Weights, *, first: bool, bare: bool = False) -> Operation:
    """The function that computes ``box`` of a layer's output from the boxes of its inputs that it needs.

    ``first`` says that the inputs are not this unit's own, so that nothing may be written over them; ``bare`` that
    the ``margin`` is around them already.
    """
    inputs = needed(layer, box)
    if layer.kind == "conv":
        return _conv(layer, box, inputs[0], weights["weight"], weights.get("bias"), _eager_conv, bare=bare)
    if layer.kind == "norm":
        mean, var = weights["running_mean"], weights["running_var"]
        scale, shift, eps = weights.get("weight"), weights.get("bias"), layer.options["eps"]
        return lambda x: F.batch_norm(x, mean, var, scale, shift, False, 0.0, eps)
    if layer.kind == "activation":
        module = _activation(layer)
        if not first and "inplace" in getattr(module, "__constants__", ()):
            module.inplace = True  # type: ignore[assignment]
        return module
    if layer.kind in ("maxpool", "avgpool"):
        return _pool(layer, box, inputs[0], bare=bare)
    if layer.kind == "add":
        return _sum
    if layer.kind == "concat":
        kept = [i for i, part in enumerate(inputs) if part]
        return lambda *maps: torch.cat([maps[i] for i in kept], 1)
    return operations.build(layer, box, inputs, weights)


def _compiles(unit: Unit) -> bool:
    """Whether the fuser gains something for a unit: it knows all kinds of layers in it, and it is more than a sum.

    That is the same for all slices of a unit, so that they have the bits of the whole.
    """
    kinds = {layer.kind for layer in unit.layers}
    if onednn.slow_at_edges() and "conv" not in kinds:
        return False
    approximate = any(layer.options.get("arguments", {}).get("approximate") == "tanh" for layer in unit.layers)
    if not kinds <= FUSED or kinds == {"add"} or approximate:  # it takes any GELU for the exact one
        return False
    return FLOAT_BYTES * sum(param.size for param in unit.params) <= fuser.MOST_BYTES


def _with_activation(layers: Sequence[tuple[Layer, Box, Weights]], form: Form, *, bare: bool) -> tuple[Operation, int]:
    """A convolution with the activation right after it, if it fits, as one operation; how many layers that were."""
    layer, box, weights = layers[0]
    after = layers[1][0] if len(layers) > 1 and layers[1][0].kind == "activation" else None
    make, both = form(after)
    held = needed(layer, box)[0]
    return _conv(layer, box, held, weights["weight"], weights.get("bias"), make, bare=bare), 1 + both


def _reordered(batch: int, packed: onednn.Packed, after: Layer | None) -> tuple[Make, bool]:
    activation = onednn.activation_of(after.options["module"], after.options["arguments"]) if after else None

    def make(weight: Any, bias: Any, shape: Any, *geometry: Any, key: tuple[object, ...]) -> Operation:
        stride, padding, dilation, groups = geometry
        return onednn.convolution(
            weight, bias, (batch, *shape), stride, padding, dilation, groups, activation or onednn.NONE, packed, key
        )

    return make, activation is not None


def _to_be_fused(after: Layer | None) -> tuple[Make, bool]:
    activation = _activation(after) if after else None

    def make(weight: Any, bias: Any, _shape: Any, *geometry: Any, key: tuple[object, ...]) -> Operation:  # noqa: ARG001
        stride, padding, dilation, groups = geometry
        return fuser.convolution(weight, bias, stride, padding, dilation, groups, activation)

    return make, after is not None


def _activation(layer: Layer) -> nn.Module:
    module: nn.Module = getattr(nn, layer.options["module"])(**layer.options["arguments"])
    return module.eval()


def _sum(*maps: torch.Tensor) -> torch.Tensor:
    total = maps[0] + maps[1]
    for more in maps[2:]:
        total += more
    return total


def _edges(layer: Layer, box: Box, held: Box) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of padding (before, after) around what is held; negative where less than that is read.

    What is left over behind the last step of the window, less than a stride, need not be taken away.
    """
    rows, columns = (
        (have.lo - read.lo, after if (after := read.hi - have.hi) <= -stride else max(after, 0))
        for read, have, stride in zip(reach(layer, box), (held.rows, held.columns), layer.stride, strict=True)
    )
    return rows, columns


def _conv_padding(layer: Layer, box: Box, held: Box) -> tuple[tuple[int, int], tuple[Pair, Pair]]:
    """What the convolution pads by itself - an axis that is whole and evenly padded - and what is padded before it."""
    inside, around = [0, 0], [(0, 0), (0, 0)]
    for axis, edges in enumerate(_edges(layer, box, held)):
        before, after = layer.padding[axis]
        whole = box.shape[1 + axis] == layer.out_shape[1 + axis]
        slow = layer.kernel[axis] >= onednn.LARGE_KERNEL and onednn.slow_at_edges()
        if whole and before == after and not slow:
            inside[axis] = before
        else:
            around[axis] = edges
    return (inside[0], inside[1]), (around[0], around[1])


def _own_padding(layer: Layer, box: Box, held: Box) -> tuple[tuple[int, int], tuple[Pair, Pair], Operation]:
    """As ``_conv_padding``, but the operation pads wherever it can, both edges alike, and some of its rows are dropped.

    A row too many is sooner computed than a map is copied with padding at one edge. The third is what drops them.
    """
    inside, around, kept = [0, 0], [(0, 0), (0, 0)], [slice(None), slice(None)]
    for axis, (before, after) in enumerate(_edges(layer, box, held)):
        kernel, stride, count = layer.kernel[axis], layer.stride[axis], box.shape[1 + axis]
        own = max(before, after, 0)
        own += (before - own) % stride
        more = (held.shape[1 + axis] + 2 * own - layer.dilation[axis] * (kernel - 1) - 1) // stride + 1 - count
        fits = own <= (kernel - 1 if layer.kind == "conv" else kernel // 2) and WORTH_COMPUTING * more <= count
        if fits and not (kernel >= onednn.LARGE_KERNEL and onednn.slow_at_edges()):
            first = (own - before) // stride
            inside[axis], kept[axis] = own, slice(first, first + count) if more else slice(None)
        else:
            around[axis] = before, after
    where = (slice(None), slice(None), *kept)
    drop = _unchanged if kept == [slice(None)] * 2 else lambda x: _whole(x[where])
    return (inside[0], inside[1]), (around[0], around[1]), drop


def _whole(x: torch.Tensor) -> torch.Tensor:
    """The map in one piece where its channels are last, as oneDNN wants it; torch does not mind."""
    return x.contiguous(memory_format=torch.channels_last) if x.stride(1) == 1 else x


def _eager_conv(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    _shape: tuple[int, int, int],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    key: tuple[object, ...],  # noqa: ARG001 - as what makes the other kind
) -> Operation:
    return lambda x: F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _conv(
    layer: Layer,
    box: Box,
    held: Box,
    kernels: torch.Tensor,
    bias: torch.Tensor | None,
    make: Callable[..., Operation],
    *,
    bare: bool,
) -> Operation:
    """The convolution of a box, one call of what ``make`` makes per run of groups."""
    inside, around, drop = (*_conv_padding(layer, box, held), _unchanged) if bare else _own_padding(layer, box, held)
    rows, columns = around
    size = len(held.rows) + sum(rows), len(held.columns) + sum(columns)
    pad = _padding(*around) if not bare or min(*rows, *columns) < 0 else _unchanged
    start, first = box.channels.lo, held.channels.lo
    calls = []
    for outs, ins, groups in _group_pieces(layer, box.channels):
        mine, shape = slice(outs.lo - start, outs.hi - start), (len(ins), *size)
        shift = None if bias is None else bias[mine]
        key = (layer.name, outs.lo, outs.hi)
        call = make(kernels[mine], shift, shape, layer.stride, inside, layer.dilation, groups, key=key)
        calls.append((slice(ins.lo - first, ins.hi - first), call))
    if len(calls) == 1:
        only = calls[0][1]
        return only if pad is drop is _unchanged else lambda x: drop(only(pad(x)))

    def conv(x: torch.Tensor) -> torch.Tensor:
        x = pad(x)
        return drop(torch.cat([call(x[:, ins]) for ins, call in calls], 1))

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


def _pool(layer: Layer, box: Box, held: Box, *, bare: bool = False) -> Operation:
    options, kernel, stride = layer.options, layer.kernel, layer.stride
    if box.shape[1:] == layer.out_shape[1:]:
        padding = (layer.padding[0][0], layer.padding[1][0])
        if layer.kind == "maxpool":
            return lambda x: F.max_pool2d(x, kernel, stride, padding, layer.dilation, options["ceil_mode"])
        include, override = options["count_include_pad"], options["divisor_override"]
        return lambda x: F.avg_pool2d(x, kernel, stride, padding, options["ceil_mode"], include, override)
    edges = _edges(layer, box, held)
    if layer.kind == "maxpool":
        inside, around, drop = ((0, 0), edges, _unchanged) if bare else _own_padding(layer, box, held)
        pad = _padding(*around, value=-torch.inf) if not bare or min(*edges[0], *edges[1]) < 0 else _unchanged
        return lambda x: drop(F.max_pool2d(pad(x), kernel, stride, inside, layer.dilation))
    pad, divisor = _padding(*edges), _divisor(layer, box)
    return lambda x: F.avg_pool2d(pad(x), kernel, stride, divisor_override=1) / divisor


def _unchanged(x: torch.Tensor) -> torch.Tensor:
    return x


def _padding(rows: tuple[int, int], columns: tuple[int, int], value: float = 0) -> Operation:
    """The function that adds so many rows and columns around a map, and takes away where the number is negative."""
    around = [*columns, *rows]
    more, less = [max(n, 0) for n in around], [min(n, 0) for n in around]
    if not any(around):
        return _unchanged
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
