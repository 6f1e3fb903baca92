"""The metadata of a weights file: of which model it is, its classes, and how its pictures were prepared."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpiconv.errors import ModelError
from mpiconv.models.info import Info
from mpiconv.models.weights import labels_of

LARGE = 1e30
MOST_NUMBERS = 2**31


def to_metadata(info: Info) -> dict[str, str]:
    """What ``trained_info`` reads, as safetensors wants it: text by name, lists as JSON."""
    return {
        "model": info.name,
        "classes": json.dumps(info.labels),
        "mean": json.dumps(info.mean),
        "std": json.dumps(info.std),
        "input_shape": json.dumps(info.input_shape),
        "trained": info.trained,
    }


def trained_info(info: Info, metadata: Mapping[str, str], path: str | Path) -> Info:
    """A model's info with what the metadata of its weights say of labels, normalisation and input shape.

    Raises ModelError, naming the file and the key, for a normalisation or input shape that is none.
    """
    found: dict[str, Any] = {
        "labels": labels_of(metadata),
        "trained": metadata.get("trained", f"weights from {Path(path).name}"),
    }
    shape = _numbers(metadata, "input_shape", path)
    if shape is not None:
        if len(shape) != 3 or any(n != int(n) or n < 1 for n in shape) or math.prod(shape) > MOST_NUMBERS:
            raise ModelError(f"{path}: input_shape is {metadata['input_shape']}, three whole numbers are wanted")
        found["input_shape"] = tuple(int(n) for n in shape)
    channels = found.get("input_shape", info.input_shape)[0]
    for key in ("mean", "std"):
        values = _numbers(metadata, key, path)
        if values is not None:
            if len(values) != channels:
                raise ModelError(f"{path}: {key} has {len(values)} numbers, the pictures have {channels} channels")
            found[key] = values
    return replace(info, **found)


def check_model(metadata: Mapping[str, str], name: str, known: Collection[str], path: str | Path) -> None:
    """Raise ModelError if a weights file says that it belongs to another of the named models."""
    model = metadata.get("model", name)
    if model != name and model in known:
        raise ModelError(f"{path} holds weights of {model}, not of {name}: use --model {model}")


def _numbers(metadata: Mapping[str, str], key: str, path: str | Path) -> tuple[float, ...] | None:
    if key not in metadata:
        return None
    try:
        values = json.loads(metadata[key])
    except (ValueError, RecursionError):
        values = None
    fine = isinstance(values, list) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < LARGE for v in values
    )
    if not fine or (key != "mean" and any(v <= 0 for v in values)):
        raise ModelError(f"{path}: {key} is {metadata[key][:80]!r}, a list of numbers is wanted")
    return tuple(float(v) for v in values)
