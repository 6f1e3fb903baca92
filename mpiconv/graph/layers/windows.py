"""Builders of pooling and of means and maxima over whole maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mpiconv.graph.calls import CannotSplitError
from mpiconv.graph.form import Layer, Pair
from mpiconv.graph.layers.base import (
    BUILDERS,
    Add,
    Map,
    both_sides,
    builder,
    need_map,
    out_size_of,
    pair_of,
    simple,
)


@builder("max_pool2d")
def _max_pool(
    add: Add,
    name: str,
    input: Any,  # noqa: A002
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Map:
    if return_indices:
        raise CannotSplitError("max_pool2d that returns indices")
    return _pool(add, name, "maxpool", input, kernel_size, stride, padding, pair_of(dilation), {"ceil_mode": ceil_mode})


@builder("avg_pool2d")
def _avg_pool(
    add: Add,
    name: str,
    input: Any,  # noqa: A002
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Map:
    options = {"ceil_mode": ceil_mode, "count_include_pad": count_include_pad, "divisor_override": divisor_override}
    return _pool(add, name, "avgpool", input, kernel_size, stride, padding, (1, 1), options)


def _pool(
    add: Add,
    name: str,
    kind: str,
    input: Any,  # noqa: A002
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Pair,
    options: dict[str, Any],
) -> Map:
    source = need_map(input)
    kernel, around = pair_of(kernel_size), both_sides(pair_of(padding))
    step = pair_of(stride if stride not in (None, []) else kernel_size)
    size = out_size_of(name, source.shape, kernel, step, around, dilation, ceil_mode=options["ceil_mode"])
    layer = simple(
        kind,
        name,
        source.shape,
        (source.shape[0], *size),
        kernel=kernel,
        stride=step,
        padding=around,
        dilation=dilation,
        options=options,
    )
    return add(layer, source)


@builder("adaptive_avg_pool2d")
def _adaptive_avg_pool(add: Add, name: str, input: Any, output_size: Any) -> Map:  # noqa: A002
    return _adaptive(add, name, need_map(input), output_size, "avg")


@builder("adaptive_max_pool2d")
def _adaptive_max_pool(add: Add, name: str, input: Any, output_size: Any, return_indices: bool = False) -> Map:  # noqa: A002
    if return_indices:
        raise CannotSplitError("adaptive_max_pool2d that returns indices")
    return _adaptive(add, name, need_map(input), output_size, "max")


def _adaptive(add: Add, name: str, source: Map, size: Any, mode: str) -> Map:
    wanted = size if isinstance(size, list | tuple) else (size, size)
    out = tuple(length if want is None else int(want) for want, length in zip(wanted, source.shape[1:], strict=True))
    if out == source.shape[1:]:
        return source
    if math.prod(out) > math.prod(source.shape[1:]):
        raise CannotSplitError("an adaptive pooling that enlarges the map")
    layer = simple("adaptive", name, source.shape, (source.shape[0], *out), options={"mode": mode})  # type: ignore[arg-type]
    return add(layer, source)


def _reduction(function: str) -> Callable[..., Map]:
    def build_it(add: Add, name: str, input: Any, dim: Any = None, keepdim: bool = False) -> Map:  # noqa: A002
        source = need_map(input)
        axes = sorted(d % 4 for d in (dim if isinstance(dim, list | tuple) else [dim] if isinstance(dim, int) else []))
        if not axes or axes[0] == 0 or (not keepdim and axes != [2, 3]):
            raise CannotSplitError(f"{function} over axes {dim}")
        out = tuple(1 if axis + 1 in axes else length for axis, length in enumerate(source.shape))
        options = {"function": function, "axes": axes}
        groups = 1 if 1 in axes else source.shape[0]
        made = add(Layer(name, "reduce", (source.shape,), out, groups=groups, options=options), source)  # type: ignore[arg-type]
        return made if keepdim else replace(made, order="nc")

    return build_it


BUILDERS |= {"mean": _reduction("mean"), "amax": _reduction("amax")}
