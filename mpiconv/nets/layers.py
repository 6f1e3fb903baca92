"""From torch's modules and functions to ``Layer``s: what each kind means for box arithmetic."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from mpiconv.errors import ModelError
from mpiconv.nets.graph import Layer, Pair, Param, Shape

# elementwise modules, with the arguments that rebuild them
ACTIVATIONS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.ReLU: (),
    nn.ReLU6: (),
    nn.LeakyReLU: ("negative_slope",),
    nn.ELU: ("alpha",),
    nn.SELU: (),
    nn.CELU: ("alpha",),
    nn.GELU: ("approximate",),
    nn.SiLU: (),
    nn.Mish: (),
    nn.Sigmoid: (),
    nn.Tanh: (),
    nn.Hardswish: (),
    nn.Hardsigmoid: (),
    nn.Hardtanh: ("min_val", "max_val"),
    nn.Softplus: ("beta", "threshold"),
    nn.Softsign: (),
    nn.LogSigmoid: (),
}

IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)

WINDOWED = (nn.modules.conv._ConvNd, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd)  # noqa: SLF001
"""Modules that need neighbouring elements: one of them behind a layer that cannot be split is an error."""

FUNCTIONS: dict[Any, Callable[..., nn.Module]] = {
    F.relu: nn.ReLU,
    torch.relu: nn.ReLU,
    "relu": nn.ReLU,
    "relu_": nn.ReLU,
    F.relu6: nn.ReLU6,
    F.leaky_relu: nn.LeakyReLU,
    F.elu: nn.ELU,
    F.gelu: nn.GELU,
    F.silu: nn.SiLU,
    F.mish: nn.Mish,
    F.hardswish: nn.Hardswish,
    F.hardsigmoid: nn.Hardsigmoid,
    F.hardtanh: nn.Hardtanh,
    torch.sigmoid: nn.Sigmoid,
    F.sigmoid: nn.Sigmoid,
    "sigmoid": nn.Sigmoid,
    torch.tanh: nn.Tanh,
    F.tanh: nn.Tanh,
    "tanh": nn.Tanh,
    F.max_pool2d: nn.MaxPool2d,
    F.avg_pool2d: nn.AvgPool2d,
    F.dropout: nn.Dropout,
    F.dropout2d: nn.Dropout2d,
}
"""Functions that do what a module does, with the same arguments after the map."""

WINDOWED_FUNCTIONS = (F.conv2d, F.conv1d, F.conv3d, F.conv_transpose2d, F.max_pool2d, F.avg_pool2d, torch.conv2d)

ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)


class CannotSplitError(Exception):
    """This module is none that boxes describe; the message says why."""


def module_of(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> nn.Module:
    """The module that does what a call of a function or method does.

    Raises CannotSplitError where there is none.
    """
    kwargs = {k: v for k, v in kwargs.items() if k not in ("inplace", "training", "out")}
    try:
        return FUNCTIONS[function](*(a for a in args if not isinstance(a, bool)), **kwargs)
    except (KeyError, TypeError, ValueError):
        name = function if isinstance(function, str) else getattr(function, "__name__", str(function))
        raise CannotSplitError(f"the operation {name}") from None


def layer_of(name: str, module: nn.Module, shape: Shape) -> Layer | None:
    """The layer for a module that reads a map of shape (C, H, W); None for one that does nothing in evaluation.

    Raises
    ------
    CannotSplitError
        The module is of a kind that boxes do not describe.
    ModelError
        The module does not fit the map that it would get.
    """
    if isinstance(module, IDENTITIES):
        return None
    if type(module) in ACTIVATIONS:
        arguments = {key: getattr(module, key) for key in ACTIVATIONS[type(module)]}
        options = {"module": type(module).__name__, "arguments": arguments}
        return Layer(name, "activation", (shape,), shape, groups=shape[0], options=options)
    if isinstance(module, nn.BatchNorm2d):
        return _norm(name, module, shape)
    if isinstance(module, nn.Conv2d):
        return _conv(name, module, shape)
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        return _pool(name, module, shape)
    raise CannotSplitError(type(module).__name__)


def add_layer(name: str, shapes: Sequence[Shape]) -> Layer:
    """The sum of maps of one shape."""
    if len(set(shapes)) != 1:
        raise CannotSplitError("an addition that broadcasts")
    return Layer(name, "add", tuple(shapes), shapes[0], groups=shapes[0][0])


def concat_layer(name: str, shapes: Sequence[Shape]) -> Layer:
    """Maps of one size, one behind the other along the channels."""
    if len({shape[1:] for shape in shapes}) != 1:
        raise CannotSplitError("a concatenation of maps of several sizes")
    return Layer(name, "concat", tuple(shapes), (sum(shape[0] for shape in shapes), *shapes[0][1:]))


def _norm(name: str, module: nn.BatchNorm2d, shape: Shape) -> Layer:
    if module.running_mean is None:
        raise CannotSplitError("BatchNorm2d without running statistics")
    _check_channels(name, module.num_features, shape)
    roles = ("running_mean", "running_var", *(("weight", "bias") if module.affine else ()))
    options = {"eps": module.eps}
    return Layer(name, "norm", (shape,), shape, groups=shape[0], params=_params(name, module, roles), options=options)


def _conv(name: str, module: nn.Conv2d, shape: Shape) -> Layer:
    if module.padding_mode != "zeros":
        raise CannotSplitError(f"Conv2d with padding_mode={module.padding_mode!r}")
    _check_channels(name, module.in_channels, shape)
    kernel, stride, dilation = _pair(module.kernel_size), _pair(module.stride), _pair(module.dilation)
    padding: tuple[Pair, Pair]
    if module.padding == "same":
        around = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        padding = tuple((total // 2, total - total // 2) for total in around)  # type: ignore[assignment]
    else:
        padding = _both_sides((0, 0) if module.padding == "valid" else _pair(module.padding))
    size = _out_size(name, shape, kernel, stride, padding, dilation)
    return Layer(
        name,
        "conv",
        (shape,),
        (module.out_channels, *size),
        kernel,
        stride,
        padding,
        dilation,
        module.groups,
        _params(name, module, ("weight", "bias") if module.bias is not None else ("weight",)),
    )


def _pool(name: str, module: nn.MaxPool2d | nn.AvgPool2d, shape: Shape) -> Layer:
    kernel, padding = _pair(module.kernel_size), _both_sides(_pair(module.padding))
    stride = _pair(module.stride if module.stride is not None else module.kernel_size)
    options: dict[str, Any] = {"ceil_mode": module.ceil_mode}
    dilation = (1, 1)
    if isinstance(module, nn.MaxPool2d):
        if module.return_indices:
            raise CannotSplitError("MaxPool2d that returns indices")
        kind, dilation = "maxpool", _pair(module.dilation)
    else:
        kind = "avgpool"
        options |= {"count_include_pad": module.count_include_pad, "divisor_override": module.divisor_override}
    size = _out_size(name, shape, kernel, stride, padding, dilation, ceil_mode=module.ceil_mode)
    return Layer(
        name, kind, (shape,), (shape[0], *size), kernel, stride, padding, dilation, groups=shape[0], options=options
    )


def _params(name: str, module: nn.Module, roles: Sequence[str]) -> tuple[Param, ...]:
    return tuple(Param(role, f"{name}.{role}", tuple(getattr(module, role).shape)) for role in roles)


def _pair(value: Any) -> Pair:
    rows, columns = value if isinstance(value, tuple | list) else (value, value)
    return int(rows), int(columns)


def _both_sides(padding: Pair) -> tuple[Pair, Pair]:
    return (padding[0], padding[0]), (padding[1], padding[1])


def _check_channels(name: str, wanted: int, shape: Shape) -> None:
    if wanted != shape[0]:
        raise ModelError(f"layer {name} wants {wanted} channels and gets a map of shape {shape}")


def _out_size(
    name: str,
    shape: Shape,
    kernel: Pair,
    stride: Pair,
    padding: tuple[Pair, Pair],
    dilation: Pair,
    *,
    ceil_mode: bool = False,
) -> Pair:
    """Rows and columns of the output, [KPM22] eq. (2), (3); with ``ceil_mode`` no window starts in the far padding."""
    size = []
    for length, k, s, (before, after), d in zip(shape[1:], kernel, stride, padding, dilation, strict=True):
        steps = (length + before + after - d * (k - 1) - 1) / s
        count = (math.ceil(steps) if ceil_mode else math.floor(steps)) + 1
        if ceil_mode and (count - 1) * s >= length + before:
            count -= 1
        if count < 1 or steps < 0:
            raise ModelError(
                f"layer {name}: its kernel does not fit on a map of shape {shape}; use a larger input size"
            )
        size.append(count)
    return size[0], size[1]
