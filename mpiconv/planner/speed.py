"""How long a device computes a part of a unit: as measured there, else from speeds by kind of layer. Pure."""

from __future__ import annotations

from math import prod

from mpiconv.graph.form import Layer, Unit
from mpiconv.partition.box import Box, Span
from mpiconv.partition.plan import FLOAT_BYTES
from mpiconv.partition.receptive import layer_boxes, needed
from mpiconv.planner.cluster import Device
from mpiconv.planner.unit_times import whole_blocks

BY_KERNEL = ((1, "conv1x1"), (3, "conv3x3"), (5, "conv5x5"), (7, "conv7x7"))
"""Up to which kernel size a convolution has the speed of which kind; larger ones are ``conv11x11``."""

MEASURED_ON: dict[str, tuple[int, int, int]] = {
    "conv1x1": (256, 256, 28 * 28),
    "conv3x3": (9 * 64, 128, 56 * 56),
    "conv5x5": (25 * 64, 128, 27 * 27),
    "conv7x7": (49 * 3, 64, 112 * 112),
    "conv11x11": (121 * 3, 96, 55 * 55),
    "depthwise3x3": (9, 128, 56 * 56),
}
"""Of the layer by which the speed of a kind was measured: elements of a kernel, output channels, output pixels."""

CALL_S, LIGHT_CALL_S = 22e-6, 2.5e-6
"""What a unit takes besides its arithmetic on a fast core, with kernels and without; a slower one takes longer."""

FAST_GFLOP_PER_S = 100.0
"""The speed of a 3x3 convolution from which on a core is a fast one."""

PER_KERNEL_ELEMENT, PER_CHANNEL = 27.0, 3.4
"""A dense convolution takes 1 + 27 / (elements of a kernel) + 3.4 / (output channels) times what it would at best.

These numbers, ``CALL_S``, ``LIGHT_CALL_S``, ``PER_PIXEL``, ``PER_DEPTHWISE_CHANNEL`` and ``PASSES`` were fitted to
1036 boxes, whole and cut to a sixteenth by channels, rows or both, of the units of AlexNet, VGG11, ResNet18 and
MobileNetV2, on one core of an AMD EPYC with AVX-512 (3x3 convolutions at 257 GFLOP/s), torch 2.13. The median error is
12 %, nine in ten boxes are within a factor of 1.8; the worst are additions and poolings of a few us. On other
processors they are nominal. That slices count as whole blocks of 16 channels is so wherever oneDNN computes.
"""

PER_PIXEL, PER_DEPTHWISE_CHANNEL = 35.0, 2.2
"""A depthwise convolution takes 1 + 35 / (pixels of the box) + 2.2 / (channels) times what it would at best."""

PASSES = 1.4
"""How often the bytes that a light layer reads and writes count against the rate at which weights are read."""

_PARTS: dict[str, tuple[Unit, ...]] = {}


def unit_seconds(device: Device, unit: Unit, box: Box, batch: int = 1) -> float:
    """The time in s in which a device computes ``box`` of a unit's output, for ``batch`` pictures.

    As measured, or between what was measured, where the device has times of units of this shape. A box or batch that
    is too different from those takes in proportion what ``estimated_seconds`` says. 0 for an empty box.
    """
    if not box:
        return 0.0
    if not device.unit_seconds:
        return estimated_seconds(device, unit, box, batch)
    if len(unit.layers) > 1 and unit.opaque:
        return sum(unit_seconds(device, part, Box.whole(part.out_shape), batch) for part in _parts(unit))
    times = device.unit_times.get(unit.shape_key)
    if times is None:
        return estimated_seconds(device, unit, box, batch)
    seconds = times.seconds(box.shape, batch)
    if seconds is not None:
        return seconds
    (channels, rows, columns), measured, of_batch = times.nearest(batch)
    known = Box(Span(0, channels), Span(0, rows), Span(0, columns))
    part = estimated_seconds(device, unit, box, batch) / estimated_seconds(device, unit, known, of_batch)
    return measured * part


