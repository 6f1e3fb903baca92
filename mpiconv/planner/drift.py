"""Whether a series of times has come to another level than it had at its start, in spite of noise. Pure."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

CHANGE = 1.2
"""The least change of level that counts, as a factor up or down."""

CALIBRATION = 3
"""The number of windows at the start that say what the level is."""

IN_A_ROW = 2
"""Windows in a row that have to be off in the same direction: a burst of noise that is shorter is none."""

DEVIATIONS = 5.0
"""How many standard deviations of a window's median away from the level a window has to be to be off."""

FEW, FEW_SIGMA = 16, 0.08
"""With fewer spreads, of which a window of three frames has two, the noise is taken to be this large at least."""

KEPT = 60
"""The most spreads that the noise is estimated from."""

MIDDLE, OUTER = 0.69, 1.36
"""The median and the 0.8 quantile of the spreads of three frames, for normal noise of deviation 1."""


class Drift:
    """Follows one series, a window of a few frames at a time.

    The median of a window's logarithms is compared with that of the first windows. What is noise is told by how far
    frames are from the median of their own window: a change of level is in one window of them at most.

    Attributes
    ----------
    level
        The level (as a factor, not a logarithm) against which changes count; None until it is known.
    """

    def __init__(self) -> None:
        self.level: float | None = None
        self._first: list[np.ndarray] = []
        self._spreads: deque[float] = deque(maxlen=KEPT)
        self._off: list[np.ndarray] = []

    def add(self, values: np.ndarray) -> None:
        """Take the next window: (frame,) times, or ratios of times, above 0."""
        logs = np.log(values)
        self._spreads.extend(np.sort(np.abs(logs - np.median(logs)))[1:].tolist())  # the first is the median's own
        if self.level is None:
            self._first.append(logs)
            if len(self._first) == CALIBRATION:
                self._settle(np.concatenate(self._first))
            return
        off = float(np.median(logs)) - math.log(self.level)
        if abs(off) <= max(math.log(CHANGE), DEVIATIONS * self._window_sigma(len(logs))):
            self._off = []
        elif self._off and (float(np.median(self._off[-1])) - math.log(self.level)) * off < 0:
            self._off = [logs]
        else:
            self._off = [*self._off, logs][-IN_A_ROW:]

    @property
    def changed(self) -> bool:
        """Whether the level has changed: windows in a row are off, and all their frames but one by half a change."""
        if self.level is None or len(self._off) < IN_A_ROW:
            return False
        off = np.concatenate(self._off) - math.log(self.level)
        return int((off * np.sign(np.median(off)) < math.log(CHANGE) / 2).sum()) <= 1

    @property
    def now(self) -> float | None:
        """The level as it seems to be now, also where it is too early to say that it has changed."""
        return math.exp(float(np.median(np.concatenate(self._off)))) if self._off else self.level

    def accept(self) -> None:
        """Take what the level has come to as the one against which changes count."""
        if self._off:
            self._settle(np.concatenate(self._off))

    def explained(self) -> None:
        """Go on against the same level: what was off it is going to be in what the times are divided by."""
        self._off = []

    def _settle(self, logs: np.ndarray) -> None:
        self.level = math.exp(float(np.median(logs)))
        self._first, self._off = [], []

    def _window_sigma(self, frames: int) -> float:
        """The standard deviation of a window's median: about 1.25 of that of a frame over the root of their number.

        That of a frame is what half of the spreads says, or the outer fifth, where the noise has a tail; the divisors
        are what these are for three frames of normal noise of deviation 1.
        """
        spreads = sorted(self._spreads)
        sigma = max(spreads[len(spreads) // 2] / MIDDLE, spreads[4 * len(spreads) // 5] / OUTER)
        if len(self._spreads) < FEW:
            sigma = max(sigma, FEW_SIGMA)
        return 1.25 * sigma / math.sqrt(frames)
