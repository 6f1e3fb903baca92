"""Convolutions and poolings on boxes: padding is applied only at the true edges of the map, in the cheapest way."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F  # noqa: N812 - its usual name

from mpiconv.graph.form import Layer, Pair
from mpiconv.partition import Box, Span
from mpiconv.partition.padding import LARGE_KERNEL, conv_padding, edges
from mpiconv.runtime.compute import onednn
from mpiconv.runtime.compute.operations import Operation

WORTH_COMPUTING = 4
"""A band computes rows too many, which are dropped, where it has at least this many times as many rows."""


def _own_padding(layer: Layer, box: Box, held: Box) -> tuple[tuple[int, int], tuple[Pair, Pair], Operation]:
    """As ``conv_padding``, but the operation pads wherever it can, both edges alike, and some of its rows are dropped.

    A row too many is sooner computed than a map is copied with padding at one edge. The third is what drops them.
    """
    inside, around, kept = [0, 0], [(0, 0), (0, 0)], [slice(None), slice(None)]
    for axis, (before, after) in enumerate(edges(layer, box, held)):
        kernel, stride, count = layer.kernel[axis], layer.stride[axis], box.shape[1 + axis]
        own = max(before, after, 0)
        own += (before - own) % stride
        more = (held.shape[1 + axis] + 2 * own - layer.dilation[axis] * (kernel - 1) - 1) // stride + 1 - count
        fits = (layer.kind == "conv" or own <= kernel // 2) and WORTH_COMPUTING * more <= count
        if fits and not (kernel >= LARGE_KERNEL and onednn.slow_at_edges()):
            first = (own - before) // stride
            inside[axis], kept[axis] = own, slice(first, first + count) if more else slice(None)
        else:
            around[axis] = before, after
    where = (slice(None), slice(None), *kept)
    drop = _unchanged if kept == [slice(None)] * 2 else lambda x: _whole(x[where])
    return (inside[0], inside[1]), (around[0], around[1]), drop


def _whole(x: torch.Tensor) -> torch.Tensor:
    """The map, made contiguous if its channels are last, which oneDNN wants and torch does not need."""
    return x.contiguous(memory_format=torch.channels_last) if x.stride(1) == 1 else x


def eager_conv(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    _shape: tuple[int, int, int],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    key: tuple[object, ...],  # noqa: ARG001 - as what makes the other kind
) -> Operation:
    """A convolution by torch's own operation."""
    return lambda x: F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def convolution(
    layer: Layer,
    box: Box,
    held: Box,
    kernels: torch.Tensor,
    bias: torch.Tensor | None,
    make: Callable[..., Operation],
    *,
    bare: bool,
) -> Operation:
    """A convolution that computes ``box`` from the part of its input that is held; one call per run of whole groups.

    ``bare`` says that the ``margin`` is around what is held.
    """
    inside, around, drop = (
        (*conv_padding(layer, box, held, slow_at_edges=onednn.slow_at_edges()), _unchanged)
        if bare
        else _own_padding(layer, box, held)
    )
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


def pooling(layer: Layer, box: Box, held: Box, *, bare: bool = False) -> Operation:
    """A pooling that computes ``box`` from what is held; ``bare``: the ``margin`` is around that already."""
    options, kernel, stride = layer.options, layer.kernel, layer.stride
    if box.shape[1:] == layer.out_shape[1:]:
        padding = (layer.padding[0][0], layer.padding[1][0])
        if layer.kind == "maxpool":
            return lambda x: F.max_pool2d(x, kernel, stride, padding, layer.dilation, options["ceil_mode"])
        include, override = options["count_include_pad"], options["divisor_override"]
        return lambda x: F.avg_pool2d(x, kernel, stride, padding, options["ceil_mode"], include, override)
    at_edges = edges(layer, box, held)
    if layer.kind == "maxpool":
        inside, around, drop = ((0, 0), at_edges, _unchanged) if bare else _own_padding(layer, box, held)
        pad = _padding(*around, value=-torch.inf) if not bare or min(*at_edges[0], *at_edges[1]) < 0 else _unchanged
        return lambda x: drop(F.max_pool2d(pad(x), kernel, stride, inside, layer.dilation))
    pad, divisor = _padding(*at_edges), _divisor(layer, box)
    return lambda x: F.avg_pool2d(pad(x), kernel, stride, divisor_override=1) / divisor


def _unchanged(x: torch.Tensor) -> torch.Tensor:
    return x


def _padding(rows: tuple[int, int], columns: tuple[int, int], value: float = 0) -> Operation:
    """The function that pads a map by these rows and columns (before, after), and crops it where one is negative."""
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