def _parts(head: Unit) -> tuple[Unit, ...]:
    """The fully connected layers of a head, as the units that they are where the head is split, and what is left."""
    key = head.shape_key
    if key not in _PARTS:
        starts = [i for i, layer in enumerate(head.layers) if i == 0 or layer.kind == "linear" or layer.opaque]
        ends = [*starts[1:], len(head.layers)]
        _PARTS[key] = tuple(
            Unit(head.name, head.layers[a:b], head.inputs if a == 0 else (0,))
            for a, b in zip(starts, ends, strict=True)
        )
    return _PARTS[key]


def estimated_seconds(device: Device, unit: Unit, box: Box, batch: int = 1) -> float:
    """Estimated time in s in which a device computes ``box`` of a unit's output, for ``batch`` pictures.

    Convolutions take their FLOPs over the device's speed for their kind, more where they are smaller than what that was
    measured on, and once the time in which their weights are read; fully connected layers the latter, or their FLOPs
    where these take longer; all others the bytes that they read and write. 0 for an empty box.
    """
    if not box:
        return 0.0
    known = device.memo.setdefault(unit.shape_key, {})
    key = (*(edge for span in box.spans for edge in (span.lo, span.hi)), batch)
    if key not in known:
        known[key] = _estimated_seconds(device, unit, box, batch)
    return known[key]


def _estimated_seconds(device: Device, unit: Unit, box: Box, batch: int) -> float:
    heavy = unit.opaque or any(layer.has_kernels for layer in unit.layers)
    slower = max(FAST_GFLOP_PER_S / device.gflop_per_s["conv3x3"], 1.0)
    seconds = (CALL_S if heavy else LIGHT_CALL_S) * slower
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


def overhead(kind: str, reduction: float, channels: int, pixels: int) -> float:
    """How many times longer than at best a convolution takes, by its kind in ``MEASURED_ON`` and its size.

    ``reduction`` is the number of elements of a kernel, ``channels`` and ``pixels`` are those of the output.
    """
    if kind == "depthwise3x3":
        return 1 + PER_PIXEL / pixels + PER_DEPTHWISE_CHANNEL / channels
    return 1 + PER_KERNEL_ELEMENT / reduction + PER_CHANNEL / channels


def _layer_seconds(device: Device, layer: Layer, part: Box, batch: int) -> float:
    rate = device.weight_bytes_per_s
    weights = FLOAT_BYTES * sum(param.size for param in layer.params)
    if layer.opaque:
        return max(batch * layer.flops / (1e9 * device.gflop_per_s["conv1x1"]), weights / rate)
    if layer.kind == "linear":
        read = weights * len(part.channels) / layer.out_shape[0] / rate
        compute = batch * layer.flops_of(part.size) / (1e9 * device.gflop_per_s["linear"])
        return read if batch == 1 else max(compute, read)
    if layer.has_kernels:
        return _convolution_seconds(device, layer, part, batch)
    if layer.kind in ("activation", "norm"):
        return 0.0  # computed with the convolution before
    moved = part.size + sum(box.size for box in needed(layer, part))
    return PASSES * FLOAT_BYTES * batch * moved / rate


def _convolution_seconds(device: Device, layer: Layer, part: Box, batch: int) -> float:
    kind, (channels, rows, columns) = kind_of(layer), part.shape
    if layer.groups == 1 or kind == "depthwise3x3":
        channels = whole_blocks(channels)
    pixels = rows * columns
    reduction = layer.flops / (2 * prod(layer.out_shape))
    longer = overhead(kind, reduction, channels, pixels) / overhead(kind, *MEASURED_ON[kind])
    compute = batch * 2 * reduction * channels * pixels * longer / (1e9 * device.gflop_per_s[kind])
    kernels = sum(param.size for param in layer.params) * channels / layer.out_shape[0]
    return compute + FLOAT_BYTES * kernels / device.weight_bytes_per_s
