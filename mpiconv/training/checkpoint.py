"""Files of a training: the checkpoint that it goes on from, and the best weights; each written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from mpiconv.errors import MpiconvError
from mpiconv.files import replaced
from mpiconv.models.weights import load_saved
from mpiconv.training.settings import Epoch, Settings, difference

VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """Where a training stands after some epochs: all that the next ones depend on.

    There are no states of random generators in it: everything random is a function of seed, epoch, step and rank.
    ``momenta`` are by the parameters' names; ``task`` are the classes and the number of pictures in both parts.
    """

    settings: Settings
    task: Mapping[str, Any]
    model: Mapping[str, torch.Tensor]
    momenta: Mapping[str, torch.Tensor]
    epochs: tuple[Epoch, ...]

    def write(self, path: Path) -> None:
        """Replace the file at ``path``, in one step.

        Raises MpiconvError if it cannot be written.
        """
        content = {
            "mpiconv_checkpoint": VERSION,
            "settings": self.settings.to_dict(),
            "task": dict(self.task),
            "model": dict(self.model),
            "momenta": dict(self.momenta),
            "epochs": [asdict(epoch) for epoch in self.epochs],
        }
        with replaced(path) as file:
            torch.save(content, file)


def read_checkpoint(path: Path, settings: Settings, task: Mapping[str, Any]) -> Checkpoint:
    """Read what ``Checkpoint.write`` wrote, if it belongs to these settings and data.

    Raises MpiconvError, naming the file, if it is missing, broken, or of another training (and by what it differs).
    """
    if not path.exists():
        raise MpiconvError(f"there is no checkpoint {path} to go on from: leave out --resume to begin")
    try:
        found: Any = load_saved(path)
    except ValueError as error:
        raise MpiconvError(f"{path} is cut short or no checkpoint: {error}") from None
    version = found.get("mpiconv_checkpoint") if isinstance(found, Mapping) else None
    if version != VERSION:
        raise MpiconvError(f"{path} is no checkpoint of this mpiconv: its version is {version}, not {VERSION}")
    other = difference(found["settings"], settings.to_dict()) or difference(found["task"], task)
    if other:
        raise MpiconvError(
            f"{path} is of a training with {other}: give what it was made with, or leave out --resume to begin anew"
        )
    epochs = tuple(Epoch(**epoch) for epoch in found["epochs"])
    return Checkpoint(settings, found["task"], found["model"], found["momenta"], epochs)


def write_weights(path: Path, state: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Replace a .safetensors file, in one step.

    Raises MpiconvError if it cannot be written.
    """
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    with replaced(path) as file:
        file.write(save(tensors, metadata))
