"""What a recorded operation is: its kind by torch's name, and its arguments by the operator's own signature."""

from __future__ import annotations

import inspect
import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

# elementwise operations with the module that does them and its arguments in order
ACTIVATIONS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "relu": (nn.ReLU, ()),
    "relu6": (nn.ReLU6, ()),
    "leaky_relu": (nn.LeakyReLU, ("negative_slope",)),
    "elu": (nn.ELU, ("alpha",)),
    "selu": (nn.SELU, ()),
    "celu": (nn.CELU, ("alpha",)),
    "gelu": (nn.GELU, ("approximate",)),
    "silu": (nn.SiLU, ()),
    "mish": (nn.Mish, ()),
    "sigmoid": (nn.Sigmoid, ()),
    "tanh": (nn.Tanh, ()),
    "hardswish": (nn.Hardswish, ()),
    "hardsigmoid": (nn.Hardsigmoid, ()),
    "hardtanh": (nn.Hardtanh, ("min_val", "max_val")),
    "softplus": (nn.Softplus, ("beta", "threshold")),
    "softsign": (nn.Softsign, ()),
    "logsigmoid": (nn.LogSigmoid, ()),
}
ALONE = ("abs", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "square", "neg", "reciprocal", "sin", "cos", "erf")
"""Functions of one element."""

ARITHMETIC = ("add", "sub", "mul", "div", "pow", "maximum", "minimum", "rsub", "rdiv", "rpow")
"""Functions of two maps, or of a map and numbers."""

DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout")
PASSED_ON = (*DROPOUTS, "feature_alpha_dropout", "detach", "data", "requires_grad_")
"""Operations that leave the values of a map as they are in evaluation."""

TO_TYPE = ("to", "float", "type", "type_as")
"""What changes the type of a tensor's elements, if it is not that already."""

MOVES = (
    *("view", "reshape", "_unsafe_view", "permute", "transpose", "swapaxes", "movedim", "flatten", "unflatten"),
    *("squeeze", "unsqueeze", "chunk", "split", "split_with_sizes", "tensor_split", "unbind", "narrow", "select"),
    *("slice", "getitem", "index_select", "flip", "roll", "expand", "expand_as", "view_as", "reshape_as"),
    *("channel_shuffle", "contiguous", "clone", "T", "mT", "__iter__"),
)
"""Operations that only move elements: what they do is seen by doing it to the elements' numbers."""

ALIASES = {
    "concat": "cat",
    "concatenate": "cat",
    "true_divide": "div",
    "truediv": "div",
    "multiply": "mul",
    "divide": "div",
    "subtract": "sub",
    "negative": "neg",
    "clip": "clamp",
    "swapdims": "swapaxes",
    "moveaxis": "movedim",
    "upsample": "interpolate",
    "log_sigmoid": "logsigmoid",
    "native_channel_shuffle": "channel_shuffle",
    "__radd__": "add",
    "__rmul__": "mul",
    "__rsub__": "rsub",
    "__rdiv__": "rdiv",
    "__rtruediv__": "rdiv",
    "__rpow__": "rpow",
    "__pow__": "pow",
    "__ipow__": "pow",
    "__getitem__": "getitem",
    "__setitem__": "setitem",
}
CONVOLUTIONS = ("conv2d", "conv_transpose2d")
"""What is worth splitting: it decides whether the root hands a map on or keeps all that follows as the head."""

IRRELEVANT = ("inplace", "cudnn_enabled", "cudnn_enable", "_stacklevel", "momentum")
"""Arguments that do not change what is computed in evaluation; whether one writes in place is recorded anyway."""

REQUIRED = inspect.Parameter.empty


class CannotSplitError(Exception):
    """An operation is none that boxes describe; the message names it. The root then runs it, which is no failure."""


