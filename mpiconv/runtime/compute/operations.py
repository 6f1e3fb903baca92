"""Every kind of layer on a box but convolution, pooling and addition."""

# ruff: noqa: ARG001 - one signature for all kinds
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from mpiconv.graph.calls import ALONE
from mpiconv.graph.form import Layer
from mpiconv.partition import Box, Span
from mpiconv.partition.receptive import reach

Operation = Callable[..., torch.Tensor]
Weights = Mapping[str, torch.Tensor]

BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": lambda a, b: a**b,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}


ADDED_IN_TURN = 1024
"""Elements that may be added one after the other without a loss of accuracy that counts."""


class WholeUnit:
    """A unit that the root runs with the model's own modules: called with whole maps (N, C, H, W), it returns one."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *maps: torch.Tensor) -> torch.Tensor:
        """Run it."""
        output: torch.Tensor = self.module(*maps)
        return output.contiguous()


def folded(
    layers: Sequence[Layer], boxes: Sequence[Box], weights: Sequence[Weights]
) -> Iterator[tuple[Layer, Box, Weights]]:
    """The layers of a unit on their boxes, a batch normalisation right behind a convolution put into its kernels."""
    i = 0
    while i < len(layers):
        layer, box, mine = layers[i], boxes[i], weights[i]
        if layer.has_kernels and i + 1 < len(layers) and layers[i + 1].kind == "norm":
            layer, mine = _folded_into(layer, mine, layers[i + 1], weights[i + 1])
            i += 1
        yield layer, box, mine
        i += 1


def _folded_into(conv: Layer, kernels: Weights, norm: Layer, weights: Weights) -> tuple[Layer, Weights]:
    """The convolution that also normalises: computed in double precision, kept in single."""
    scale = (weights["running_var"].double() + norm.options["eps"]).rsqrt()
    if "weight" in weights:
        scale = scale * weights["weight"].double()
    shift = -weights["running_mean"].double() * scale
    if "bias" in weights:
        shift = shift + weights["bias"].double()
    if "bias" in kernels:
        shift = shift + kernels["bias"].double() * scale
    kernel = kernels["weight"].double().mul_(scale.view(-1, *[1] * (kernels["weight"].dim() - 1)))
    return replace(conv, name=norm.name), {**kernels, "weight": kernel.float(), "bias": shift.float()}


def build(layer: Layer, box: Box, inputs: tuple[Box, ...], weights: Weights) -> Operation:
    """The function that computes ``box`` of a layer's output from the boxes of its inputs, ``inputs``.

    Raises ValueError for a kind that no rank computes on a box.
    """
    if layer.kind not in BUILDERS:
        raise ValueError(f"layer {layer.name} of kind {layer.kind} is none that a rank computes on a box")
    return BUILDERS[layer.kind](layer, box, inputs[0], weights)


def _elementwise(layer: Layer, box: Box, held: Box, weights: Weights) -> Operation:
    function = str(layer.options["function"])
    if "value" not in layer.options:
        if function not in ALONE:
            raise ValueError(f"layer {layer.name}: {function!r} is no function of one element")
        alone: Operation = getattr(torch, function)
        return alone
    value = layer.options["value"]
    if function in ("maximum", "minimum"):
        value = torch.tensor(float(value))
    return _with(function, value, reverse=layer.options["reverse"])


def _with(function: str, value: Any, *, reverse: bool) -> Operation:
    compute = BINARY[function]
    return (lambda x: compute(value, x)) if reverse else (lambda x: compute(x, value))


def _scale(layer: Layer, box: Box, held: Box, weights: Weights) -> Operation:
    return _with(layer.options["function"], weights["other"], reverse=layer.options["reverse"])


def _linear(layer: Layer, box: Box, held: Box, weights: Weights) -> Operation:
    """A slice of a fully connected layer's features, of the whole map."""
    weight, bias = weights["weight"], weights.get("bias")
    return lambda x: F.linear(x.flatten(1), weight, bias)[:, :, None, None]


def _prelu(layer: Layer, box: Box, held: Box, weights: Weights) -> Operation:
    slope = weights["weight"]
    return lambda x: F.prelu(x, slope)


def _binary(layer: Layer, box: Box, held: Box, weights: Weights) -> Operation:
    return BINARY[layer.options["function"]]


