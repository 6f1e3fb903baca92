"""A piece of a map as it lies in a message: encoded in a number format, and decoded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mpiconv.partition.wire import Wire

View = Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor]
"""A flat tensor as one of a shape (N, C, H, W)."""

INT8_LEVELS = 127


@dataclass(frozen=True)
class Encoded:
    """A box (N, C, H, W) of a map as it lies in a message: quantised values and their scale, or plain numbers."""

    values: torch.Tensor
    scales: torch.Tensor | None

    @classmethod
    def within(cls, data: torch.Tensor, wire: Wire, shape: tuple[int, ...], view: View) -> Encoded:
        """Room for a piece (N, C, H, W) in ``data``, ``wire.size(shape)`` B as uint8; ``view`` knows their order."""
        scales, elements = None, math.prod(shape)
        if wire.scale_bytes:
            front = wire.scale_bytes * shape[0] * shape[1]
            scales, data = view(data[:front].view(torch.float32), (*shape[:2], 1, 1)), data[front:]
        values = data[: wire.item_bytes * elements].view(getattr(torch, wire.name))
        return cls(view(values, shape), scales)

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
