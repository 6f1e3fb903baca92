"""What every builder of layers works with: maps, their registry, and what it checks and reads of a call's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from mpiconv.errors import ModelError
from mpiconv.graph.calls import ACTIVATIONS, ALONE, ARITHMETIC, CannotSplitError, Tensor
from mpiconv.graph.form import Layer, Pair, Param, Shape


@dataclass(frozen=True)
class Map:
    """A feature map while tracing: the step that makes it, its shape (C, H, W), and the order of the tensor's axes.

    ``order`` is ``nchw``, ``nhwc`` (permuted) or ``nc`` (flattened; of one row and column unless the head is split).
    """

    step: int
    shape: Shape
    order: str = "nchw"


Add = Callable[..., Map]
"""``add(layer, *maps)`` notes a layer that reads these maps, and gives the map it makes."""

BUILDERS: dict[str, Callable[..., Map]] = {}
ELEMENTWISE = {*ACTIVATIONS, *ALONE, *ARITHMETIC, "clamp"}
NHWC = {*ELEMENTWISE, "linear", "layer_norm"}


def build(kind: str, add: Add, name: str, given: dict[str, Any]) -> Map:
    """Note the layers of an operation, given its arguments by name, and give the map that they make.

    Raises
    ------
    CannotSplitError
        The operation, or its arguments, are none that boxes describe.
    ModelError
        It does not fit the map that it would get.
    """
    if kind not in BUILDERS:
        raise CannotSplitError(kind)
    maps = [m for v in given.values() for m in (v if isinstance(v, list | tuple) else [v]) if isinstance(m, Map)]
    orders = {m.order for m in maps}
    allowed = {"nhwc": NHWC, "nc": {*ELEMENTWISE, "linear"}}
    if not maps or len(orders) != 1 or any(kind not in allowed[o] for o in orders if o != "nchw"):
        raise CannotSplitError(kind)
    builder = BUILDERS[kind]
    try:
        inspect.signature(builder).bind(add, name, **given)
    except TypeError:
        raise CannotSplitError(f"{kind} called in an unknown way") from None
    made, order = builder(add, name, **given), orders.pop()
    return made if order == "nchw" else replace(made, order=order)


def builder(*kinds: str) -> Callable[[Callable[..., Map]], Callable[..., Map]]:
    """Register a builder under the names of the functions that it stands for."""

    def register(function: Callable[..., Map]) -> Callable[..., Map]:
        for kind in kinds:
            BUILDERS[kind] = function
        return function

    return register


def need_map(value: Any) -> Map:
    """The value, which has to be a map."""
    if not isinstance(value, Map):
        raise CannotSplitError("an operation whose first argument is no map")
    return value


def simple(kind: str, name: str, shape: Shape, out: Shape | None = None, **more: Any) -> Layer:
    """A layer whose output channel c depends on input channel c alone."""
    return Layer(name, kind, (shape,), out or shape, **{"groups": shape[0], **more})


def tensor_of(value: Any) -> Tensor:
    """The value, which has to be a tensor of the model."""
    if not isinstance(value, Tensor):
        raise CannotSplitError("a layer whose weights are computed")
    if value.dtype != torch.float32:
        raise CannotSplitError(f"a layer whose weights are {value.dtype}")
    return value


def param_of(role: str, value: Any, shape: tuple[int, ...]) -> Param:
    """A tensor of the model in this role, with the shape that its layer computes with."""
    return Param(role, tensor_of(value).key, shape)


def params_of(**tensors: Any) -> tuple[Param, ...]:
    """Tensors of the model by role, without those that are None."""
    return tuple(param_of(role, value, tensor_of(value).shape) for role, value in tensors.items() if value is not None)


def kernel_of(name: str, weight: Any) -> Pair:
    """Rows and columns of a convolution's kernels."""
    shape = tensor_of(weight).shape
    if len(shape) != 4:
        raise CannotSplitError(f"a convolution {name} that is not of two dimensions")
    return shape[2], shape[3]


def pair_of(value: Any) -> Pair:
    """Two whole numbers, or one for both."""
    values = list(value) if isinstance(value, tuple | list) else [value, value]
    if len(values) not in (1, 2) or not all(isinstance(v, int) for v in values):
        raise CannotSplitError(f"a setting of {value!r}, where one or two whole numbers are wanted")
    return int(values[0]), int(values[-1])


def both_sides(padding: Pair) -> tuple[Pair, Pair]:
    """Rows and columns of padding, each before and after."""
    return (padding[0], padding[0]), (padding[1], padding[1])


def check_channels(name: str, wanted: int, shape: Shape) -> None:
    """Raise ModelError unless a map has as many channels as wanted."""
    if wanted != shape[0]:
        raise ModelError(f"layer {name} wants {wanted} channels and gets a map of shape {shape}")


def out_size_of(
    name: str,
    shape: Shape,
    kernel: Pair,
    stride: Pair,
    padding: tuple[Pair, Pair],
    dilation: Pair,
    *,
    ceil_mode: bool = False,
) -> Pair:
    """Rows and columns of the output, [KPM22] eq. (2), (3).

    With ``ceil_mode`` a last window may reach past the far padding, so that even a map smaller than it has one, but no
    window starts there.
    """
    size = []
    for length, k, s, (before, after), d in zip(shape[1:], kernel, stride, padding, dilation, strict=True):
        room = length + before + after - d * (k - 1) - 1
        count = (room + (s - 1 if ceil_mode else 0)) // s + 1
        if ceil_mode and (count - 1) * s >= length + before:
            count -= 1
        if count < 1:
            raise ModelError(
                f"layer {name}: its kernel does not fit on a map of shape {shape}; use a larger input size"
            )
        size.append(count)
    return size[0], size[1]
