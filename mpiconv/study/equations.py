"""The paper's cost model, [KPM22] eq. (1) to (14), on numbers or whole arrays, and the table ``mpiconv model`` prints.

Everything is in elements and FLOPs (2 x multiply-adds), for one device with the share d; maps may be other than square,
then K is the kernel's rows where rows are meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mpiconv.graph.form import Graph, Layer
from mpiconv.partition import make_plan

Array = Any
"""A float or a numpy array, as the arguments are."""


def flops_without_bias(cin: ArrayLike, k: ArrayLike, outputs: ArrayLike) -> Array:
    """(2 Cin K K - 1) Hout Wout Cout, [KPM22] eq. (1); ``outputs`` is Hout Wout Cout."""
    return (2 * np.asarray(cin) * np.square(k) - 1) * np.asarray(outputs)


def out_size(size: ArrayLike, k: ArrayLike, s: ArrayLike, p: ArrayLike) -> Array:
    """floor((H + 2P - K) / S) + 1, [KPM22] eq. (2) for rows and (3) for columns."""
    return (np.asarray(size) + 2 * np.asarray(p) - np.asarray(k)) // np.asarray(s) + 1


def parameters(cin: ArrayLike, k: ArrayLike, cout: ArrayLike) -> Array:
    """(Cin K K + 1) Cout, [KPM22] eq. (4), and (7): under WPM every device holds all kernels."""
    return (np.asarray(cin) * np.square(k) + 1) * np.asarray(cout)


def flops(cin: ArrayLike, k: ArrayLike, outputs: ArrayLike, d: ArrayLike = 1) -> Array:
    """2 Cin K K Hout Wout Cout d, [KPM22] eq. (5) for WPM and (6) for KPM."""
    return 2 * np.asarray(cin) * np.square(k) * np.asarray(outputs) * np.asarray(d)


def parameters_kpm(cin: ArrayLike, k: ArrayLike, cout: ArrayLike, d: ArrayLike) -> Array:
    """(Cin K K + 1) Cout d, [KPM22] eq. (8)."""
    return parameters(cin, k, cout) * np.asarray(d)


def elements(channels: ArrayLike, rows: ArrayLike, columns: ArrayLike) -> Array:
    """C H W, [KPM22] eq. (9) for the input and (10) for the output."""
    return np.asarray(channels) * np.asarray(rows) * np.asarray(columns)


def memory_wpm(p1: ArrayLike, inputs: ArrayLike, outputs: ArrayLike, d: ArrayLike) -> Array:
    """P1 + (Din + Dout) d, [KPM22] eq. (11)."""
    return np.asarray(p1) + (np.asarray(inputs) + np.asarray(outputs)) * np.asarray(d)


def memory_kpm(p2: ArrayLike, inputs: ArrayLike, outputs: ArrayLike, d: ArrayLike) -> Array:
    """P2 + Din + Dout d, [KPM22] eq. (12)."""
    return np.asarray(p2) + np.asarray(inputs) + np.asarray(outputs) * np.asarray(d)


def memory_single(p1: ArrayLike, inputs: ArrayLike, outputs: ArrayLike) -> Array:
    """Parameters, input and output of a layer that is not split: [KPM22] eq. (4) + (9) + (10)."""
    return np.asarray(p1) + np.asarray(inputs) + np.asarray(outputs)


def halo_rows(k: ArrayLike, s: ArrayLike, p: ArrayLike, d: ArrayLike) -> Array:
    """P' = ceil((2 d P + (1 - d)(K - S)) / 2), rows on one side under WPM, [KPM22] eq. (14), an estimate."""
    d = np.asarray(d)
    exact = (2 * d * np.asarray(p) + (1 - d) * (np.asarray(k) - np.asarray(s))) / 2
    return np.ceil(np.round(exact, 9))


def communicated_wpm(halo: ArrayLike, wout: ArrayLike, cout: ArrayLike, devices: ArrayLike) -> Array:
    """P' Wout Cout with 2 devices and 2 p' Wout Cout with more ([KPM22] section 2.3); nothing with 1."""
    sides = np.minimum(np.asarray(devices) - 1, 2)
    return sides * np.asarray(halo) * np.asarray(wout) * np.asarray(cout)


