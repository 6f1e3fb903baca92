"""What a training is asked to do, and what an epoch of it gave."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mpiconv.data.datasets import HELD_OUT


@dataclass(frozen=True)
class Settings:
    """All that the numbers of a training depend on, but for the data themselves and the number of ranks.

    ``batch`` is of all ranks together; ``lr`` the learning rate at the start; ``clip`` the largest norm that a step's
    gradient may have, 0 for any; ``flip`` and ``shift`` the augmentation; ``limit`` the most pictures taken of either
    part, None for all; ``held_out`` as in ``open_data``.
    """

    model: str
    data: str
    epochs: int = 30
    batch: int = 64
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float = 5.0
    schedule: str = "cosine"
    flip: bool = True
    shift: bool = True
    input_size: tuple[int, int] | None = None
    seed: int = 0
    limit: int | None = None
    held_out: float = HELD_OUT

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, of all steps: half a cosine from ``lr`` to 0, or ``lr`` throughout."""
        if self.schedule == "constant":
            return self.lr
        return self.lr * (1 + math.cos(math.pi * step / steps)) / 2

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name; the data set by its kind alone, for its folder may move."""
        found = asdict(self) | {"data": self.data.split(":")[0] if ":" in self.data else self.data}
        if found["data"] not in ("cifar10", "digits"):
            found["data"] = "folder"
        found["input_size"] = list(self.input_size) if self.input_size else None
        return found


@dataclass(frozen=True)
class Epoch:
    """One pass: its number from 1, the mean loss of its training pictures, the held-out accuracy (0 to 1) after it."""

    number: int
    loss: float
    accuracy: float
    lr: float
    seconds: float


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first setting that differs, as ``KEY FOUND, not WANTED``; empty if none does."""
    for key, value in wanted.items():
        if found.get(key) != value:
            return f"{key.replace('_', '-')} {found.get(key)}, not {value}"
    return ""
