"""The padding that a rank's buffer of a map has around what the rank needs, so that nothing is copied to be padded."""

from __future__ import annotations

import math

from mpiconv.graph.form import Layer, Pair, Unit
from mpiconv.partition.box import Box
from mpiconv.partition.receptive import layer_boxes, needed, reach

LARGE_KERNEL = 5
"""Where a processor is slow at edges, a map is padded before convolutions with kernels of at least this many rows."""


def margin(unit: Unit, box: Box, *, slow_at_edges: bool = False) -> tuple[tuple[int, int], tuple[int, int], float]:
    """Rows and columns (before, after) that the first layer pads what it needs with, and the value.

    All 0 where the operation pads by itself, reads less than it is given, or does not pad. ``slow_at_edges``: the
    processor convolves large kernels faster on a map that is padded before.
    """
    layer, out = unit.layers[0], layer_boxes(unit, box)[0]
    nothing = (0, 0), (0, 0), 0.0
    if layer.kind == "conv":
        value, (rows, columns) = 0.0, conv_padding(layer, out, needed(layer, out)[0], slow_at_edges=slow_at_edges)[1]
    elif layer.kind == "maxpool" and out.shape[1:] != layer.out_shape[1:]:
        value, (rows, columns) = -math.inf, edges(layer, out, needed(layer, out)[0])
    else:
        return nothing
    return (rows, columns, value) if min(*rows, *columns) >= 0 else nothing


def edges(layer: Layer, box: Box, held: Box) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of padding (before, after) around what is held; negative where less than that is read.

    What is left over behind the last step of the window, less than a stride, need not be taken away.
    """
    rows, columns = (
        (have.lo - read.lo, after if (after := read.hi - have.hi) <= -stride else max(after, 0))
        for read, have, stride in zip(reach(layer, box), (held.rows, held.columns), layer.stride, strict=True)
    )
    return rows, columns


def conv_padding(
    layer: Layer, box: Box, held: Box, *, slow_at_edges: bool
) -> tuple[tuple[int, int], tuple[Pair, Pair]]:
    """Which axes the convolution pads by itself (whole and evenly padded ones), and what has to be padded before it."""
    inside, around = [0, 0], [(0, 0), (0, 0)]
    for axis, edge in enumerate(edges(layer, box, held)):
        before, after = layer.padding[axis]
        whole = box.shape[1 + axis] == layer.out_shape[1 + axis]
        slow = layer.kernel[axis] >= LARGE_KERNEL and slow_at_edges
        if whole and before == after and not slow:
            inside[axis] = before
        else:
            around[axis] = edge
    return (inside[0], inside[1]), (around[0], around[1])