class Tensor:
    """A constant that an operation reads - a parameter, a buffer, or one that forward makes: key, shape, dtype."""

    def __init__(self, key: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
        self.key, self.shape, self.dtype = key, shape, dtype


def name_of(target: Any) -> str:
    """A function's or method's name by the one name that torch has for it, without the underscore of in-place forms."""
    if isinstance(target, torch._ops.OpOverload):  # noqa: SLF001 - it has no public name
        target = target._schema.name.partition("::")[2]  # noqa: SLF001
    elif isinstance(target, torch._ops.OpOverloadPacket):  # noqa: SLF001
        target = target._qualified_op_name.partition("::")[2]  # noqa: SLF001
    name = target if isinstance(target, str) else str(getattr(target, "__name__", type(target).__name__))
    if name == "__get__":  # a property of a tensor
        name = str(target.__self__.__name__)
    if not name.startswith("__"):
        name = name.removesuffix("_") if name != "requires_grad_" else name
    return ALIASES.get(name, name)


@cache
def property_of(name: str) -> Callable[[torch.Tensor], Any]:
    """The function that reads a property of a tensor, such as ``T``."""

    def read(tensor: torch.Tensor) -> Any:
        return getattr(tensor, name)

    read.__name__ = read.__qualname__ = name
    return read


def called(func: Callable[..., Any]) -> tuple[Any, bool]:
    """What a graph calls for a function that torch reports: the function itself, or a method's name and True."""
    name = str(getattr(func, "__name__", ""))
    if name == "__get__":
        return property_of(str(func.__self__.__name__)), False  # type: ignore[attr-defined]
    if getattr(torch.Tensor, name, None) is not func:
        name = _methods().get(func, "")
    return (name, True) if name else (func, False)


@cache
def _methods() -> dict[Any, str]:
    """Torch's methods that go by another name than their own: ``**`` is one."""
    return {torch.Tensor.__pow__: "__pow__", torch.Tensor.__ipow__: "__ipow__"}


@cache
def kind_of_target(target: Any) -> str:
    """What a function, or the method of this name, does: see ``kind_of``."""
    aten = isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket) and str(target).startswith("aten.")  # noqa: SLF001
    name = getattr(target, "__name__", "")
    own = any(getattr(room, name, None) is target for room in (F, torch, torch._C._nn))  # noqa: SLF001
    known = isinstance(target, str) or aten or own or target in (operator.getitem, property_of(name))
    return name_of(target) if known else f"{getattr(target, '__module__', '')}.{name or target}"


def kind_of(node: fx.Node) -> str:
    """What a recorded operation does, by torch's name for it; with its module before it where it is not torch's own."""
    return kind_of_target(node.target)


def writes(node: fx.Node) -> bool:
    """Whether an operation writes over one of its arguments."""
    return bool(node.meta.get("writes"))


def bound(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, usual: bool = True) -> dict[str, Any]:
    """All arguments of a call by name, those not given with their default.

    The first is called ``input`` where torch says ``self``, ``other`` where an exponent is the second of two operands.

    Parameters
    ----------
    target
        The function, or the name of a method.
    args, kwargs
        What it was called with; tensors may be anything but numbers, texts and sequences.
    usual
        False leaves out what has its default, and arguments that change nothing in evaluation.

    Raises
    ------
    CannotSplitError
        The signature is not known, or these arguments do not fit it.
    """
    if isinstance(target, str) and target.startswith("__"):  # an operator of Python's
        found, defaults = dict(zip(("input", "other"), args, strict=False)) | dict(kwargs), dict[str, Any]()
    elif not isinstance(target, str) and inspect.isfunction(target):
        found, defaults = _bound_by_python(target, args, kwargs)
    else:
        found, defaults = _bound_by_schema(target, args, kwargs)
    if not usual:
        found = {
            name: value
            for name, value in found.items()
            if name not in IRRELEVANT and not (name in defaults and _is_default(value, defaults[name]))
        }
    return {{"self": "input", "exponent": "other"}.get(name, name): value for name, value in found.items()}


