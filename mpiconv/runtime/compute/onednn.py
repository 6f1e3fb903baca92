"""oneDNN's convolution with weights reordered once and bias and activation in the same call.

This is the only place that knows these inner operations of torch (they are what torch.compile emits on a CPU). Where
they are missing, or give something else than a convolution, ``available`` says so and the eager operations do the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from time import perf_counter
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - its usual name

Activation = tuple[str, list[float], str]
"""oneDNN's name of an activation, its numbers, and which form of it."""

Packed = dict[tuple[object, ...], Any]
"""Reordered weights, by what they are called and how they are cut."""

NONE: Activation = ("none", [], "")

LARGE_REDUCTION = 2304
SMALL_SLICE = 64
SAFE_WIDTH = 32
FAR_SLOWER = 4


@cache
def available() -> bool:
    """Whether this torch on this processor has the operations and they compute what they should."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    x, weight, bias = torch.randn(1, 4, 5, 6), torch.randn(8, 4, 3, 3), torch.randn(8)
    try:
        with torch.inference_mode():
            conv = convolution(weight, bias, tuple(x.shape), (2, 1), (1, 0), (1, 1), 1, ("relu", [], ""))
            mine, wanted = conv(x), F.conv2d(x, weight, bias, (2, 1), (1, 0)).relu()
            return bool(torch.allclose(mine, wanted, atol=1e-4))
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False


@cache
def slow_at_edges() -> bool:
    """Whether oneDNN is slower than need be where a window reaches past the edge: with AVX2, not with AVX-512.

    Kernels of ``LARGE_KERNEL`` rows take a seventh longer than with the map padded before, smaller ones less; poolings,
    and additions, take twice as long as torch's.
    """
    return str(torch.backends.cpu.get_cpu_capability()) == "AVX2"


def convolution(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: Activation = NONE,
    packed: Packed | None = None,
    key: tuple[object, ...] = (),
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The convolution of pictures of ``shape`` (N, C, H, W), which returns channels_last maps.

    It keeps its own copy of the weights in the order that suits the shape, or shares one that ``packed`` has, unless
    that one is of no use here.
    """
    packed = {} if packed is None else packed
    name, numbers, form = activation
    paddings, strides, dilations = list(padding), list(stride), list(dilation)
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # noqa: SLF001
    compute = torch.ops.mkldnn._convolution_pointwise.default  # noqa: SLF001

    def plain(x: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = compute(x, kernels, None, paddings, strides, dilations, groups, *NONE)
        return result

    pieces, start = [], 0
    for kernels, shift, count in slices(weight, bias, groups):
        label = (*key, start, len(kernels))
        own: torch.Tensor = reorder(kernels.to_mkldnn(), paddings, strides, dilations, groups, list(shape))
        ordered = packed.setdefault(label, own)
        if ordered is not own and _slow(ordered, own, plain, shape):
            ordered = packed.setdefault((*label, *shape), own)
        pieces.append((ordered, shift, count))
        start += len(kernels)

    def piece(x: torch.Tensor, kernels: torch.Tensor, shift: torch.Tensor | None, count: int | None) -> torch.Tensor:
        result: torch.Tensor = compute(x, kernels, shift, paddings, strides, dilations, groups, name, numbers, form)
        return result if count is None else result[:, :count]

    if len(pieces) == 1:
        return lambda x: piece(x, *pieces[0])
    return lambda x: torch.cat([piece(x, *part) for part in pieces], 1)


def _slow(
    shared: torch.Tensor,
    own: torch.Tensor,
    compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    shape: Sequence[int],
) -> bool:
    """Whether weights in the order of another shape are far slower here than in this shape's: tried out.

    oneDNN takes any order, but where its kernel for this shape wants another, it may be a hundred times slower (256 to
    384 channels, 3 x 3, rows of 13: 71 ms a row in place of 0.6).
    """
    x = torch.zeros(*shape).contiguous(memory_format=torch.channels_last)

    def seconds(weights: torch.Tensor) -> float:
        times = []
        for _ in range(2):
            begin = perf_counter()
            compute(x, weights)
            times.append(perf_counter() - begin)
        return min(times)

    with torch.inference_mode():
        return seconds(shared) > FAR_SLOWER * seconds(own)


def slices(
    weight: torch.Tensor, bias: torch.Tensor | None, groups: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, int | None]]:
    """The kernels and biases of a convolution as they are computed together, and how many of them count if not all."""
    start = 0
    for width in widths(len(weight), weight[0].numel()) if groups == 1 else [len(weight)]:
        count = min(width, len(weight) - start)
        more = width - count
        mine = weight.detach()[start : start + count]
        kernels = F.pad(mine, (0, 0) * 3 + (0, more)) if more else mine.contiguous()
        shift = None if bias is None else F.pad(bias.detach()[start : start + count], (0, more))
        yield kernels, shift, count if more else None
        start += count


def widths(kernels: int, reduction: int) -> list[int]:
    """In how many kernels at a time a slice is computed, the last ones made up with zeros.

    oneDNN is slow for numbers that are no multiple of 16, and up to 64 kernels of a large reduction (elements of one
    kernel) may take another path than a whole layer, which adds in another order: then 32 at a time take the same.
    """
    if reduction >= LARGE_REDUCTION and kernels <= SMALL_SLICE:
        return [SAFE_WIDTH] * -(-kernels // SAFE_WIDTH)
    return [-(-kernels // 16) * 16]


def activation_of(module: str, arguments: Mapping[str, Any]) -> Activation | None:
    """What fuses an activation module of torch.nn into a convolution, None where oneDNN has no such thing."""
    if module == "LeakyReLU":
        return "leaky_relu", [float(arguments.get("negative_slope", 0.01))], ""
    if module == "Hardtanh":
        return "hardtanh", [float(arguments.get("min_val", -1.0)), float(arguments.get("max_val", 1.0))], ""
    if module == "ReLU6":
        return "hardtanh", [0.0, 6.0], ""
    if module == "GELU":
        return "gelu", [], str(arguments.get("approximate", "none"))
    names = {"ReLU": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "SiLU": "swish", "Hardswish": "hardswish"}
    return (names[module], [], "") if module in names else None
