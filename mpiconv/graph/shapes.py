"""The shape of what common operations make, without asking torch.

Torch could tell for every operation, by running it on tensors of the device ``meta``; but for most that first imports
its compiler, which takes a second. What is not known here is asked there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from mpiconv.errors import ModelError
from mpiconv.graph.calls import ACTIVATIONS, ALONE, ARITHMETIC, CannotSplitError
from mpiconv.graph.layers.base import both_sides, check_channels, out_size_of, pair_of

Shape = tuple[int, ...]
Rule = Callable[[str, Mapping[str, Any]], Shape]

SAME = (
    *(*ACTIVATIONS, *ALONE, "batch_norm", "instance_norm", "group_norm", "layer_norm", "prelu"),
    *("local_response_norm", "softmax", "log_softmax"),
)
"""Operations that make a map of the shape of the one they read."""

MOST_AXES = 4


def shape_after(kind: str, name: str, given: Mapping[str, Any]) -> Shape | None:
    """The shape of an operation's float32 result, None where it is not known here.

    Parameters
    ----------
    kind
        What the operation does.
    name
        The layer that it is, for messages.
    given
        Its arguments by name.

    Raises
    ------
    ModelError
        A convolution or pooling does not fit on the map that it gets.
    """
    tensors = [
        t for v in given.values() for t in (v if isinstance(v, list | tuple) else [v]) if isinstance(t, torch.Tensor)
    ]
    if any(t.dtype != torch.float32 for t in tensors) or kind not in RULES:
        return None
    if given.get("dtype") is not None or given.get("out") is not None or given.get("training") is True:
        return None
    try:
        return RULES[kind](name, given)
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, CannotSplitError):
        return None  # torch itself shall say what is wrong


def _same(_: str, given: Mapping[str, Any]) -> Shape:
    return tuple(given["input"].shape)


def _broadcast(_: str, given: Mapping[str, Any]) -> Shape:
    sides = (given["input"], given["other"])
    if any(isinstance(side, bool) for side in sides):
        raise TypeError
    shapes = [side.shape for side in sides if isinstance(side, torch.Tensor)]
    return tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]


def _conv2d(name: str, given: Mapping[str, Any]) -> Shape:
    x, weight, padding = given["input"], given["weight"], given["padding"]
    if x.dim() != MOST_AXES:
        raise ValueError
    check_channels(name, weight.shape[1] * given["groups"], tuple(x.shape[1:]))
    kernel, step, spread = tuple(weight.shape[2:]), pair_of(given["stride"]), pair_of(given["dilation"])
    if padding == "same":
        return (x.shape[0], weight.shape[0], *x.shape[2:])
    around = both_sides((0, 0) if padding == "valid" else pair_of(padding))
    return (x.shape[0], weight.shape[0], *out_size_of(name, tuple(x.shape[1:]), kernel, step, around, spread))


def _pool(name: str, given: Mapping[str, Any]) -> Shape:
    x, kernel, stride = given["input"], pair_of(given["kernel_size"]), given["stride"]
    if x.dim() != MOST_AXES or given.get("return_indices"):
        raise ValueError
    step = pair_of(stride if stride not in (None, []) else given["kernel_size"])
    around, spread = both_sides(pair_of(given["padding"])), pair_of(given.get("dilation", 1))
    size = out_size_of(name, tuple(x.shape[1:]), kernel, step, around, spread, ceil_mode=given["ceil_mode"])
    return (*x.shape[:2], *size)


def _adaptive(_: str, given: Mapping[str, Any]) -> Shape:
    x, wanted = given["input"], given["output_size"]
    sizes: Sequence[int | None] = wanted if isinstance(wanted, list | tuple) else (wanted, wanted)
    if x.dim() != MOST_AXES or given.get("return_indices"):
        raise ValueError
    return (*x.shape[:2], *(old if new is None else new for old, new in zip(x.shape[2:], sizes, strict=True)))


def _linear(name: str, given: Mapping[str, Any]) -> Shape:
    x, weight = given["input"], given["weight"]
    if x.shape[-1] != weight.shape[1]:
        raise ModelError(f"layer {name} wants {weight.shape[1]} features and gets a map of shape {tuple(x.shape)}")
    return (*x.shape[:-1], weight.shape[0])


def _cat(_: str, given: Mapping[str, Any]) -> Shape:
    shapes = [tuple(t.shape) for t in given["tensors"]]
    at = given["dim"] % len(shapes[0])
    if len({(*shape[:at], *shape[at + 1 :]) for shape in shapes}) != 1:
        raise ValueError
    return (*shapes[0][:at], sum(shape[at] for shape in shapes), *shapes[0][at + 1 :])


def _mean(_: str, given: Mapping[str, Any]) -> Shape:
    x, dim = given["input"], given["dim"]
    axes = {axis % x.dim() for axis in ([dim] if isinstance(dim, int) else dim)}
    kept = [1 if axis in axes else length for axis, length in enumerate(x.shape)]
    return tuple(length for axis, length in enumerate(kept) if given["keepdim"] or axis not in axes)


RULES: dict[str, Rule] = {
    **dict.fromkeys(SAME, _same),
    **dict.fromkeys(ARITHMETIC, _broadcast),
    "conv2d": _conv2d,
    "max_pool2d": _pool,
    "avg_pool2d": _pool,
    "adaptive_avg_pool2d": _adaptive,
    "adaptive_max_pool2d": _adaptive,
    "linear": _linear,
    "cat": _cat,
    "mean": _mean,
    "amax": _mean,
}
