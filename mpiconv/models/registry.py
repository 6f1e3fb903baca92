"""The named models, how each wants its pictures, and building one with weights or without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import torch
from torch import nn

from mpiconv.errors import ModelError, UsageError
from mpiconv.graph.form import Shape
from mpiconv.models import alexnet, resnet, vgg
from mpiconv.models.digits import Digits
from mpiconv.models.info import Info, info_of
from mpiconv.models.metadata import check_model, trained_info
from mpiconv.models.mobilenet import MobileNetV2
from mpiconv.models.own import build_own
from mpiconv.models.squeezenet import SqueezeNet
from mpiconv.models.torchvision_models import PREFIX, torchvision_builder
from mpiconv.models.weights import assign_weights, check_finite, read_weights, take_names


@dataclass(frozen=True)
class Entry:
    """One named model: how it is built for a number of classes, and the weights that come with the package.

    ``draws`` says that building draws the weights and makes constants, so that it cannot be done without memory.
    """

    build: Callable[[int], nn.Module]
    info: Info
    weights: str = ""
    draws: bool = False

    def empty(self, num_classes: int) -> nn.Module:
        """The model with weights that are still to be put into it."""
        with torch.device("cpu" if self.draws else "meta"):
            return self.build(num_classes)


def _entry(name: str, build: Callable[[int], nn.Module], shape: Shape) -> tuple[str, Entry]:
    return name, Entry(build, Info(name, shape))


REGISTRY: dict[str, Entry] = dict(
    [
        _entry("alexnet", alexnet.AlexNet, (3, 227, 227)),
        _entry("alexnet-torchvision", partial(alexnet.AlexNet, table=alexnet.TORCHVISION), (3, 224, 224)),
        *(_entry(name, partial(vgg.VGG, stages), (3, 227, 227)) for name, stages in vgg.STAGES.items()),
        *(_entry(f"{name}_bn", partial(vgg.VGG, s, norm=True), (3, 224, 224)) for name, s in vgg.STAGES.items()),
        *(_entry(name, partial(resnet.ResNet, *depth), (3, 224, 224)) for name, depth in resnet.DEPTHS.items()),
        _entry("mobilenet_v2", MobileNetV2, (3, 224, 224)),
        _entry("squeezenet1_1", SqueezeNet, (3, 224, 224)),
    ]
)
REGISTRY["digits"] = Entry(Digits, Info("digits", (1, 32, 32), (0.3,), (0.4,)), "digits.safetensors")


def load_model(
    name: str,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    seed: int = 0,
    *,
    pretrained: bool = True,
    allow_nonfinite: bool = False,
) -> nn.Module:
    """Build a named model in evaluation mode, its parameters under torchvision's names.

    Parameters
    ----------
    name
        A key of ``REGISTRY``, ``torchvision:NAME`` for a model of an installed torchvision, or
        ``package.module:callable`` for your own (called without arguments).
    weights
        A .pth or .safetensors file; None takes the weights that come with the package, or else random ones.
    num_classes
        Outputs of the last layer; None takes what the weights have, or 10.
    seed
        Where the random weights start.
    pretrained, allow_nonfinite
        Whether weights that come with the package are taken, and whether weights may be infinite or not a number.

    Returns
    -------
    nn.Module
        With the attribute ``info`` (an ``Info``): its name, input shape, normalisation and labels.

    Raises
    ------
    UsageError
        The name is unknown.
    ModelError
        The weights cannot be read, do not fit or are not finite (the parameter is named); or your own callable failed.

    Examples
    --------
    >>> mpiconv.load_model("resnet18", num_classes=10).info.input_shape
    (3, 224, 224)
    """
    entry = _find(name)
    if entry is None:
        return _own_model(name, weights, seed, allow_nonfinite)
    if weights is None and pretrained and entry.weights and num_classes in (None, 10):
        weights = Path(__file__).with_name("pretrained") / entry.weights
    if weights is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = entry.empty(10 if num_classes is None else num_classes)
        if not entry.draws:
            model.to_empty(device="cpu")
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.reset_parameters()
            randomise(model, seed)
        return _finish(model, entry.info)
    return _with_weights(entry, replace(entry.info, name=name), weights, allow_nonfinite, num_classes)


def outline(name: str, num_classes: int | None = None) -> nn.Module:
    """A named model for whoever only plans: as ``load_model`` gives it, but that its weights are not drawn.

    The user's own models and torchvision's are as ``load_model`` gives them. Raises what that raises.
    """
    entry = _find(name)
    if entry is None or entry.draws:
        return load_model(name, None, num_classes)
    return _finish(entry.empty(10 if num_classes is None else num_classes), entry.info)


def _own_model(name: str, weights: str | Path | None, seed: int, allow_nonfinite: bool) -> nn.Module:
    """A model of the user's, as ``load_model`` gives it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_own(name)
    info = replace(info_of(model), name=name.rpartition(":")[2])
    if weights is not None:
        return _with_weights(model, info, weights, allow_nonfinite)
    _finish(model, info)
    if not allow_nonfinite:
        check_finite(model.state_dict(), f"the model {name}")
    return model


def _with_weights(
    source: nn.Module | Entry, info: Info, weights: str | Path, allow_nonfinite: bool, num_classes: int | None = None
) -> nn.Module:
    """A model, or that of an entry, with the weights of a file, and what the file tells of its pictures and classes."""
    state, metadata = read_weights(weights)
    if isinstance(source, Entry):
        check_model(metadata, info.name, REGISTRY, weights)
    info = trained_info(info, metadata, weights)
    if isinstance(source, Entry):
        with torch.device("meta"):
            own = source.build(10).state_dict()
        state, names = take_names(state, own)
        model = source.empty(num_classes or len(info.labels) or _classes_in(state, own))
    else:
        model = source
        state, names = take_names(state, model.state_dict())
    assign_weights(model, state, str(weights), allow_nonfinite=allow_nonfinite)
    return _finish(model, replace(info, note=names.note and f"{weights}: {names.note}"))


def _classes_in(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> int:
    """Rows of the last kernels or matrix of the model, whichever way a file orders its tensors; 10 if it has none."""
    last = [name for name, tensor in own.items() if tensor.dim() >= 2][-1]
    return (len(state[last]) if last in state and state[last].dim() else 0) or 10


def check_name(name: str) -> None:
    """Raise UsageError for a named model that does not exist; the user's own are not looked at."""
    _find(name)


def _find(name: str) -> Entry | None:
    """The entry of a named model; None for the user's own."""
    if name.startswith(PREFIX):
        build, size = torchvision_builder(name.removeprefix(PREFIX))
        return Entry(build, Info(name, (3, size, size)), draws=True)
    if ":" in name:
        return None
    if name not in REGISTRY:
        close = get_close_matches(name, REGISTRY, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UsageError(
            f"unknown model {name!r}: choose from {', '.join(REGISTRY)}, {PREFIX}NAME or package.module:callable{hint}"
        )
    return REGISTRY[name]


def randomise(model: nn.Module, seed: int) -> None:
    """Draw every parameter anew, scaled so that the maps keep their size from layer to layer (He et al., 2015)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    module.bias.uniform_(-0.1, 0.1, generator=generator)


def _finish(model: nn.Module, info: Info) -> nn.Module:
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ModelError(
                f"{name} has no shape yet (a Lazy module): call the model on a picture before returning it"
            )
        if parameter.dtype != torch.float32:
            raise ModelError(f"{name} is {parameter.dtype}: only float32 models are split (call .float() on it)")
    model.info = info  # type: ignore[assignment]
    return model.eval().requires_grad_(False)
