"""Builders of what has kernels: convolutions, transposed ones, and linear layers."""

from __future__ import annotations

import math
from typing import Any

from mpiconv.errors import ModelError
from mpiconv.graph.calls import CannotSplitError
from mpiconv.graph.form import Layer, Pair, Param
from mpiconv.graph.layers.base import (
    BUILDERS,
    Add,
    Map,
    both_sides,
    builder,
    check_channels,
    kernel_of,
    need_map,
    out_size_of,
    pair_of,
    param_of,
    params_of,
    tensor_of,
)


@builder("conv2d")
def _conv(
    add: Add,
    name: str,
    input: Any,  # noqa: A002
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Map:
    source = need_map(input)
    kernel, step, spread = kernel_of(name, weight), pair_of(stride), pair_of(dilation)
    check_channels(name, weight.shape[1] * groups, source.shape)
    around: tuple[Pair, Pair]
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(spread, kernel, strict=True)]
        around = tuple((n // 2, n - n // 2) for n in total)  # type: ignore[assignment]
    else:
        around = both_sides((0, 0) if padding == "valid" else pair_of(padding))
    if padding_mode != "zeros":
        source = BUILDERS["pad"](add, f"{name}.pad", source, [*around[1], *around[0]], padding_mode)
        around = both_sides((0, 0))
    size = out_size_of(name, source.shape, kernel, step, around, spread)
    params = params_of(weight=weight, bias=bias)
    out = (weight.shape[0], *size)
    return add(Layer(name, "conv", (source.shape,), out, kernel, step, around, spread, groups, params), source)


@builder("conv_transpose2d")
def _conv_transpose(
    add: Add,
    name: str,
    input: Any,  # noqa: A002
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Map:
    source = need_map(input)
    kernel, step, spread, border, more = (
        kernel_of(name, weight),
        *(pair_of(value) for value in (stride, dilation, padding, output_padding)),
    )
    check_channels(name, weight.shape[0], source.shape)
    rows, columns = (
        (length - 1) * s - 2 * p + d * (k - 1) + o + 1
        for length, k, s, d, p, o in zip(source.shape[1:], kernel, step, spread, border, more, strict=True)
    )
    if rows < 1 or columns < 1:
        raise ModelError(f"layer {name} makes no rows or columns of a map of shape {source.shape}")
    outs = weight.shape[1] * groups
    shape = (outs, weight.shape[0] // groups, *kernel)
    params = (Param("weight", tensor_of(weight).key, shape, groups), *params_of(bias=bias))
    out, around = (outs, rows, columns), both_sides(border)
    return add(Layer(name, "convtranspose", (source.shape,), out, kernel, step, around, spread, groups, params), source)


@builder("linear")
def _linear(add: Add, name: str, input: Any, weight: Any, bias: Any = None) -> Map:  # noqa: A002
    """Of features, which are all that was flattened; or of channels, pixel by pixel, which is a convolution."""
    source, (made, read) = need_map(input), tensor_of(weight).shape
    if source.order == "nc":
        if read != math.prod(source.shape):
            raise ModelError(f"layer {name} wants {read} features and gets a map of shape {source.shape}")
        params = params_of(weight=weight, bias=bias)
        return add(Layer(name, "linear", (source.shape,), (made, 1, 1), params=params), source)
    if source.order != "nhwc":
        raise CannotSplitError("a fully connected layer")
    check_channels(name, read, source.shape)
    params = (param_of("weight", weight, (made, read, 1, 1)), *params_of(bias=bias))
    return add(Layer(name, "conv", (source.shape,), (made, *source.shape[1:]), params=params), source)
