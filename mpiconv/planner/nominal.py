"""Nominal devices and clusters of them: estimated from data sheets, NOT measured. Pure.

A device's speed in convolutions is its nominal peak, the same as in ``hostfiles/labs/pi4-nx-laptop.toml`` (highest
clock of one core x float32 operations in a cycle: mpiconv computes with one thread a rank unless told otherwise), times
the part of the peak that one x86 core of about 120 GFLOP/s reached in the probe of ``docs/cluster.md``, by kind of
layer. That other cores reach the same parts of their peaks is an assumption, as is that one core gets a third of the
data sheet's rate of memory. ``mpiconv probe`` on real devices is better than all of this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mpiconv.errors import UsageError
from mpiconv.planner.cluster import Cluster, Device, Link
from mpiconv.words import did_you_mean

PROBED_PEAK_GFLOP_PER_S = 120.0
"""The peak of the core that was probed: its best convolutions ran at some 110 GFLOP/s, 92 % of it."""

PROBED_GFLOP_PER_S = {
    "conv1x1": 112.0,
    "conv3x3": 95.11,
    "conv5x5": 71.8,
    "conv7x7": 61.04,
    "conv11x11": 67.9,
    "depthwise3x3": 8.545,
}
"""What that core reached by kind of layer, as it stands in ``docs/cluster.md``; a linear layer waits for memory."""

MEMORY_PART = 1 / 3
"""The part of the data sheet's rate of memory that one core is taken to get."""

FLOPS_PER_WEIGHT_BYTE = 0.5
"""A fully connected layer does a multiply-add with every weight of 4 B that it reads, for one picture."""

GIB = 2**30

CREATOR = "nominal: estimated from data sheets, not measured"
"""The ``creator`` of nominal clusters."""


@dataclass(frozen=True)
class Sheet:
    """What data sheets say of a device: cores, peak of one of them, memory and the rate of it."""

    cores: int
    peak_gflop_per_s: float
    memory_bytes: int
    memory_bytes_per_s: float
    what: str


SHEETS = {
    "pi4": Sheet(4, 12.0, 4 * GIB, 12.8e9, "Raspberry Pi 4 (Cortex-A72, 1.5 GHz x 8; LPDDR4-3200, 32 bits)"),
    "xavier-nx": Sheet(6, 30.0, 8 * GIB, 51.2e9, "Jetson Xavier NX (Carmel, 1.9 GHz x 16; LPDDR4x-3200, 128 bits)"),
    "laptop": Sheet(4, 125.0, 8 * GIB, 38.4e9, "laptop (Core i5-8265U, 3.9 GHz x 32; two channels of DDR4-2400)"),
}
"""The nominal devices, by name."""


def nominal_device(name: str, host: str = "") -> Device:
    """A nominal device, ``pi4``, ``xavier-nx`` or ``laptop``, as the device of a cluster.

    ``host`` is the name of its host; without one, the device's own name.

    Raises UsageError for a device that is not known.
    """
    if name not in SHEETS:
        raise UsageError(f"unknown device {name!r}: choose from {', '.join(SHEETS)}{did_you_mean(name, SHEETS)}")
    sheet = SHEETS[name]
    weight_bytes_per_s = MEMORY_PART * sheet.memory_bytes_per_s
    speeds = {
        kind: round(probed / PROBED_PEAK_GFLOP_PER_S * sheet.peak_gflop_per_s, 3)
        for kind, probed in PROBED_GFLOP_PER_S.items()
    }
    speeds["linear"] = round(FLOPS_PER_WEIGHT_BYTE * weight_bytes_per_s / 1e9, 3)
    return Device(host or name, sheet.cores, 1, sheet.memory_bytes, speeds, round(weight_bytes_per_s))


def nominal_cluster(names: Sequence[str], beta_bytes_per_s: float, alpha_s: float, medium: str = "switch") -> Cluster:
    """A cluster of nominal devices with equal links: ``alpha_s + n / beta_bytes_per_s`` for n bytes.

    Several of the same name get numbers: ``pi4-1``, ``pi4-2``.

    Raises UsageError for a device that is not known, MpiconvError for a link or medium that cannot be.
    """
    many, seen, devices = Counter(names), Counter[str](), []
    for name in names:
        seen[name] += 1
        devices.append(nominal_device(name, f"{name}-{seen[name]}" if many[name] > 1 else name))
    return linked(devices, beta_bytes_per_s, alpha_s, medium)


def linked(devices: Sequence[Device], beta_bytes_per_s: float, alpha_s: float, medium: str = "switch") -> Cluster:
    """A cluster of any devices with equal links between all of them; its ``creator`` says that nobody measured it."""
    ranks = range(len(devices))
    links = tuple(Link(a, b, alpha_s, beta_bytes_per_s) for a in ranks for b in ranks if a != b)
    return Cluster(tuple(devices), links, medium, creator=CREATOR)
