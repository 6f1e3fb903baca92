"""What maps are turned into to travel: float32 as they are, or something smaller and less exact."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

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

    def size(self, shape: tuple[int, ...], channel_axis: int) -> int:
        """B that a piece (N, ...) takes in a message; a multiple of 4 so that the next one can be aligned."""
        size = self.item_bytes * math.prod(shape)
        if self.name == "int8":
            size += SCALE_BYTES * shape[0] * shape[channel_axis]
        return -(-size // 4) * 4

    def encode(self, piece: torch.Tensor, out: torch.Tensor, channel_axis: int) -> None:
        """Write a float32 piece (N, ...) into ``out``, (size,) of uint8."""
        if self.name != "int8":
            self._view(out, piece.shape).copy_(piece)
            return
        axes = [axis for axis in range(1, piece.dim()) if axis != channel_axis]
        scales = piece.abs().amax(axes, keepdim=True).div_(INT8_LEVELS)
        scales[scales == 0] = 1.0
        self._scales(out, scales.shape).copy_(scales)
        self._view(out[SCALE_BYTES * scales.numel() :], piece.shape).copy_((piece / scales).round_())

    def decode(self, data: torch.Tensor, piece: torch.Tensor, channel_axis: int) -> None:
        """Read a piece (N, ...) back from what ``encode`` wrote."""
        if self.name != "int8":
            piece.copy_(self._view(data, piece.shape))
            return
        shape = [length if axis in (0, channel_axis) else 1 for axis, length in enumerate(piece.shape)]
        scales = self._scales(data, torch.Size(shape))
        piece.copy_(self._view(data[SCALE_BYTES * scales.numel() :], piece.shape))
        piece.mul_(scales)

    def _view(self, data: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        dtype = getattr(torch, self.name)
        return data[: self.item_bytes * shape.numel()].view(dtype).view(shape)

    @staticmethod
    def _scales(data: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        return data[: SCALE_BYTES * shape.numel()].view(torch.float32).view(shape)


FLOAT32 = Wire("float32", 4, 0.0)
WIRES = {
    wire.name: wire for wire in (FLOAT32, Wire("float16", 2, 2e-3), Wire("bfloat16", 2, 2e-2), Wire("int8", 1, 5e-2))
}
"""The formats by name."""
