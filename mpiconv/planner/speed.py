"""How long a device computes a part of a unit: from measured speeds by kind of layer. Pure."""

from __future__ import annotations

from mpiconv.graph.form import Layer, Unit
from mpiconv.partition.box import Box
from mpiconv.partition.plan import FLOAT_BYTES
from mpiconv.partition.receptive import layer_boxes, needed
from mpiconv.planner.cluster import Device

BY_KERNEL = ((1, "conv1x1"), (3, "conv3x3"), (5, "conv5x5"), (7, "conv7x7"))
"""Up to which kernel size a convolution has the speed of which kind; larger ones are ``conv11x11``."""

CALL_S = 20e-6
"""What a unit takes besides its arithmetic on a fast core, a few calls of torch; a slower one takes longer."""

FAST_GFLOP_PER_S = 100.0
"""The speed of a 3x3 convolution on the core for which ``CALL_S`` was measured."""


def unit_seconds(device: Device, unit: Unit, box: Box, batch: int = 1) -> float:
    """Estimated time in s in which a device computes ``box`` of a unit's output, for ``batch`` pictures.

    Layers with kernels by their FLOPs and the device's speed for their kind, or by their weights, where those take
    longer to read; all others by the bytes that they read and write. 0 for an empty box.
    """
    if not box:
        return 0.0
    seconds = CALL_S * FAST_GFLOP_PER_S / device.gflop_per_s["conv3x3"]
    for layer, part in zip(unit.layers, layer_boxes(unit, box), strict=True):
        seconds += _layer_seconds(device, layer, part, batch)
    return seconds


def kind_of(layer: Layer) -> str:
    """The kind in ``cluster.UNIT_KINDS`` by whose speed a layer with kernels is computed."""
    if layer.kind == "linear":
        return "linear"
    if layer.groups > 1 and layer.groups == layer.out_shape[0]:
        return "depthwise3x3"
    return next((kind for most, kind in BY_KERNEL if max(layer.kernel) <= most), "conv11x11")


def _layer_seconds(device: Device, layer: Layer, part: Box, batch: int) -> float:
    if layer.opaque:
        read = FLOAT_BYTES * sum(param.size for param in layer.params) / device.weight_bytes_per_s
        return max(batch * layer.flops / (1e9 * device.gflop_per_s["conv1x1"]), read)
    if layer.has_kernels:
        share = len(part.channels) / layer.out_shape[0]
        weights = FLOAT_BYTES * share * sum(param.size for param in layer.params)
        kind = kind_of(layer)
        read = weights / device.weight_bytes_per_s
        if kind == "linear" and batch == 1:
            return read
        return max(batch * layer.flops_of(part.size) / (1e9 * device.gflop_per_s[kind]), read)
    if layer.kind in ("activation", "norm"):
        return 0.0  # computed with the convolution before
    moved = part.size + sum(box.size for box in needed(layer, part))
    return FLOAT_BYTES * batch * moved / device.weight_bytes_per_s
