"""From operations to ``Layer``s: what each means for box arithmetic.

Every builder has the signature of the torch function that it stands for.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mpiconv.errors import ModelError
from mpiconv.nets.calls import ACTIVATIONS, ALONE, CannotSplitError, Tensor
from mpiconv.nets.graph import Layer, Pair, Param, Shape
from mpiconv.nets.resample import interpolated, picked


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
ELEMENTWISE = {*ACTIVATIONS, *ALONE, "add", "sub", "mul", "div", "pow", "maximum", "minimum", "clamp", "rsub"}
FULLY_CONNECTED = "fully_connected"
"""A ``linear`` in a network whose head is split."""
NHWC = {*ELEMENTWISE, "linear", FULLY_CONNECTED, "layer_norm"}


def build(kind: str, add: Add, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Map:
    """Note the layers of an operation and give the map that they make.

    Raises
    ------
    CannotSplitError
        The operation, or its arguments, are none that boxes describe.
    ModelError
        It does not fit the map that it would get.
    """
    if kind not in BUILDERS:
        raise CannotSplitError(kind)
    maps = [m for arg in args for m in (arg if isinstance(arg, list | tuple) else [arg]) if isinstance(m, Map)]
    maps += [m for m in kwargs.values() if isinstance(m, Map)]
    orders = {m.order for m in maps}
    allowed = {"nhwc": NHWC, "nc": {*ELEMENTWISE, FULLY_CONNECTED}}
    if not maps or len(orders) != 1 or any(kind not in allowed[o] for o in orders if o != "nchw"):
        raise CannotSplitError(kind)
    builder = BUILDERS[kind]
    try:
        inspect.signature(builder).bind(add, name, *args, **kwargs)
    except TypeError:
        raise CannotSplitError(f"{kind} called in an unknown way") from None
    made, order = builder(add, name, *args, **kwargs), orders.pop()
    return made if order == "nchw" else replace(made, order=order)


def builder(*kinds: str) -> Callable[[Callable[..., Map]], Callable[..., Map]]:
    """Register a builder under the names of the functions that it stands for."""

    def register(function: Callable[..., Map]) -> Callable[..., Map]:
        for kind in kinds:
            BUILDERS[kind] = function
        return function

    return register


def _need_map(value: Any) -> Map:
    if not isinstance(value, Map):
        raise CannotSplitError("an operation whose first argument is no map")
    return value


def _simple(kind: str, name: str, shape: Shape, out: Shape | None = None, **more: Any) -> Layer:
    """A layer whose output channel c depends on input channel c alone."""
    return Layer(name, kind, (shape,), out or shape, **{"groups": shape[0], **more})


def _activation(kind: str) -> Callable[..., Map]:
    module, names = ACTIVATIONS[kind]

    def build_it(add: Add, name: str, input: Any, *args: Any, **kwargs: Any) -> Map:  # noqa: A002 - torch's name
        source = _need_map(input)
        values = [arg for arg in args if not isinstance(arg, bool)]
        if len(values) > len(names) or not set(kwargs) <= set(names):
            raise CannotSplitError(f"{kind} called in an unknown way")
        given = dict(zip(names, values, strict=False)) | kwargs
        arguments = {key: given.get(key, getattr(module(), key)) for key in names}
        if not all(isinstance(value, int | float | str) for value in arguments.values()):
            raise CannotSplitError(f"{kind} whose settings are no numbers")
        options = {"module": module.__name__, "arguments": arguments}
        return add(_simple("activation", name, source.shape, options=options), source)

    return build_it


for _kind in ACTIVATIONS:
    BUILDERS[_kind] = _activation(_kind)


def _function(kind: str) -> Callable[..., Map]:
    def build_it(add: Add, name: str, input: Any) -> Map:  # noqa: A002
        source = _need_map(input)
        return add(_simple("elementwise", name, source.shape, options={"function": kind}), source)

    return build_it


for _kind in ALONE:
    BUILDERS[_kind] = _function(_kind)


@builder("clamp")
def _clamp(add: Add, name: str, input: Any, min: Any = None, max: Any = None) -> Map:  # noqa: A002
    low, high = -math.inf if min is None else min, math.inf if max is None else max
    return BUILDERS["hardtanh"](add, name, input, low, high)


@builder("prelu")
def _prelu(add: Add, name: str, input: Any, weight: Any) -> Map:  # noqa: A002
    source = _need_map(input)
    params = (_param("weight", weight, (source.shape[0],)),)
    return add(_simple("prelu", name, source.shape, params=params), source)


def _arithmetic(kind: str) -> Callable[..., Map]:
    def build_it(add: Add, name: str, input: Any, other: Any, *, alpha: Any = 1) -> Map:  # noqa: A002
        if alpha != 1:
            raise CannotSplitError(f"{kind} with alpha")
        function, left, right = ("sub", other, input) if kind == "rsub" else (kind, input, other)
        if isinstance(left, Map) and isinstance(right, Map):
            return _two_maps(add, name, function, left, right)
        source, value = (left, right) if isinstance(left, Map) else (_need_map(right), left)
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
            params = (_param("other", value, (source.shape[0], 1, 1)),)
            return add(_simple("scale", name, source.shape, params=params, options=options), source)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CannotSplitError(f"{kind} of a map and a {type(value).__name__}")
        return add(_simple("elementwise", name, source.shape, options={**options, "value": value}), source)

    return build_it


for _kind in ("add", "sub", "mul", "div", "pow", "maximum", "minimum", "rsub"):
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
    source = _need_map(input)
    kernel, step, spread = _kernel(name, weight), _pair(stride), _pair(dilation)
    _check_channels(name, weight.shape[1] * groups, source.shape)
    around: tuple[Pair, Pair]
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(spread, kernel, strict=True)]
        around = tuple((n // 2, n - n // 2) for n in total)  # type: ignore[assignment]
    else:
        around = _both_sides((0, 0) if padding == "valid" else _pair(padding))
    if padding_mode != "zeros":
        source = _pad(add, f"{name}.pad", source, [*around[1], *around[0]], padding_mode)
        around = _both_sides((0, 0))
    size = _out_size(name, source.shape, kernel, step, around, spread)
    params = _params(weight=weight, bias=bias)
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
    source = _need_map(input)
    kernel, step, spread, border, more = (
        _kernel(name, weight),
        *(_pair(value) for value in (stride, dilation, padding, output_padding)),
    )
    _check_channels(name, weight.shape[0], source.shape)
    rows, columns = (
        (length - 1) * s - 2 * p + d * (k - 1) + o + 1
        for length, k, s, d, p, o in zip(source.shape[1:], kernel, step, spread, border, more, strict=True)
    )
    if rows < 1 or columns < 1:
        raise ModelError(f"layer {name} makes no rows or columns of a map of shape {source.shape}")
    outs = weight.shape[1] * groups
    shape = (outs, weight.shape[0] // groups, *kernel)
    params = (Param("weight", _tensor(weight).key, shape, groups), *_params(bias=bias))
    out, around = (outs, rows, columns), _both_sides(border)
    return add(Layer(name, "convtranspose", (source.shape,), out, kernel, step, around, spread, groups, params), source)


@builder("linear")
def _linear(add: Add, name: str, input: Any, weight: Any, bias: Any = None) -> Map:  # noqa: A002
    source = _need_map(input)
    if source.order != "nhwc":
        raise CannotSplitError("a fully connected layer")
    _check_channels(name, _tensor(weight).shape[1], source.shape)
    params = (_param("weight", weight, (*weight.shape, 1, 1)), *_params(bias=bias))
    return add(Layer(name, "conv", (source.shape,), (weight.shape[0], *source.shape[1:]), params=params), source)


@builder(FULLY_CONNECTED)
def _fully_connected(add: Add, name: str, input: Any, weight: Any, bias: Any = None) -> Map:  # noqa: A002
    source = _need_map(input)
    if source.order != "nc":
        return _linear(add, name, input, weight, bias)
    made, read = _tensor(weight).shape
    if read != math.prod(source.shape):
        raise ModelError(f"layer {name} wants {read} features and gets a map of shape {source.shape}")
    params = _params(weight=weight, bias=bias)
    return add(Layer(name, "linear", (source.shape,), (made, 1, 1), params=params), source)


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
    momentum: Any = 0.1,  # noqa: ARG001
    eps: float = 1e-5,
) -> Map:
    source = _need_map(input)
    if running_mean is None or training:
        raise CannotSplitError("batch_norm without running statistics")
    _check_channels(name, _tensor(running_mean).shape[0], source.shape)
    params = _params(running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    return add(_simple("norm", name, source.shape, params=params, options={"eps": eps}), source)


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
    momentum: Any = 0.1,  # noqa: ARG001
    eps: float = 1e-5,
) -> Map:
    if running_mean is not None or running_var is not None:
        raise CannotSplitError("instance_norm with running statistics")
    return _group_norm(add, name, input, _need_map(input).shape[0], weight, bias, eps)


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
    source = _need_map(input)
    params, options = _params(weight=weight, bias=bias), {"eps": eps}
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
    source = _need_map(input)
    if source.order != "nhwc" or tuple(normalized_shape) != source.shape[:1]:
        raise CannotSplitError("layer_norm over rows and columns")
    params = _params(weight=weight, bias=bias)
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
    source = _need_map(input)
    options = {"size": size, "alpha": alpha, "beta": beta, "k": k}
    return add(Layer(name, "lrn", (source.shape,), source.shape, options=options), source)


def _softmax(*, log: bool) -> Callable[..., Map]:
    def build_it(add: Add, name: str, input: Any, dim: Any = None, **unused: Any) -> Map:  # noqa: A002, ARG001
        source = _need_map(input)
        if dim not in (1, -3):
            raise CannotSplitError("a softmax that is not over the channels")
        return add(Layer(name, "softmax", (source.shape,), source.shape, options={"log": log}), source)

    return build_it


BUILDERS |= {"softmax": _softmax(log=False), "log_softmax": _softmax(log=True)}


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
    return _pool(add, name, "maxpool", input, kernel_size, stride, padding, _pair(dilation), {"ceil_mode": ceil_mode})


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
    source = _need_map(input)
    kernel, around = _pair(kernel_size), _both_sides(_pair(padding))
    step = _pair(stride if stride not in (None, []) else kernel_size)
    size = _out_size(name, source.shape, kernel, step, around, dilation, ceil_mode=options["ceil_mode"])
    layer = _simple(
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
    return _adaptive(add, name, _need_map(input), output_size, "avg")


@builder("adaptive_max_pool2d")
def _adaptive_max_pool(add: Add, name: str, input: Any, output_size: Any, return_indices: bool = False) -> Map:  # noqa: A002
    if return_indices:
        raise CannotSplitError("adaptive_max_pool2d that returns indices")
    return _adaptive(add, name, _need_map(input), output_size, "max")


def _adaptive(add: Add, name: str, source: Map, size: Any, mode: str) -> Map:
    wanted = size if isinstance(size, list | tuple) else (size, size)
    out = tuple(length if want is None else int(want) for want, length in zip(wanted, source.shape[1:], strict=True))
    if out == source.shape[1:]:
        return source
    if math.prod(out) > math.prod(source.shape[1:]):
        raise CannotSplitError("an adaptive pooling that enlarges the map")
    layer = _simple("adaptive", name, source.shape, (source.shape[0], *out), options={"mode": mode})  # type: ignore[arg-type]
    return add(layer, source)


def _reduction(function: str) -> Callable[..., Map]:
    def build_it(add: Add, name: str, input: Any, dim: Any = None, keepdim: bool = False) -> Map:  # noqa: A002
        source = _need_map(input)
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


@builder("interpolate")
def _interpolate(
    add: Add,
    name: str,
    input: Any,  # noqa: A002
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: Any = None,
    recompute_scale_factor: Any = None,
    antialias: bool = False,
) -> Map:
    source = _need_map(input)
    settings = {
        "mode": mode,
        "align_corners": align_corners,
        "recompute_scale_factor": recompute_scale_factor,
        "antialias": antialias,
    }
    both = (list(_pair(size)) if size is not None else None, _scales(scale_factor))
    rows, columns = (
        interpolated(length, settings | {"size": both[0] and both[0][axis], "scale_factor": both[1] and both[1][axis]})
        for axis, length in enumerate(source.shape[1:])
    )
    whole = settings | {"size": both[0], "scale_factor": both[1]}
    return _resampled(add, name, source, None, rows, columns, whole)


def _upsample(mode: str) -> Callable[..., Map]:
    def build_it(
        add: Add,
        name: str,
        input: Any,  # noqa: A002
        output_size: Any = None,
        align_corners: bool | None = None,
        scale_factors: Any = None,
    ) -> Map:
        return _interpolate(add, name, input, output_size, scale_factors, mode, align_corners)

    return build_it


BUILDERS |= {f"upsample_{mode}2d": _upsample(mode) for mode in ("nearest", "bilinear", "bicubic")}


@builder("pad")
def _pad(add: Add, name: str, input: Any, pad: Any, mode: str = "constant", value: Any = 0) -> Map:  # noqa: A002
    source = _need_map(input)
    around = [int(n) for n in (pad if isinstance(pad, list | tuple) else [pad] * 4)]
    if len(around) % 2 or len(around) > 6 or (mode != "constant" and len(around) > 4):
        raise CannotSplitError(f"pad by {around}")
    around += [0] * (6 - len(around))
    sizes = [length + around[4 - 2 * i] + around[5 - 2 * i] for i, length in enumerate(source.shape)]
    if min(sizes) < 1:
        raise ModelError(f"layer {name} leaves nothing of a map of shape {source.shape}")
    if any(around[4:]):
        if value not in (0, None) or any(around[:4]):
            raise CannotSplitError("pad along channels and rows at once, or by more than zeros")
        rows = [i - around[4] if 0 <= i - around[4] < source.shape[0] else -1 for i in range(sizes[0])]
        return _resampled(add, name, source, picked(rows), None, None)
    if mode != "constant":
        tables = [
            picked(_mirrored(length, before, after, mode, name)) if before or after else None
            for length, before, after in zip(source.shape[1:], around[2::-2], around[3::-2], strict=False)
        ]
        return _resampled(add, name, source, None, tables[0], tables[1])
    padding = ((around[2], around[3]), (around[0], around[1]))
    out = (source.shape[0], sizes[1], sizes[2])
    if not any(around):
        return source
    return add(_simple("pad", name, source.shape, out, padding=padding, options={"value": float(value or 0)}), source)


@builder("constant_pad_nd")
def _constant_pad(add: Add, name: str, input: Any, pad: Any, value: Any = 0) -> Map:  # noqa: A002
    return _pad(add, name, input, pad, "constant", value)


def _mirrored(length: int, before: int, after: int, mode: str, name: str) -> list[int]:
    """Which row each row of a map padded by its own rows is."""
    rows = range(-before, length + after)
    limit = {"reflect": length - 1, "circular": length}.get(mode, before + after)
    if max(before, after) > limit:
        raise ModelError(f"layer {name}: {mode} padding by more than the map has")
    if mode == "replicate":
        return [min(max(row, 0), length - 1) for row in rows]
    if mode == "circular":
        return [row % length for row in rows]
    if mode == "reflect":
        return [abs(row) if row < length else 2 * (length - 1) - row for row in rows]
    raise CannotSplitError(f"padding by {mode}")


def resample(add: Add, name: str, source: Map, tables: Sequence[Any]) -> Map:
    """A layer that picks channels, rows and columns of a map by tables."""
    return _resampled(add, name, source, *tables)


def _resampled(
    add: Add, name: str, source: Map, channels: Any, rows: Any, columns: Any, interpolate: dict[str, Any] | None = None
) -> Map:
    tables = (channels, rows, columns)
    out = tuple(len(t["index"]) if t else length for t, length in zip(tables, source.shape, strict=True))
    options = {"channels": channels, "rows": rows, "columns": columns, "interpolate": interpolate}
    groups = 1 if channels else source.shape[0]
    return add(Layer(name, "resample", (source.shape,), out, groups=groups, options=options), source)  # type: ignore[arg-type]


@builder("pixel_shuffle")
def _pixel_shuffle(add: Add, name: str, input: Any, upscale_factor: int) -> Map:  # noqa: A002
    source, r = _need_map(input), int(upscale_factor)
    channels, rows, columns = source.shape
    _check_channels(name, channels // r**2 * r**2, source.shape)
    out = (channels // r**2, rows * r, columns * r)
    return add(Layer(name, "pixelshuffle", (source.shape,), out, stride=(r, r), groups=out[0]), source)


@builder("pixel_unshuffle")
def _pixel_unshuffle(add: Add, name: str, input: Any, downscale_factor: int) -> Map:  # noqa: A002
    source, r = _need_map(input), int(downscale_factor)
    channels, rows, columns = source.shape
    if rows % r or columns % r:
        raise ModelError(f"layer {name} wants rows and columns that are multiples of {r}, gets {source.shape}")
    out = (channels * r**2, rows // r, columns // r)
    layer = Layer(name, "pixelunshuffle", (source.shape,), out, (r, r), (r, r), groups=channels)
    return add(layer, source)


def rows_of(param: Param, tensor: torch.Tensor) -> torch.Tensor:
    """A parameter as its layer computes with it: of the shape ``param.shape``, output channels first.

    Raises ValueError where the tensor does not have the number of elements for that.
    """
    if param.groups:
        outs, ins, *kernel = param.shape
        parts = tensor.reshape(param.groups, ins, outs // param.groups, *kernel)
        return parts.transpose(1, 2).reshape(param.shape)
    if tensor.numel() == 1:
        return tensor.reshape([1] * len(param.shape)).expand(param.shape)
    if tensor.numel() != param.size:
        raise ValueError(f"{tuple(tensor.shape)} is not {param.shape}")
    return tensor.reshape(param.shape)


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise CannotSplitError("a layer whose weights are computed")
    return value


def _param(role: str, value: Any, shape: tuple[int, ...]) -> Param:
    return Param(role, _tensor(value).key, shape)


def _params(**tensors: Any) -> tuple[Param, ...]:
    return tuple(_param(role, value, _tensor(value).shape) for role, value in tensors.items() if value is not None)


def _kernel(name: str, weight: Any) -> Pair:
    shape = _tensor(weight).shape
    if len(shape) != 4:
        raise CannotSplitError(f"a convolution {name} that is not of two dimensions")
    return shape[2], shape[3]


def _pair(value: Any) -> Pair:
    values = list(value) if isinstance(value, tuple | list) else [value, value]
    if len(values) not in (1, 2) or not all(isinstance(v, int) for v in values):
        raise CannotSplitError(f"a setting of {value!r}, where one or two whole numbers are wanted")
    return int(values[0]), int(values[-1])


def _scales(value: Any) -> list[float] | None:
    if value is None:
        return None
    values = list(value) if isinstance(value, tuple | list) else [value, value]
    return [float(values[0]), float(values[-1])]


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
