"""Units compiled by torch's fuser for oneDNN Graph: convolution, activation and pooling in calls prepared once.

A call costs 10 to 20 us where the operations of ``onednn`` prepare theirs anew for 40 to 80 us, and poolings and
additions are oneDNN's too. This is the only place that knows torch.jit; where it or its fuser is missing (torch builds
for Arm, a torch without TorchScript), or gives something else, ``available`` says so.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from mpiconv.runtime.compute.onednn import slices

Function = Callable[..., torch.Tensor]

FUSED = "prim::oneDNNFusionGroup"
MOST_BYTES = 2**22
"""Weights of a unit that is worth compiling: larger ones gain nothing, and torch and oneDNN each keep a copy."""


@cache
def available() -> bool:
    """Whether this torch on this processor fuses a convolution and computes what it should."""
    if not hasattr(torch.jit, "enable_onednn_fusion") or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    x, weight, bias = (
        torch.linspace(-1, 1, math.prod(shape)).view(shape) for shape in ((1, 4, 5, 6), (16, 4, 3, 3), (16,))
    )

    def plain(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, weight, bias, (2, 1), (1, 0)).relu()

    try:
        with torch.inference_mode():
            run = fused(plain, (x,))
            return run is not plain and bool(torch.allclose(run(x), plain(x), atol=1e-4))
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False


def fused(function: Function, maps: Sequence[torch.Tensor]) -> Function:
    """The function compiled into fused calls of oneDNN for maps like ``maps``; itself where nothing can be fused.

    Parameters
    ----------
    function
        Torch's operations on maps. It must not write to them, nor depend on what they contain.
    maps
        Maps as it is to be called with: others it computes too, but slower. What is not in one piece is copied at every
        call: oneDNN takes 50 times as long to add slices of maps.
    """
    maps = tuple(_dense(x) for x in maps)
    with _fusing():
        run: Function = torch.jit.trace(function, maps, check_trace=False)  # type: ignore[no-untyped-call]
        try:
            for _ in range(2):  # the first call notes shapes, the second compiles for them
                run(*maps)
        except RuntimeError:  # oneDNN can not, though the fuser thought so
            return function
        if not _count(torch._C._last_executed_optimized_graph()):  # noqa: SLF001
            return function
    laid = [(x.shape, x.stride()) for x in maps]
    (shape, strides), *more = laid
    if more:
        return lambda *maps: run(*(x if x.stride() == s[1] else _as(x, *s) for x, s in zip(maps, laid, strict=True)))
    return lambda x: run(x if x.stride() == strides else _as(x, shape, strides))


def convolution(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: nn.Module | None,
) -> Function:
    """The operations of a convolution and the activation after it, to be fused."""
    pieces = [(part.clone(), shift, count) for part, shift, count in slices(weight, bias, groups)]

    def piece(x: torch.Tensor, part: torch.Tensor, shift: torch.Tensor | None, count: int | None) -> torch.Tensor:
        x = F.conv2d(x, part, shift, tuple(stride), tuple(padding), tuple(dilation), groups)
        if activation is not None:
            x = activation(x)
        return x if count is None else x[:, :count]

    if len(pieces) == 1:
        return lambda x: piece(x, *pieces[0])
    return lambda x: torch.cat([piece(x, *part) for part in pieces], 1)


@contextmanager
def _fusing() -> Iterator[None]:
    """With torch's fuser on, and without torch's warnings about TorchScript and tracing, which no user can act on."""
    before = torch._C._jit_llga_enabled()  # noqa: SLF001
    torch.jit.enable_onednn_fusion(True)
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.jit.enable_onednn_fusion(before)


def _dense(x: torch.Tensor) -> torch.Tensor:
    """The map itself if it is contiguous (in either memory format), else a copy with channels last."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous(memory_format=torch.channels_last)


def _as(x: torch.Tensor, shape: torch.Size, strides: tuple[int, ...]) -> torch.Tensor:
    """The map with these strides: a view where only axes of length 1 differ, else a copy."""
    if x.shape != shape:
        return x
    if all(a == b for size, a, b in zip(shape, x.stride(), strides, strict=True) if size > 1):
        return x.as_strided(shape, strides)
    return torch.empty_strided(shape, strides).copy_(x)


def _count(graph: Any) -> int:
    """How many fused calls a graph has."""
    found = 0
    for node in graph.nodes():
        found += node.kind().startswith(FUSED)
        found += sum(_count(block) for block in node.blocks())
    return found
