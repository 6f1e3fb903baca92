"""Builders of what computes each element alone: activations, functions, arithmetic; and of joining maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mpiconv.graph.calls import ACTIVATIONS, ALONE, ARITHMETIC, CannotSplitError, Tensor
from mpiconv.graph.form import Layer
from mpiconv.graph.layers.base import (
    BUILDERS,
    Add,
    Map,
    builder,
    need_map,
    param_of,
    simple,
)


def _activation(kind: str) -> Callable[..., Map]:
    module, names = ACTIVATIONS[kind]

    def build_it(add: Add, name: str, input: Any, **given: Any) -> Map:  # noqa: A002 - torch's name
        source = need_map(input)
        if not set(given) <= set(names):
            raise CannotSplitError(f"{kind} called in an unknown way")
        arguments = {key: given.get(key, getattr(module(), key)) for key in names}
        if not all(isinstance(value, int | float | str) for value in arguments.values()):
            raise CannotSplitError(f"{kind} whose settings are no numbers")
        options = {"module": module.__name__, "arguments": arguments}
        return add(simple("activation", name, source.shape, options=options), source)

    return build_it


for _kind in ACTIVATIONS:
    BUILDERS[_kind] = _activation(_kind)


def _function(kind: str) -> Callable[..., Map]:
    def build_it(add: Add, name: str, input: Any) -> Map:  # noqa: A002
        source = need_map(input)
        return add(simple("elementwise", name, source.shape, options={"function": kind}), source)

    return build_it


for _kind in ALONE:
    BUILDERS[_kind] = _function(_kind)


@builder("clamp")
def _clamp(add: Add, name: str, input: Any, min: Any = None, max: Any = None) -> Map:  # noqa: A002
    low, high = -math.inf if min is None else min, math.inf if max is None else max
    return BUILDERS["hardtanh"](add, name, input, min_val=low, max_val=high)


@builder("prelu")
def _prelu(add: Add, name: str, input: Any, weight: Any) -> Map:  # noqa: A002
    source = need_map(input)
    params = (param_of("weight", weight, (source.shape[0],)),)
    return add(simple("prelu", name, source.shape, params=params), source)


def _arithmetic(kind: str) -> Callable[..., Map]:
    def build_it(add: Add, name: str, input: Any, other: Any, *, alpha: Any = 1) -> Map:  # noqa: A002
        if alpha != 1:
            raise CannotSplitError(f"{kind} with alpha")
        turned = {"rsub": "sub", "rdiv": "div", "rpow": "pow"}
        function, left, right = (turned[kind], other, input) if kind in turned else (kind, input, other)
        if isinstance(left, Map) and isinstance(right, Map):
            return _two_maps(add, name, function, left, right)
        source, value = (left, right) if isinstance(left, Map) else (need_map(right), left)
        options: dict[str, Any] = {"function": function, "reverse": source is right}
        if isinstance(value, Tensor):
            shape = tuple(value.shape)
            at = -1 if source.order == "nhwc" else -3
            rows = [length for axis, length in enumerate(shape) if axis - len(shape) != at]
            if (
                any(length != 1 for length in rows)
                or len(shape) > 4
                or (len(shape) < 3 and at == -3 and shape[:1] != (1,))
            ):
                raise CannotSplitError(f"{kind} of a map and a tensor of shape {shape}")
            count = shape[at] if len(shape) >= -at else 1
            if source.order == "nc" or count not in (1, source.shape[0]):
                raise CannotSplitError(f"{kind} of a map and a tensor of shape {shape}")
            params = (param_of("other", value, (source.shape[0], 1, 1)),)
            return add(simple("scale", name, source.shape, params=params, options=options), source)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CannotSplitError(f"{kind} of a map and a {type(value).__name__}")
        return add(simple("elementwise", name, source.shape, options={**options, "value": value}), source)

    return build_it


for _kind in ARITHMETIC:
    BUILDERS[_kind] = _arithmetic(_kind)


def _two_maps(add: Add, name: str, function: str, left: Map, right: Map) -> Map:
    """The sum, product ... of two maps, where one may be broadcast over rows, columns or channels."""
    if left.order == "nc" and left.shape != right.shape and not left.shape[1:] == right.shape[1:] == (1, 1):
        raise CannotSplitError(f"{function} of flattened maps of shape {left.shape} and {right.shape}")
    shape = []
    for a, b in zip(left.shape, right.shape, strict=True):
        if a != b and 1 not in (a, b):
            raise CannotSplitError(f"{function} of maps of shape {left.shape} and {right.shape}")
        shape.append(max(a, b))
    out = (shape[0], shape[1], shape[2])
    shapes, kind = (left.shape, right.shape), "add" if function == "add" else "binary"
    options = {} if function == "add" else {"function": function}
    return add(Layer(name, kind, shapes, out, groups=out[0], options=options), left, right)


@builder("cat")
def _cat(add: Add, name: str, tensors: Any, dim: int = 0) -> Map:
    if not isinstance(tensors, list | tuple) or not all(isinstance(part, Map) for part in tensors):
        raise CannotSplitError("a concatenation of more than maps")
    shapes = tuple(part.shape for part in tensors)
    if dim not in (1, -3) or len({shape[1:] for shape in shapes}) != 1:
        raise CannotSplitError("a concatenation that is not along the channels")
    out = (sum(shape[0] for shape in shapes), *shapes[0][1:])
    return add(Layer(name, "concat", shapes, out), *tensors)
