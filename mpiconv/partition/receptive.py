"""Receptive fields: which box of its inputs a layer or a unit needs for a box of its output."""

from __future__ import annotations

from mpiconv.nets.graph import Layer, Unit
from mpiconv.partition.box import Box, Span


def window(span: Span, kernel: int, stride: int, padding: int, dilation: int) -> Span:
    """Input rows (or columns) that output rows ``span`` read, not clipped: below 0 and past the map is padding."""
    if not span:
        return Span()
    return Span(span.lo * stride - padding, (span.hi - 1) * stride - padding + dilation * (kernel - 1) + 1)


def clip(span: Span, length: int) -> Span:
    """The part of a span that lies in a map of so many rows; the nearest row where it is all padding."""
    row = min(max(span.lo, 0), length - 1)
    return span & Span(0, length) or Span(row, row + 1)


def grouped(span: Span, in_channels: int, out_channels: int, groups: int) -> Span:
    """Input channels of all groups that the output channels ``span`` belong to."""
    if not span:
        return Span()
    ins, outs = in_channels // groups, out_channels // groups
    return Span(span.lo // outs * ins, ((span.hi - 1) // outs + 1) * ins)


def reach(layer: Layer, box: Box) -> tuple[Span, Span]:
    """Rows and columns that ``box`` of the layer's output reads, not clipped to the map."""
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
    if layer.kind == "head":
        return tuple(Box.whole(shape) for shape in layer.in_shapes)
    rows, columns = reach(layer, box)
    boxes, before = [], 0
    for shape in layer.in_shapes:
        if layer.kind == "concat":
            channels = Span(box.channels.lo - before, box.channels.hi - before) & Span(0, shape[0])
            before += shape[0]
        else:
            channels = grouped(box.channels, shape[0], layer.out_shape[0], layer.groups)
        whole = Box.whole(shape)
        boxes.append(
            Box(
                channels,
                whole.rows if len(box.rows) == layer.out_shape[1] else clip(rows, shape[1]),
                whole.columns if len(box.columns) == layer.out_shape[2] else clip(columns, shape[2]),
            )
        )
    return tuple(boxes)


def layer_boxes(unit: Unit, box: Box) -> list[Box]:
    """The box of every layer's output that is computed for ``box`` of the unit's output, first layer first."""
    boxes = [box]
    for layer in reversed(unit.layers[1:]):
        boxes.append(needed(layer, boxes[-1])[0])
    return boxes[::-1]


def unit_needs(unit: Unit, box: Box) -> tuple[Box, ...]:
    """The box of each of the unit's inputs that it needs to compute ``box`` of its output."""
    return needed(unit.layers[0], layer_boxes(unit, box)[0])


def needs_of(unit: Unit, box: Box, source: int) -> list[Box]:
    """What the unit needs of the map made by unit ``source``: a box for every input that reads it."""
    return [need for i, need in zip(unit.inputs, unit_needs(unit, box), strict=True) if i == source]


def box_flops(unit: Unit, box: Box) -> int:
    """FLOPs to compute ``box`` of the unit's output for one picture (2 x multiply-adds, [KPM22] eq. (5), (6))."""
    return sum(
        (layer.flops if layer.kind == "head" else layer.flops_per_element * part.size)
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
