"""The times of every frame in little memory, and of a very long series those of every second, fourth, ... frame."""

from __future__ import annotations

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
    kept
        How many those are.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._rows = np.empty((KEPT_REPEATS, width + 1))  # pages are taken as they are written: nothing ever moves
        self._numbers = np.empty(KEPT_REPEATS, np.int64)
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        self.added, self.every, self.kept = 0, 1, 0

    def add(self, number: int, row: list[float], latency_s: float) -> None:
        """Note the times of a frame."""
        self.added += 1
        if number % self.every:
            return
        self._numbers[self.kept] = number
        self._rows[self.kept] = [*row, latency_s]
        self.kept += 1
        if self.kept == len(self._numbers):
            self._thin()

    def in_order(self) -> tuple[np.ndarray, np.ndarray]:
        """The times (frame, width) and latencies (frame,) in the order of the frames' numbers."""
        rows = self._rows[: self.kept][np.argsort(self._numbers[: self.kept])]
        return rows[:, : self.width], rows[:, self.width].copy()

    def last(self, count: int) -> np.ndarray:
        """(count, width + 1): the times and the latency of the last frames kept; NaN before the first of all."""
        found = np.full((count, self.width + 1), np.nan)
        there = min(count, self.kept)
        found[count - there :] = self._rows[self.kept - there : self.kept]
        return found

    def _thin(self) -> None:
        self.every *= 2
        stay = self._numbers % self.every == 0
        self.kept = int(stay.sum())
        self._numbers[: self.kept] = self._numbers[stay]
        self._rows[: self.kept] = self._rows[stay]
