"""Number formats of maps in messages: float32, or a smaller and less exact one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mpiconv.runtime import choices

View = Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor]
"""A flat tensor as one of a shape (N, C, H, W)."""

SCALE_BYTES = 4
INT8_LEVELS = 127


@dataclass(frozen=True)
class Wire:
    """A number format for the payload of messages; ``tolerance`` is what it may add to the relative error of a net.

    ``int8`` sends a float32 scale per channel and picture, then the whole numbers from -127 to 127 that times it come
    nearest.
    """

    name: str
    item_bytes: int
    tolerance: float

    def size(self, shape: tuple[int, ...]) -> int:
        """B that a piece (N, C, H, W) takes in a message; a multiple of 4 so that the next one can be aligned."""
        scales = SCALE_BYTES * shape[0] * shape[1] if self.name == "int8" else 0
        return -(-(self.item_bytes * math.prod(shape) + scales) // 4) * 4

    def encoded(self, data: torch.Tensor, shape: tuple[int, ...], view: View) -> Encoded:
        """Room for a piece (N, C, H, W) in ``data``, (size,) of uint8; ``view`` says in which order its numbers lie."""
        scales, elements = None, math.prod(shape)
        if self.name == "int8":
            front = SCALE_BYTES * shape[0] * shape[1]
            scales, data = view(data[:front].view(torch.float32), (*shape[:2], 1, 1)), data[front:]
        values = data[: self.item_bytes * elements].view(getattr(torch, self.name))
        return Encoded(view(values, shape), scales)


@dataclass(frozen=True)
class Encoded:
    """A box (N, C, H, W) of a map as it lies in a message: quantised values and their scale, or plain numbers."""

    values: torch.Tensor
    scales: torch.Tensor | None

    def write(self, piece: torch.Tensor) -> None:
        """Encode a float32 tensor."""
        if self.scales is None:
            self.values.copy_(piece)
            return
        scales = piece.abs().amax((2, 3), keepdim=True).div_(INT8_LEVELS)
        scales[scales == 0] = 1.0
        self.scales.copy_(scales)
        self.values.copy_((piece / scales).round_())

    def read(self, piece: torch.Tensor) -> None:
        """Decode into a float32 tensor."""
        piece.copy_(self.values)
        if self.scales is not None:
            piece.mul_(self.scales)


FLOAT32 = Wire("float32", 4, 0.0)
FORMATS = (FLOAT32, Wire("float16", 2, 2e-3), Wire("bfloat16", 2, 2e-2), Wire("int8", 1, 5e-2))
WIRES = {name: next(wire for wire in FORMATS if wire.name == name) for name in choices.WIRES}
"""The formats by name."""
