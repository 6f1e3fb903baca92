"""Compiled units of closed networks, kept for reuse: torch never frees what it compiled."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from mpiconv.graph.form import Unit
from mpiconv.partition import Box
from mpiconv.runtime.compute.fuser import MOST_BYTES
from mpiconv.runtime.compute.local import LocalUnit
from mpiconv.runtime.compute.operations import Weights

MOST_SPARES = 256


class Spares:
    """Units that nobody uses, by what they compute and with which weights; the oldest go where there are too many."""

    def __init__(self) -> None:
        self._kept: dict[str, list[LocalUnit]] = {}

    def take(self, key: str) -> LocalUnit | None:
        """Remove and return a unit with this key; None if there is none."""
        found = self._kept.get(key, [])
        unit = found.pop() if found else None
        if not found:
            self._kept.pop(key, None)
        return unit

    def give(self, key: str, unit: LocalUnit) -> None:
        """Keep a unit whose network was closed."""
        self._kept.setdefault(key, []).append(unit)
        while sum(map(len, self._kept.values())) > MOST_SPARES:
            self.take(next(iter(self._kept)))


spares = Spares()


def key_of(unit: Unit, box: Box, weights: Sequence[Weights], *options: object) -> str:
    """A hash of a unit with its weights; empty for one that is too large to be compiled."""
    tensors = [(role, tensor) for part in weights for role, tensor in sorted(part.items())]
    if sum(tensor.nbytes for _, tensor in tensors) > MOST_BYTES:
        return ""
    found = hashlib.blake2b(repr((unit, box, options, [(role, tuple(t.shape)) for role, t in tensors])).encode())
    for _, tensor in tensors:
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()
