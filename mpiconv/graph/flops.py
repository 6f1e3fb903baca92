"""FLOPs of recorded operations, 2 x multiply-adds: those of convolutions and products of matrices, as torch counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from mpiconv.graph.calls import CannotSplitError, bound, kind_of


def flops_of(node: fx.Node) -> int:
    """FLOPs of an operation on all pictures of the batch; 0 for what multiplies no matrices."""
    count = COUNTS.get(kind_of(node))
    if count is None:
        return 0
    try:
        given = bound(node.target, node.args, node.kwargs)
        return int(count(fx.node.map_arg(given, lambda n: n.meta["value"]), node.meta["value"]))
    except (CannotSplitError, KeyError, AttributeError, IndexError, ValueError):
        return 0


def _conv(given: Any, made: torch.Tensor) -> int:
    return 2 * made.numel() * int(given["weight"][0].numel())


def _conv_transpose(given: Any, _: torch.Tensor) -> int:
    return 2 * int(given["input"].numel()) * int(given["weight"][0].numel())


def _linear(given: Any, made: torch.Tensor) -> int:
    return 2 * made.numel() * int(given["weight"].shape[-1])


def _product(given: Any, made: torch.Tensor) -> int:
    first = next(given[name] for name in ("batch1", "mat1", "input") if name in given)
    return 2 * made.numel() * int(first.shape[-1])


def _einsum(given: Any, _: torch.Tensor) -> int:
    """Of a product of two tensors: every combination of indices once."""
    equation, tensors = given["args"][0], given["args"][1:]
    tensors = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], list | tuple) else tensors
    if len(tensors) < 2:
        return 0
    lengths: dict[str, int] = {}
    for term, tensor in zip(equation.replace(" ", "").partition("->")[0].split(","), tensors, strict=True):
        before, dots, after = term.partition("...")
        lengths |= dict(zip(before, tensor.shape, strict=False))
        lengths |= dict(zip(after[::-1], reversed(tensor.shape), strict=False))
        if dots:
            rest = tensor.shape[len(before) : tensor.dim() - len(after)]
            lengths["..."] = max(lengths.get("...", 1), math.prod(rest))
    return 2 * math.prod(lengths.values())


def _attention(given: Any, _: torch.Tensor) -> int:
    """Scaled dot products of queries (..., L, E) and keys (..., S, E), and their products with values (..., S, V)."""
    query, key, value = given["query"], given["key"], given["value"]
    pairs = query[..., 0].numel() * int(key.shape[-2])
    return 2 * int(pairs) * (int(query.shape[-1]) + int(value.shape[-1]))


def _multi_head(given: Any, _: Any) -> int:
    """Attention with its projections, of queries (L, N, E), or (L, E), and keys (S, N, E)."""
    query, key, value = given["query"], given["key"], given["value"]
    width = int(query.shape[-1])
    projected = query.numel() * 2 + key.numel() + value.numel()  # the queries twice: the output is projected too
    pairs = query[..., 0].numel() * int(key.shape[0])
    return 2 * int(projected) * width + 4 * int(pairs) * width


COUNTS: dict[str, Callable[[Any, Any], int]] = {
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "conv_transpose1d": _conv_transpose,
    "conv_transpose2d": _conv_transpose,
    "linear": _linear,
    **dict.fromkeys(("matmul", "__matmul__", "mm", "bmm", "mv", "addmm", "baddbmm"), _product),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _multi_head,
}
