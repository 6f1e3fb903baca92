"""Operations by one set of names, whether torch.fx or torch.export found them: modules, functions, methods, aten."""

from __future__ import annotations

import operator
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

IDENTITIES = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)

STOCHASTIC_DEPTH = "torchvision.ops.stochastic_depth.stochastic_depth"
PASSED_ON = (STOCHASTIC_DEPTH, "dropout", "dropout2d", "alpha_dropout", "feature_dropout", "detach", "identity")
"""Operations that leave the map as it is in evaluation."""

MOVES = (
    *(
        "view",
        "reshape",
        "_unsafe_view",
        "permute",
        "transpose",
        "swapaxes",
        "movedim",
        "flatten",
        "unflatten",
        "squeeze",
    ),
    *(
        "unsqueeze",
        "chunk",
        "split",
        "split_with_sizes",
        "tensor_split",
        "unbind",
        "narrow",
        "select",
        "slice",
        "getitem",
    ),
    *("index_select", "flip", "roll", "expand", "expand_as", "view_as", "reshape_as", "channel_shuffle", "size"),
    *("sym_size", "dim", "numel", "contiguous", "clone"),
)
"""Operations that only move elements, or ask for sizes: what they do is seen by doing it to the elements' numbers."""

LAYERS = (
    *("conv2d", "conv_transpose2d", "linear", "batch_norm", "instance_norm", "group_norm", "layer_norm", "prelu"),
    *("local_response_norm", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "mean", "amax"),
    *("interpolate", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "pad", "pixel_shuffle"),
    *("pixel_unshuffle", "softmax", "log_softmax", "cat", "add", "sub", "mul", "div", "pow", "maximum", "minimum"),
    *("clamp", "rsub", "constant_pad_nd"),
)
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
}
KNOWN = {*ACTIVATIONS, *ALONE, *PASSED_ON, *MOVES, *LAYERS}
CONVOLUTIONS = ("conv2d", "conv_transpose2d")
"""What is worth splitting: it decides whether the root hands a map on or keeps all that follows as the head."""

