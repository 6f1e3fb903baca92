"""Number formats of maps in messages, and how many bytes a piece of a map takes in each. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mpiconv.partition.exchange import Exchange

ALIGNED_BYTES = 4
"""A piece takes a multiple of this, so that the next one in the same message is aligned."""


@dataclass(frozen=True)
class Wire:
    """A number format for the payload of messages.

    Attributes
    ----------
    item_bytes
        What one number takes.
    tolerance
        What it may add to the relative error of a network's output.
    scale_bytes
        What a scale takes, of which there is one per channel and picture of every piece; 0 where there are none. The
        whole numbers from -127 to 127 that times the scale come nearest are sent.
    """

    name: str
    item_bytes: int
    tolerance: float
    scale_bytes: int = 0

    def size(self, shape: tuple[int, ...]) -> int:
        """B that a piece (N, C, H, W) takes in a message."""
        pictures, channels, rows, columns = shape
        return int(self.sizes(pictures, np.array([channels]), np.array([rows * columns]))[0])

    def sizes(self, batch: int, channels: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Sizes in B of pieces of N pictures, from their channels and their places (rows x columns) in a channel."""
        found = batch * channels * (self.item_bytes * places + self.scale_bytes)
        return np.asarray(-(-found // ALIGNED_BYTES) * ALIGNED_BYTES)


FLOAT32 = Wire("float32", 4, 0.0)
WIRES = {
    wire.name: wire
    for wire in (FLOAT32, Wire("float16", 2, 2e-3), Wire("bfloat16", 2, 2e-2), Wire("int8", 1, 5e-2, scale_bytes=4))
}
"""The formats by name."""


class Payload:
    """What an exchange comes to in B, for N pictures and a number format.

    Attributes
    ----------
    each
        (transfer,): B of every one.
    sent, received
        (rank,): B that each rank sends, counted once per receiver, and receives.
    """

    def __init__(self, spread: Exchange, wire: Wire, batch: int) -> None:
        extent = spread.table[:, 3::2] - spread.table[:, 2::2]
        self._spread, self._wire, self._batch = spread, wire, batch
        self.each = wire.sizes(batch, extent[:, 0], extent[:, 1] * extent[:, 2])

    @cached_property
    def sent(self) -> np.ndarray:  # noqa: D102 - see above
        return self._sums(0)

    @cached_property
    def received(self) -> np.ndarray:  # noqa: D102 - see above
        return self._sums(1)

    def _sums(self, end: int) -> np.ndarray:
        total = np.zeros(len(self._spread.owned), dtype=np.int64)
        np.add.at(total, self._spread.table[:, end], self.each)
        return total

    def multicast(self, rank: int) -> int:
        """B that the rank sends, what several receive alike counted once."""
        elements = self._spread.sent(rank)
        return int(self.sent[rank]) * self._spread.multicast(rank) // elements if elements else 0
