"""The times of every frame in little memory, and of a very long series those of every second, fourth, ... frame."""

from __future__ import annotations

from array import array

import numpy as np

KEPT_REPEATS = 2**16
"""The most frames that are kept one by one."""


class Stamps:
    """Times of frames: ``width`` numbers of each and its latency, by the frame's number.

    Once ``KEPT_REPEATS`` frames are kept, those of odd numbers are dropped, and from then on only every second one is
    kept; then every fourth, and so on. All ranks keep the same ones, since frames have the same number on all.

    Attributes
    ----------
    added
        How many frames there were.
    every
        Which of them are kept: those whose number it divides.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        self.added, self.every = 0, 1
        self._numbers, self._rows = array("q"), array("d")

    def add(self, number: int, row: list[float], latency_s: float) -> None:
        """Note the times of a frame."""
        self.added += 1
        if number % self.every:
            return
        self._numbers.append(number)
        self._rows.extend(row)
        self._rows.append(latency_s)
        if len(self._numbers) >= KEPT_REPEATS:
            self._thin()

    def in_order(self) -> tuple[np.ndarray, np.ndarray]:
        """The times (frame, width) and latencies (frame,) in the order of the frames' numbers."""
        rows = self._table()[np.argsort(np.frombuffer(self._numbers, np.int64))]
        return rows[:, : self.width], rows[:, self.width].copy()

    def _table(self) -> np.ndarray:
        return np.frombuffer(self._rows, np.float64).reshape(len(self._numbers), self.width + 1)

    def _thin(self) -> None:
        self.every *= 2
        kept = np.frombuffer(self._numbers, np.int64) % self.every == 0
        rows, numbers = self._table()[kept].tobytes(), np.frombuffer(self._numbers, np.int64)[kept].tobytes()
        self._numbers, self._rows = array("q", numbers), array("d", rows)