def _is_default(value: Any, default: Any) -> bool:
    return value is default or (
        type(value) is type(default) and isinstance(value, int | float | str | list) and value == default
    )


Bound = tuple[dict[str, Any], dict[str, Any]]
"""Arguments by name, and the defaults of those that have one."""


def _bound_by_python(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Bound:
    choice: Any = torch._jit_internal.boolean_dispatched.get(target)  # noqa: SLF001 - one function by a flag's value
    if choice is not None:
        at, name = choice["index"], choice["arg_name"]
        flag = kwargs.get(name, args[at] if len(args) > at else choice["default"])
        target = choice["if_true" if flag else "if_false"]
    try:
        signature = inspect.signature(target)
        found = signature.bind(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise CannotSplitError(f"{target.__name__} called in an unknown way: {error}") from None
    found.apply_defaults()
    defaults = {name: p.default for name, p in signature.parameters.items() if p.default is not REQUIRED}
    return dict(found.arguments), defaults


def _bound_by_schema(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Bound:
    forms = [args]
    if len(args) > 2 and all(type(value) is int for value in args[1:]):
        forms.append([args[0], list(args[1:])])  # x.permute(0, 2, 3, 1)
    for form, schema in itertools.product(forms, _schemas(target)):
        found = _fitted(schema, form, kwargs)
        if found is not None:
            return found, {name: default for name, _, default, _ in schema if default is not REQUIRED}
    raise CannotSplitError(f"{name_of(target)} called in an unknown way")


Schema = tuple[tuple[str, str, Any, bool], ...]
"""Of every argument its name, type, default and whether it is given by name only."""


@cache
def _schemas(target: Any) -> tuple[Schema, ...]:
    """The signatures that torch's operator of this name has, those with ``out`` last."""
    if isinstance(target, torch._ops.OpOverload):  # noqa: SLF001
        schemas = [target._schema]  # noqa: SLF001
    else:
        raw = target if isinstance(target, str) else str(getattr(target, "__name__", ""))
        found = (torch._C._jit_get_schemas_for_operator(f"aten::{name}") for name in (raw, name_of(target)))  # noqa: SLF001
        schemas = next((each for each in found if each), [])
    made = [
        tuple(
            (a.name, str(a.type), a.default_value if a.has_default_value() else REQUIRED, a.kwarg_only)
            for a in s.arguments
        )
        for s in schemas
    ]
    return tuple(sorted(made, key=lambda schema: any(name == "out" for name, *_ in schema)))


def _fitted(schema: Schema, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments by name, None where they do not fit the signature."""
    places = [name for name, _, _, by_name in schema if not by_name]
    kinds = {name: kind for name, kind, _, _ in schema}
    if len(args) > len(places):
        return None
    given = {**dict(zip(places, args, strict=False)), **kwargs}
    if "input" in given and "self" in kinds:
        given["self"] = given.pop("input")
    if len(given) != len(args) + len(kwargs) or not set(given) <= set(kinds):
        return None
    found = {name: given.get(name, default) for name, _, default, _ in schema}
    fits = all(
        value is not REQUIRED and (name not in given or _is_a(kinds[name], value)) for name, value in found.items()
    )
    return found if fits else None


def _is_a(kind: str, value: Any) -> bool:
    """Whether a value can be an argument of a type of torch's schemas, as far as that tells signatures apart."""
    if kind.startswith("Optional["):
        return value is None or _is_a(kind[9:-1], value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind in ("number", "float"):
        return number
    if kind == "List[int]":
        return (number and isinstance(value, int)) or (
            isinstance(value, list | tuple) and all(isinstance(v, int) for v in value)
        )
    if kind.startswith("List["):
        return isinstance(value, list | tuple)
    if kind in ("int", "bool", "str"):
        return isinstance(value, {"int": int, "bool": bool, "str": str}[kind]) and (
            kind == "bool" or not isinstance(value, bool)
        )
    return not (kind == "Tensor" and (value is None or isinstance(value, int | float | str | list | tuple)))
