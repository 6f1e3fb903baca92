"""torchvision's classification models, where torchvision is installed; nothing else here needs it."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from torch import nn

from mpiconv.errors import UsageError

PREFIX = "torchvision:"
SIZES = {"inception_v3": 299, "swin_v2": 256}
"""Rows and columns of the pictures by how the name begins, where they are not 224."""
OPTIONS = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}


def torchvision_builder(name: str) -> tuple[Callable[[int], nn.Module], int]:
    """What builds a model for a number of classes, without weights, and the rows and columns of its pictures.

    Raises UsageError where torchvision is missing, does not fit the installed torch, or has no such model.
    """
    models = _models()
    names = models.list_models(module=models)
    if name not in names:
        close = get_close_matches(name, names, 1)
        hint = f"; did you mean {PREFIX}{close[0]}?" if close else ""
        raise UsageError(f"torchvision has no classification model {name!r}{hint}")

    def build(num_classes: int) -> nn.Module:
        model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **OPTIONS.get(name, {}))
        return model

    return build, next((size for prefix, size in SIZES.items() if name.startswith(prefix)), 224)


def _models() -> Any:
    try:
        from torchvision import models
    except ImportError:
        raise UsageError(
            "torchvision is not installed: pip install the version that fits your torch, or choose another model"
        ) from None
    except RuntimeError as error:
        raise UsageError(
            f"the installed torchvision does not fit the installed torch ({str(error).splitlines()[0]}): "
            "install both from one index, CPU or CUDA"
        ) from None
    return models
