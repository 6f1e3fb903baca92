"""What a training begins with: the data, and a model that fits them with fresh weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from mpiconv.data.datasets import Dataset, Some, open_data
from mpiconv.errors import ModelError, UsageError
from mpiconv.models import Info, info_of, load_model
from mpiconv.models.registry import REGISTRY
from mpiconv.training.settings import Settings


@dataclass(frozen=True)
class Task:
    """A model to be taught, how it wants its pictures, those to learn from, and those to be judged by."""

    model: nn.Module
    info: Info
    learned: Dataset
    held_out: Dataset

    @property
    def summary(self) -> dict[str, Any]:
        """What a checkpoint remembers of the data."""
        return {
            "classes": list(self.info.labels),
            "pictures": len(self.learned),
            "held_out_pictures": len(self.held_out),
        }


def begin(settings: Settings) -> Task:
    """Open the data and build the model, with weights drawn from the seed.

    Raises MpiconvError where the data or the model are missing, or do not fit each other.
    """
    learned, held_out = (open_data(settings.data, part, settings.held_out) for part in ("train", "held-out"))
    if settings.limit is not None:
        learned, held_out = Some(learned, settings.limit), Some(held_out, settings.limit)
    about = learned.about
    model = load_model(settings.model, None, len(about.classes), settings.seed, pretrained=False)
    if settings.model in REGISTRY:
        fresh_weights(model, settings.seed)
    info = replace(info_of(model), name=settings.model, labels=about.classes)
    if settings.input_size:
        info = replace(info, input_shape=(info.input_shape[0], *settings.input_size))
    if about.mean is not None and about.std is not None and len(about.mean) == info.input_shape[0]:
        info = replace(info, mean=about.mean, std=about.std)
    model.requires_grad_(True)
    _check_outputs(model, info)
    return Task(model, info, learned, held_out)


def fresh_weights(model: nn.Module, seed: int) -> None:
    """Draw all weights as He et al. (2015) for layers before a ReLU, without biases; small ones for the last layer."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        layers = []
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    module.bias.zero_()
                layers.append(module)
            elif callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        if layers:
            nn.init.normal_(layers[-1].weight, std=1 / math.sqrt(layers[-1].weight[0].numel()) / 10)


def _check_outputs(model: nn.Module, info: Info) -> None:
    """Raise unless the model takes pictures of the input size and gives one number per class."""
    try:
        with torch.inference_mode():
            scores = model.eval()(torch.zeros(1, *info.input_shape))
    except (RuntimeError, ValueError) as error:
        shape = "x".join(map(str, info.input_shape))
        raise ModelError(f"{info.name} does not run on {shape}: {' '.join(str(error).split())}") from None
    if not isinstance(scores, torch.Tensor) or scores.dim() != 2:
        raise ModelError(f"{info.name} is no classifier: one tensor (pictures, classes) is wanted as its output")
    if scores.shape[1] != len(info.labels):
        raise UsageError(
            f"{info.name} has {scores.shape[1]} outputs, the data has {len(info.labels)} classes "
            f"({', '.join(info.labels[:3])}, ...): as many are wanted"
        )