_MODULES: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    **{module: (kind, names) for kind, (module, names) in ACTIVATIONS.items()},
    nn.Conv2d: ("conv2d", ("weight", "bias", "stride", "padding", "dilation", "groups", "padding_mode")),
    nn.ConvTranspose2d: (
        "conv_transpose2d",
        ("weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    ),
    nn.Linear: ("linear", ("weight", "bias")),
    nn.BatchNorm2d: ("batch_norm", ("running_mean", "running_var", "weight", "bias", "eps")),
    nn.InstanceNorm2d: ("instance_norm", ("running_mean", "running_var", "weight", "bias", "eps")),
    nn.GroupNorm: ("group_norm", ("num_groups", "weight", "bias", "eps")),
    nn.LayerNorm: ("layer_norm", ("normalized_shape", "weight", "bias", "eps")),
    nn.PReLU: ("prelu", ("weight",)),
    nn.LocalResponseNorm: ("local_response_norm", ("size", "alpha", "beta", "k")),
    nn.MaxPool2d: ("max_pool2d", ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")),
    nn.AvgPool2d: (
        "avg_pool2d",
        ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    ),
    nn.AdaptiveAvgPool2d: ("adaptive_avg_pool2d", ("output_size",)),
    nn.AdaptiveMaxPool2d: ("adaptive_max_pool2d", ("output_size", "return_indices")),
    nn.PixelShuffle: ("pixel_shuffle", ("upscale_factor",)),
    nn.PixelUnshuffle: ("pixel_unshuffle", ("downscale_factor",)),
    nn.Softmax: ("softmax", ("dim",)),
    nn.LogSoftmax: ("log_softmax", ("dim",)),
    nn.Flatten: ("flatten", ("start_dim", "end_dim")),
    nn.Unflatten: ("unflatten", ("dim", "unflattened_size")),
    nn.ChannelShuffle: ("channel_shuffle", ("groups",)),
}
_UPSAMPLES = (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
_PADS = {
    "Constant": (nn.ConstantPad2d, nn.ZeroPad2d),
    "reflect": (nn.ReflectionPad2d,),
    "replicate": (nn.ReplicationPad2d,),
    "circular": (nn.CircularPad2d,),
}


class CannotSplitError(Exception):
    """An operation is none that boxes describe; the message names it. The root then runs it, which is no failure."""


class Tensor:
    """A parameter or buffer of the model that an operation reads: its key in the state_dict and its shape."""

    def __init__(self, key: str, shape: tuple[int, ...]) -> None:
        self.key, self.shape = key, shape


def _room(room: Any) -> dict[Any, str]:
    names = {*KNOWN, *ALIASES}
    found = {getattr(room, name): name for name in names if callable(getattr(room, name, None))}
    inplace = {getattr(room, f"{name}_"): name for name in names if callable(getattr(room, f"{name}_", None))}
    return found | inplace


FUNCTIONS: dict[Any, str] = {**_room(torch), **_room(F)}
FUNCTIONS |= {getattr(operator, name): name for name in ("add", "sub", "mul", "truediv", "pow", "neg", "getitem")}
FUNCTIONS |= {getattr(operator, f"i{name}"): name for name in ("add", "sub", "mul", "truediv", "pow")}


def kind_of(module: nn.Module, node: fx.Node) -> str:
    """What a node does, by torch's name for the function; the name of the module or function where it is unknown."""
    if node.op == "call_module":
        sub = module.get_submodule(str(node.target))
        if isinstance(sub, IDENTITIES):
            return "identity"
        if type(sub) in _MODULES:
            return _MODULES[type(sub)][0]
        if isinstance(sub, _UPSAMPLES):
            return "interpolate"
        if any(isinstance(sub, kinds) for kinds in _PADS.values()):
            return "pad"
        if isinstance(sub, nn.Softmax2d):
            return "softmax"
        return type(sub).__name__
    if node.op == "call_method":
        name = str(node.target).removesuffix("_")
    elif isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001 - it has no public name
        name = node.target._schema.name.partition("::")[2].removesuffix("_")  # noqa: SLF001
    elif node.target in FUNCTIONS:
        name = FUNCTIONS[node.target]
    else:
        return f"{getattr(node.target, '__module__', '')}.{getattr(node.target, '__name__', node.target)}"
    return ALIASES.get(name, name)


def is_inplace(module: nn.Module, node: fx.Node) -> bool:
    """Whether the operation writes over its first argument."""
    if node.op == "call_module":
        sub = module.get_submodule(str(node.target))
        return bool(getattr(sub, "inplace", False)) and not isinstance(sub, IDENTITIES)
    if node.op not in ("call_function", "call_method"):
        return False
    if node.kwargs.get("inplace") is True or "out" in node.kwargs:
        return True
    if isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001
        return node.target._schema.is_mutable  # noqa: SLF001
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.target in vars(operator).values():
        return name in {"iadd", "isub", "imul", "itruediv", "ipow", "ifloordiv", "setitem"}
    if kind_of(module, node) in ACTIVATIONS and node.op == "call_function" and node.args[1:]:
        return node.args[-1] is True  # F.relu(x, True)
    return name.endswith("_") and not name.endswith("__")


def arguments_of(module: nn.Module, node: fx.Node) -> tuple[list[Any], dict[str, Any]]:
    """A node's arguments, positional and by name as torch's function has them; tensors of a module as ``Tensor``."""
    if node.op != "call_module":
        kwargs = {k: v for k, v in node.kwargs.items() if k not in ("inplace", "training", "out")}
        if not isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001
            return list(node.args), kwargs
        names = [argument.name for argument in node.target._schema.arguments]  # noqa: SLF001
        given = dict(zip(names, node.args, strict=False)) | kwargs
        unused = ("training", "train", "momentum", "cudnn_enabled", "cudnn_enable", "use_input_stats", "dtype")
        first = given.pop(names[0])
        return [first], {k: v for k, v in given.items() if k not in unused}
    name = str(node.target)
    sub = module.get_submodule(name)
    if type(sub) in _MODULES:
        named = {key: getattr(sub, key) for key in _MODULES[type(sub)][1]}
    elif isinstance(sub, _UPSAMPLES):
        named = {key: getattr(sub, key) for key in ("size", "scale_factor", "mode", "align_corners")}
        named["recompute_scale_factor"] = sub.recompute_scale_factor
    elif isinstance(sub, nn.Softmax2d):
        named = {"dim": -3}
    elif any(isinstance(sub, kinds) for kinds in _PADS.values()):
        mode = next(mode for mode, kinds in _PADS.items() if isinstance(sub, kinds))
        named = {"pad": sub.padding, "mode": mode.lower(), "value": getattr(sub, "value", 0)}
    else:
        named = {}
    own = sub.state_dict(keep_vars=True)
    for key, value in named.items():
        if isinstance(value, torch.Tensor):
            if key not in own:
                raise CannotSplitError(f"{type(sub).__name__} whose {key} is not in its state_dict")
            named[key] = Tensor(f"{name}.{key}", tuple(value.shape))
    return list(node.args), {**named, **node.kwargs}