def _adaptive(layer: Layer, box: Box, held: Box, weights: Weights) -> Operation:
    reduce = torch.mean if layer.options["mode"] == "avg" else torch.amax
    whole = F.adaptive_avg_pool2d if layer.options["mode"] == "avg" else F.adaptive_max_pool2d
    if layer.options["mode"] == "avg" and layer.out_shape[1:] == (1, 1):
        return _mean
    if box.shape[1:] == layer.out_shape[1:]:
        return lambda x: whole(x, layer.out_shape[1:])
    bins = []
    for axis in (1, 2):
        length, made, start = layer.in_shapes[0][axis], layer.out_shape[axis], held.spans[axis].lo
        span = box.spans[axis]
        bins.append(
            [(i * length // made - start, -(-(i + 1) * length // made) - start) for i in range(span.lo, span.hi)]
        )

    def pool(x: torch.Tensor) -> torch.Tensor:
        rows = torch.cat([reduce(x[:, :, lo:hi], 2, keepdim=True) for lo, hi in bins[0]], 2)
        return torch.cat([reduce(rows[..., lo:hi], 3, keepdim=True) for lo, hi in bins[1]], 3)

    return pool


def _mean(x: torch.Tensor) -> torch.Tensor:
    """The mean of every channel: of all but very large maps with the same bits for some channels as for all."""
    rows, columns = x.shape[2:]
    if rows * columns > ADDED_IN_TURN:
        return torch.mean(x, (2, 3), keepdim=True)
    return F.avg_pool2d(x, (rows, columns))


def _reduce(layer: Layer, box: Box, held: Box, weights: Weights) -> Operation:
    compute = torch.mean if layer.options["function"] == "mean" else torch.amax
    axes = tuple(layer.options["axes"])
    if compute is torch.mean and axes == (2, 3):
        return _mean
    return lambda x: compute(x, axes, keepdim=True)


def _pad(layer: Layer, box: Box, held: Box, weights: Weights) -> Operation:
    rows, columns = (
        (have.lo - read.lo, read.hi - have.hi)
        for read, have in zip(reach(layer, box), (held.rows, held.columns), strict=True)
    )
    return lambda x: _resized(x, rows, columns, layer.options["value"])


def _resized(x: torch.Tensor, rows: tuple[int, int], columns: tuple[int, int], value: float = 0) -> torch.Tensor:
    """Pad a map by rows and columns (before, after), or crop it where one of them is negative."""
    around = [*columns, *rows]
    if max(around) > 0:
        x = F.pad(x, [max(n, 0) for n in around], value=value)
    return F.pad(x, [min(n, 0) for n in around]) if min(around) < 0 else x


def _resample(layer: Layer, box: Box, held: Box, weights: Weights) -> Operation:
    settings = layer.options["interpolate"]
    if settings and box.shape[1:] == layer.out_shape[1:]:
        return lambda x: F.interpolate(x, **settings)
    picks = []
    for axis, name in enumerate(("channels", "rows", "columns")):
        table = layer.options[name]
        if table is None:
            continue
        span, start = box.spans[axis], held.spans[axis].lo
        index = torch.tensor(table["index"][span.lo : span.hi])
        weight = torch.tensor(table["weight"][span.lo : span.hi])
        shape = [-1 if a == axis else 1 for a in range(3)]
        taps = [((index[:, k] - start).clamp(min=0), weight[:, k].view(shape)) for k in range(index.shape[1])]
        picks.append((axis + 1, taps, bool((weight == 1).all())))

    def compute(x: torch.Tensor) -> torch.Tensor:
        for axis, taps, plain in picks:
            parts = [x.index_select(axis, index) for index, _ in taps]
            x = parts[0] if plain else _weighted(parts, [weight for _, weight in taps])
        return x

    return compute


def _weighted(parts: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]) -> torch.Tensor:
    total = parts[0] * weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total = total + part * weight
    return total


def _pixel_shuffle(layer: Layer, box: Box, held: Box, weights: Weights) -> Operation:
    r = layer.stride[0]
    rows, columns = (
        slice(span.lo - r * have.lo, span.hi - r * have.lo)
        for span, have in ((box.rows, held.rows), (box.columns, held.columns))
    )
    return lambda x: F.pixel_shuffle(x, r)[:, :, rows, columns]


def _pixel_unshuffle(layer: Layer, box: Box, held: Box, weights: Weights) -> Operation:
    r = layer.stride[0]
    channels = slice(box.channels.lo - r * r * held.channels.lo, box.channels.hi - r * r * held.channels.lo)
    return lambda x: F.pixel_unshuffle(x, r)[:, channels]


def _group_norm(layer: Layer, box: Box, held: Box, weights: Weights) -> Operation:
    width = layer.out_shape[0] // layer.groups
    groups, inner, eps = len(held.channels) // width, _inner(box, held), layer.options["eps"]
    affine = _affine(weights)
    return lambda x: affine(F.group_norm(x, groups, eps=eps)[inner])


def _layer_norm(layer: Layer, box: Box, held: Box, weights: Weights) -> Operation:
    inner, eps, affine = _inner(box, held), layer.options["eps"], _affine(weights)

    def norm(x: torch.Tensor) -> torch.Tensor:
        normed = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), eps=eps).permute(0, 3, 1, 2)
        return affine(normed[inner])

    return norm


