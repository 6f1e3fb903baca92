"""Receptive fields: which box of its inputs a layer or a unit needs for a box of its output."""

from __future__ import annotations

from collections.abc import Sequence

from mpiconv.graph.form import Layer, Unit
from mpiconv.partition.box import Box, Span


def window(span: Span, kernel: int, stride: int, padding: int, dilation: int) -> Span:
    """Input rows (or columns) that output rows ``span`` read, not clipped: below 0 and past the map is padding."""
    if not span:
        return Span()
    return Span(span.lo * stride - padding, (span.hi - 1) * stride - padding + dilation * (kernel - 1) + 1)


def transposed_window(span: Span, kernel: int, stride: int, padding: int, dilation: int) -> Span:
    """Input rows that a transposed convolution spreads over output rows ``span``, not clipped; may be empty."""
    if not span:
        return Span()
    first = -((dilation * (kernel - 1) - padding - span.lo) // stride)
    return Span(first, (span.hi - 1 + padding) // stride + 1)


def binned(span: Span, length: int, bins: int) -> Span:
    """Input rows in the bins ``span`` of an adaptive pooling of ``length`` rows into ``bins``; bins may overlap."""
    if not span:
        return Span()
    return Span(span.lo * length // bins, -(-span.hi * length // bins))


def listed(span: Span, index: Sequence[Sequence[int]]) -> Span:
    """From the lowest to the highest row that output rows ``span`` read by a table; -1 in it stands for no row."""
    read = [row for taps in index[span.lo : span.hi] for row in taps if row >= 0]
    return Span(min(read), max(read) + 1) if read else Span(0, 1)


def clip(span: Span, length: int) -> Span:
    """The part of a span that lies in a map with ``length`` rows; the nearest row if it lies in the padding alone."""
    row = min(max(span.lo, 0), length - 1)
    return span & Span(0, length) or Span(row, row + 1)


def grouped(span: Span, in_channels: int, out_channels: int, groups: int) -> Span:
    """Input channels of all groups that the output channels ``span`` belong to."""
    if not span:
        return Span()
    ins, outs = in_channels // groups, out_channels // groups
    return Span(span.lo // outs * ins, ((span.hi - 1) // outs + 1) * ins)


def reach(layer: Layer, box: Box) -> tuple[Span, Span]:
    """Rows and columns that ``box`` of the layer's output reads by its window, not clipped to the map."""
    rows, columns = (
        window(span, k, s, p[0], d)
        for span, k, s, p, d in zip(
            (box.rows, box.columns), layer.kernel, layer.stride, layer.padding, layer.dilation, strict=True
        )
    )
    return rows, columns


def needed(layer: Layer, box: Box) -> tuple[Box, ...]:
    """The box of each of the layer's inputs that it needs to compute ``box`` of its output, clipped to the map.

    For all rows (or columns) of the output it is all of the input's, as without a split, also where the last ones are
    read by no window.
    """
    if not box:
        return tuple(Box() for _ in layer.in_shapes)
    if layer.opaque:
        return tuple(Box.whole(shape) for shape in layer.in_shapes)
    boxes, before = [], 0
    for shape in layer.in_shapes:
        channels = _channels(layer, shape[0], before, box.channels)
        rows, columns = (_along(layer, axis, shape[axis], box.spans[axis]) for axis in (1, 2))
        boxes.append(Box(channels, rows, columns))
        before += shape[0]
    return tuple(boxes)


def _along(layer: Layer, axis: int, length: int, span: Span) -> Span:
    """Rows (axis 1) or columns (2) of an input of that length for those of the output; clipped."""
    whole, made = Span(0, length), layer.out_shape[axis]
    if len(span) == made or layer.kind == "groupnorm":
        return whole
    if layer.kind in ("add", "binary") and length == 1:
        return whole
    at = axis - 1
    k, s, p, d = layer.kernel[at], layer.stride[at], layer.padding[at][0], layer.dilation[at]
    if layer.kind == "convtranspose":
        return clip(transposed_window(span, k, s, p, d), length)
    if layer.kind == "adaptive":
        return binned(span, length, made)
    if layer.kind == "resample":
        table = layer.options["rows" if axis == 1 else "columns"]
        return span if table is None else listed(span, table["index"])
    if layer.kind == "pixelshuffle":
        return Span(span.lo // s, (span.hi - 1) // s + 1)
    return clip(window(span, k, s, p, d), length)


def _channels(layer: Layer, count: int, before: int, span: Span) -> Span:
    """Which of an input's ``count`` channels the output channels ``span`` read; ``before`` it come those of others."""
    if layer.kind == "concat":
        return Span(span.lo - before, span.hi - before) & Span(0, count)
    if layer.kind in ("add", "binary"):
        return Span(0, 1) if count == 1 else span
    if layer.kind == "lrn":
        size = layer.options["size"]
        return Span(span.lo - size // 2, span.hi + (size - 1) // 2) & Span(0, count)
    if layer.kind == "resample":
        table = layer.options["channels"]
        return span if table is None else listed(span, table["index"])
    if layer.kind == "pixelunshuffle":
        factor = layer.stride[0] * layer.stride[1]
        return Span(span.lo // factor, (span.hi - 1) // factor + 1)
    return grouped(span, count, layer.out_shape[0], layer.groups)


def layer_boxes(unit: Unit, box: Box) -> list[Box]:
    """The box of every layer's output that is computed for ``box`` of the unit's output, first layer first."""
    return _worked_out(unit, box)[0]


def unit_needs(unit: Unit, box: Box) -> tuple[Box, ...]:
    """The box of each of the unit's inputs that it needs to compute ``box`` of its output."""
    return _worked_out(unit, box)[1]


def _worked_out(unit: Unit, box: Box) -> tuple[list[Box], tuple[Box, ...]]:
    """The boxes of the layers, and what is needed for them: planners ask for the same ones thousands of times."""
    key = tuple(edge for span in box.spans for edge in (span.lo, span.hi))
    found: tuple[list[Box], tuple[Box, ...]] | None = unit.memo.get(key)
    if found is None:
        boxes = [box]
        for layer in reversed(unit.layers[1:]):
            boxes.append(needed(layer, boxes[-1])[0])
        found = unit.memo[key] = boxes[::-1], needed(unit.layers[0], boxes[-1])
    return found


def needs_of(unit: Unit, box: Box, source: int) -> list[Box]:
    """What the unit needs of the map made by unit ``source``: a box for every input that reads it."""
    return [need for i, need in zip(unit.inputs, unit_needs(unit, box), strict=True) if i == source]


def box_flops(unit: Unit, box: Box) -> int:
    """FLOPs to compute ``box`` of the unit's output for one picture (2 x multiply-adds, [KPM22] eq. (5), (6))."""
    return sum(
        (layer.flops if layer.opaque else layer.flops_of(part.size))
        for layer, part in zip(unit.layers, layer_boxes(unit, box), strict=True)
        if part
    )


def box_weights(unit: Unit, box: Box) -> int:
    """Elements of the unit's tensors that a rank holds to compute ``box``: the kernels of the box's channels."""
    total = 0
    for layer, part in zip(unit.layers, layer_boxes(unit, box), strict=True):
        if part:
            share = len(part.channels) / layer.out_shape[0]
            total += sum(round(param.size * share) for param in layer.params)
    return total
