"""Weights in and out of files: PyTorch's .pth (tensors only, no pickled objects) and safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from mpiconv.errors import ModelError

HINT = "a .safetensors file or a state_dict saved by torch.save is wanted"


def read_weights(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a weights file by name, mapped rather than read where the format allows, and its metadata.

    A ``module.`` before every name (what DataParallel leaves) is dropped. Only safetensors have metadata.

    Raises
    ------
    ModelError
        The file is missing, broken, or holds something else than tensors.
    """
    path = Path(path)
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ModelError(f"cannot read the weights {path}: {error.strerror}") from None
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = dict(file.metadata() or {})
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is no safetensors file: {error}") from None
    else:
        state = _read_pth(path)
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state, metadata


def _read_pth(path: Path) -> dict[str, torch.Tensor]:
    found: object = None
    for mmap in (True, False):  # files of the older format cannot be mapped
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
            break
        except Exception as error:
            if not mmap:
                raise ModelError(f"{path} holds no weights: {HINT} ({str(error).splitlines()[0]})") from None
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise ModelError(f"{path} holds no weights: {HINT}")
    return dict(found)


def assign_weights(model: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Make the tensors of ``state`` the model's own, without copying those that are float32.

    Raises
    ------
    ModelError
        A parameter is missing, superfluous or of another shape; it is named, with both shapes.
    """
    own = model.state_dict()
    for name, tensor in own.items():
        if name not in state:
            raise ModelError(f"{source} has no {name}, which the model has with shape {tuple(tensor.shape)}")
        if state[name].shape != tensor.shape:
            shape, wanted = tuple(state[name].shape), tuple(tensor.shape)
            raise ModelError(
                f"{name} has shape {shape} in {source}, the model wants {wanted}{_classes_hint(name, shape)}"
            )
    extra = sorted(set(state) - set(own))
    if extra:
        raise ModelError(f"{source} has {extra[0]}, which the model has not (and {len(extra) - 1} more)")
    floats = {name: t.float() if t.is_floating_point() else t for name, t in state.items()}
    model.load_state_dict(floats, assign=True)


def _classes_hint(name: str, shape: tuple[int, ...]) -> str:
    return f" (is it --classes {shape[0]}?)" if "classifier" in name or name.startswith("fc.") else ""


def labels_of(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The class names in a weights file's metadata (a JSON list under ``classes``); none if it has no such list."""
    try:
        names = json.loads(metadata.get("classes", "[]"))
    except ValueError:
        return ()
    return tuple(str(name) for name in names) if isinstance(names, list) else ()