def _affine(weights: Weights) -> Operation:
    """Multiply by ``weight`` and add ``bias`` per channel, as far as there are any."""
    scale, shift = (weights[role].view(-1, 1, 1) if role in weights else None for role in ("weight", "bias"))

    def affine(x: torch.Tensor) -> torch.Tensor:
        x = x if scale is None else x * scale
        return x if shift is None else x + shift

    return affine


def _lrn(layer: Layer, box: Box, held: Box, weights: Weights) -> Operation:
    inner, o = _inner(box, held), layer.options
    return lambda x: F.local_response_norm(x, o["size"], o["alpha"], o["beta"], o["k"])[inner]


def _softmax(layer: Layer, box: Box, held: Box, weights: Weights) -> Operation:
    inner, compute = _inner(box, held), F.log_softmax if layer.options["log"] else F.softmax
    return lambda x: compute(x, 1)[inner]


def _inner(box: Box, held: Box) -> tuple[slice, ...]:
    """Where a box lies in a tensor (N, *held)."""
    return (slice(None), *box.within(held))


def _conv_transpose(layer: Layer, box: Box, held: Box, weights: Weights) -> Operation:
    """The transposed convolution of what is held, without padding, cut to the box; then the bias."""
    ends = []
    for at, axis in enumerate((1, 2)):
        span, have = box.spans[axis], held.spans[axis]
        first = have.lo * layer.stride[at] - layer.padding[at][0]
        length = (len(have) - 1) * layer.stride[at] + layer.dilation[at] * (layer.kernel[at] - 1) + 1
        ends.append((first - span.lo, span.hi - first - length))
    outs, ins = layer.out_shape[0] // layer.groups, layer.in_shapes[0][0] // layer.groups
    calls = []
    for out, groups in _runs(box.channels, outs):
        kernels = weights["weight"][out.lo - box.channels.lo : out.hi - box.channels.lo]
        kernels = kernels.view(groups, -1, ins, *layer.kernel).transpose(1, 2).flatten(0, 1).contiguous()
        start = out.lo // outs * ins - held.channels.lo
        calls.append((slice(start, start + groups * ins), kernels, groups))
    bias = weights["bias"].view(-1, 1, 1) if "bias" in weights else None

    def conv(x: torch.Tensor) -> torch.Tensor:
        parts = [
            F.conv_transpose2d(x[:, read], kernels, None, layer.stride, 0, 0, groups, layer.dilation)
            for read, kernels, groups in calls
        ]
        full = _resized(parts[0] if len(parts) == 1 else torch.cat(parts, 1), ends[0], ends[1])
        return full if bias is None else full + bias

    return conv


def _runs(channels: Span, width: int) -> Iterator[tuple[Span, int]]:
    """Cut output channels into runs of whole groups, each ``width`` wide, and the pieces of groups at both ends."""
    lo = channels.lo
    while lo < channels.hi:
        groups = (channels.hi - lo) // width if lo % width == 0 else 0
        hi = lo + groups * width if groups else min(channels.hi, (lo // width + 1) * width)
        yield Span(lo, hi), max(groups, 1)
        lo = hi


BUILDERS: dict[str, Callable[[Layer, Box, Box, Weights], Operation]] = {
    "adaptive": _adaptive,
    "binary": _binary,
    "convtranspose": _conv_transpose,
    "elementwise": _elementwise,
    "groupnorm": _group_norm,
    "layernorm": _layer_norm,
    "linear": _linear,
    "lrn": _lrn,
    "pad": _pad,
    "pixelshuffle": _pixel_shuffle,
    "pixelunshuffle": _pixel_unshuffle,
    "prelu": _prelu,
    "reduce": _reduce,
    "resample": _resample,
    "scale": _scale,
    "softmax": _softmax,
}
