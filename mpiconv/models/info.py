"""What a model is called and how it wants its pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from mpiconv.graph.form import Shape

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Info:
    """What a model is called and how it wants its pictures.

    ``input_shape`` is (C, H, W); ``mean`` and ``std`` are per channel for pixels from 0 to 1; ``labels`` may be empty;
    ``trained`` says where its weights come from, or is empty where they are random; ``note`` which tensors of the file
    were taken, where that is not plain.
    """

    name: str
    input_shape: Shape
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    labels: tuple[str, ...] = ()
    trained: str = ""
    note: str = ""

    def label(self, index: int) -> str:
        """The name of a class."""
        return self.labels[index] if index < len(self.labels) else f"class {index}"


def info_of(model: nn.Module) -> Info:
    """How a model wants its pictures: as its ``info`` says, or timm's ``default_cfg``; else a guess.

    The guess is 224 x 224, and as many channels as its first convolution has.
    """
    info = getattr(model, "info", None)
    if isinstance(info, Info):
        return info
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    channels = first.in_channels if first is not None else 3
    known = getattr(model, "default_cfg", None)
    known = known if isinstance(known, Mapping) else {}
    channels, rows, columns = _numbers(known, "input_size", 3) or (channels, 224, 224)
    colour = channels == len(IMAGENET_MEAN)
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if colour else ((0.5,) * channels, (0.5,) * channels)
    return Info(
        type(model).__name__,
        (channels, rows, columns),
        _numbers(known, "mean", channels) or mean,
        _numbers(known, "std", channels) or std,
        trained="its own weights",
    )


def _numbers(known: Mapping[str, Any], key: str, count: int) -> tuple[Any, ...] | None:
    """``count`` numbers of a configuration; None where it has none."""
    found = known.get(key)
    if isinstance(found, list | tuple) and len(found) == count and all(isinstance(n, int | float) for n in found):
        return tuple(found)
    return None
