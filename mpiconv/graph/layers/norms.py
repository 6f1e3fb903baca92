"""Builders of norms and softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpiconv.graph.calls import CannotSplitError
from mpiconv.graph.form import Layer
from mpiconv.graph.layers.base import (
    BUILDERS,
    Add,
    Map,
    builder,
    check_channels,
    need_map,
    params_of,
    simple,
    tensor_of,
)


@builder("batch_norm")
def _batch_norm(
    add: Add,
    name: str,
    input: Any,  # noqa: A002
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    eps: float = 1e-5,
) -> Map:
    source = need_map(input)
    if running_mean is None or training:
        raise CannotSplitError("batch_norm without running statistics")
    check_channels(name, tensor_of(running_mean).shape[0], source.shape)
    params = params_of(running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    return add(simple("norm", name, source.shape, params=params, options={"eps": eps}), source)


@builder("instance_norm")
def _instance_norm(
    add: Add,
    name: str,
    input: Any,  # noqa: A002
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,  # noqa: ARG001
    eps: float = 1e-5,
) -> Map:
    if running_mean is not None or running_var is not None:
        raise CannotSplitError("instance_norm with running statistics")
    return _group_norm(add, name, input, need_map(input).shape[0], weight, bias, eps)


@builder("group_norm")
def _group_norm(
    add: Add,
    name: str,
    input: Any,  # noqa: A002
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Map:
    source = need_map(input)
    params, options = params_of(weight=weight, bias=bias), {"eps": eps}
    layer = Layer(name, "groupnorm", (source.shape,), source.shape, groups=num_groups, params=params, options=options)
    return add(layer, source)


@builder("layer_norm")
def _layer_norm(
    add: Add,
    name: str,
    input: Any,  # noqa: A002
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Map:
    source = need_map(input)
    if source.order != "nhwc" or tuple(normalized_shape) != source.shape[:1]:
        raise CannotSplitError("layer_norm over rows and columns")
    params = params_of(weight=weight, bias=bias)
    return add(Layer(name, "layernorm", (source.shape,), source.shape, params=params, options={"eps": eps}), source)


@builder("local_response_norm")
def _local_response_norm(
    add: Add,
    name: str,
    input: Any,  # noqa: A002
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
) -> Map:
    source = need_map(input)
    options = {"size": size, "alpha": alpha, "beta": beta, "k": k}
    return add(Layer(name, "lrn", (source.shape,), source.shape, options=options), source)


def _softmax(*, log: bool) -> Callable[..., Map]:
    def build_it(add: Add, name: str, input: Any, dim: Any = None) -> Map:  # noqa: A002
        source = need_map(input)
        if dim not in (1, -3):
            raise CannotSplitError("a softmax that is not over the channels")
        return add(Layer(name, "softmax", (source.shape,), source.shape, options={"log": log}), source)

    return build_it


BUILDERS |= {"softmax": _softmax(log=False), "log_softmax": _softmax(log=True)}