def communicated_kpm(outputs: ArrayLike, devices: ArrayLike) -> Array:
    """Hout Wout Cout d, a multicast counted once ([KPM22] section 2.3); nothing with 1 device."""
    devices = np.asarray(devices)
    return np.where(devices > 1, np.asarray(outputs) / devices, 0)


def received_kpm(outputs: ArrayLike, devices: ArrayLike) -> Array:
    """(1 - d) Hout Wout Cout: what each device still receives of the map, however it is sent."""
    return np.asarray(outputs) * (1 - 1 / np.asarray(devices))


@dataclass(frozen=True)
class Row:
    """One layer on one of ``devices`` equal ones, d = 1 / devices: elements, unrounded; FLOPs of the unsplit layer."""

    layer: str
    devices: int
    flops_eq1: float
    flops: float
    parameters_wpm: float
    parameters_kpm: float
    memory_wpm: float
    memory_kpm: float
    memory_single: float
    halo_rows: float
    communicated_wpm: float
    communicated_kpm: float
    received_kpm: float


@dataclass(frozen=True)
class MpiRow:
    """What message passing moves for one layer's output between equal devices, exactly, by the boxes.

    ``halo_rows`` are the most that one rank receives from both sides together; the elements are received ones, of the
    rank that receives most. The last layer's output goes to the root alone.
    """

    layer: str
    devices: int
    halo_rows: int
    received_wpm: int
    received_kpm: int


def conv_layers(graph: Graph) -> Iterator[tuple[int, Layer]]:
    """The convolutions, each with the number of its unit."""
    for index, unit in enumerate(graph.body):
        yield from ((index, layer) for layer in unit.layers if layer.has_kernels)


def rows(graph: Graph, devices: Iterable[int]) -> list[Row]:
    """The paper's quantities for every convolution and number of devices."""
    return [_row(graph.units[i].name, layer, n) for n in devices for i, layer in conv_layers(graph)]


def _row(name: str, layer: Layer, devices: int) -> Row:
    d = 1 / devices
    cin, hin, win = layer.in_shapes[0]
    cout, hout, wout = layer.out_shape
    cin //= layer.groups
    k = float(np.sqrt(layer.kernel[0] * layer.kernel[1]))
    inputs, outputs = elements(layer.in_shapes[0][0], hin, win), elements(cout, hout, wout)
    held = parameters(cin, k, cout)
    halo = halo_rows(layer.kernel[0], layer.stride[0], layer.padding[0][0], d)
    values = (
        flops_without_bias(cin, k, outputs),
        flops(cin, k, outputs),
        held,
        parameters_kpm(cin, k, cout, d),
        memory_wpm(held, inputs, outputs, d),
        memory_kpm(held * d, inputs, outputs, d),
        memory_single(held, inputs, outputs),
        halo,
        communicated_wpm(halo, wout, cout, devices),
        communicated_kpm(outputs, devices),
        received_kpm(outputs, devices),
    )
    return Row(name, devices, *(_number(value) for value in values))


def _number(value: Array) -> float:
    """A float, whole numbers as int so that they print without a point."""
    number = float(value)
    return round(number) if abs(number - round(number)) < 1e-6 else number


def mpi_rows(graph: Graph, devices: Iterable[int]) -> list[MpiRow]:
    """What the boxes say for the same layers, gathering after every convolution (a graph traced with gather conv)."""
    found = []
    for n in devices:
        shape = (1, *graph.input_shape)
        kpm, wpm = (make_plan(graph, shape, scheme, n) for scheme in ("kpm", "wpm"))
        for index, layer in conv_layers(graph):
            bands, slices = wpm.exchanges[index], kpm.exchanges[index]
            width = layer.out_shape[0] * layer.out_shape[2]
            received = max(bands.received(rank) for rank in range(n))
            halo = received // width if index < len(graph.body) - 1 else 0
            most = max(slices.received(rank) for rank in range(n))
            found.append(MpiRow(graph.units[index].name, n, halo, received, most))
    return found
