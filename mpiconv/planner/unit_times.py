"""How long a device takes for a part of a unit of which some parts were measured: interpolated between them. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

from mpiconv.errors import MpiconvError

Point = tuple[int, int, int, int, float]
"""A measured box: channels, rows, columns of the unit's output, pictures in the batch, and the s that it took."""

BLOCK = 16
"""Channels that are computed at a time; a slice that is no multiple of it takes as long as the next one that is."""

LONGEST_S = 1e6


class UnitTimes:
    """What was measured of one unit on one device.

    A box of a size that was measured takes what that took. Of others, one that is cut along the channels or the rows
    takes what lies on the line between its neighbours there; of one that is cut along both, both efficiencies count.
    Columns count as as many rows fewer. What is larger than all that was measured takes as much longer as it is
    larger; what is smaller goes on along the line, but not below its part of the smallest, nor above the smallest.

    Parameters
    ----------
    points
        At least one.
    """

    def __init__(self, points: Iterable[Point]) -> None:
        self._exact = {point[:4]: point[4] for point in points}
        self.batches = sorted({point[3] for point in self._exact})
        self._largest = {batch: self._largest_of(batch) for batch in self.batches}
        self._axes = {batch: self._axes_of(batch) for batch in self.batches}
        self._found: dict[tuple[int, int, int, int], float | None] = {}

    def seconds(self, size: Sequence[int], batch: int) -> float | None:
        """S for a box of (channels, rows, columns); None where nothing like it was measured.

        That is a batch of another number of pictures, or a box cut along an axis of which only one size was measured.
        """
        channels, rows, columns = size
        key = (channels, rows, columns, batch)
        if key not in self._found:
            self._found[key] = self._exact.get(key) or self._between(*key)
        return self._found[key]

    def nearest(self, batch: int) -> tuple[tuple[int, int, int], float, int]:
        """(channels, rows, columns) of the largest box that was measured, its s, and in which batch, the most alike."""
        of_batch = min(self.batches, key=lambda each: abs(each - batch))
        size, seconds = self._largest[of_batch]
        return size, seconds, of_batch

    def _largest_of(self, batch: int) -> tuple[tuple[int, int, int], float]:
        most = max((key for key in self._exact if key[3] == batch), key=lambda key: key[0] * key[1] * key[2])
        return most[:3], self._exact[most]

    def _axes_of(self, batch: int) -> tuple[Line, Line]:
        """What was measured along the channels, and along the rows, of the largest box's other axes."""
        sizes = [key for key in self._exact if key[3] == batch]
        channels, rows, columns = self._largest[batch][0]
        by_channels = [(whole_blocks(key[0]), self._exact[key]) for key in sizes if key[1:3] == (rows, columns)]
        by_rows = [(key[1], self._exact[key]) for key in sizes if (key[0], key[2]) == (channels, columns)]
        return Line(by_channels), Line(by_rows)

    def _between(self, channels: int, rows: int, columns: int, batch: int) -> float | None:
        if batch not in self._axes:
            return None
        (_, _, whole_columns), result = self._largest[batch]
        at = whole_blocks(channels), rows * columns / whole_columns
        for line, value in zip(self._axes[batch], at, strict=True):
            if value == line.values[-1]:
                continue
            if len(line.values) == 1:
                return None
            result *= line.at(value) / line.at(line.values[-1])
        return result


class Line:
    """A rising line through measured points, straight between them.

    Of points at the same place the slowest counts, and no point is lower than one before it.
    """

    def __init__(self, points: Iterable[tuple[float, float]]) -> None:
        self.values: list[float] = []
        self._seconds: list[float] = []
        for value, seconds in sorted(points):
            most = max(seconds, self._seconds[-1]) if self._seconds else seconds
            if self.values and self.values[-1] == value:
                self._seconds[-1] = most
            else:
                self.values.append(value)
                self._seconds.append(most)

    def at(self, value: float) -> float:
        """S at a value above 0."""
        values, seconds = self.values, self._seconds
        if value >= values[-1]:
            return seconds[-1] * value / values[-1]
        if value <= values[0]:
            part = seconds[0] * value / values[0]
            if len(values) == 1:
                return part
            slope = (seconds[1] - seconds[0]) / (values[1] - values[0])
            return min(max(seconds[0] - slope * (values[0] - value), part), seconds[0])
        after = bisect_left(values, value)
        low, high = values[after - 1], values[after]
        part = (value - low) / (high - low)
        return seconds[after - 1] + part * (seconds[after] - seconds[after - 1])


def points_of(where: str, data: Any) -> tuple[Point, ...]:
    """Measured boxes from lists of five numbers, sorted. Raises MpiconvError, saying ``where``, if they are not."""
    wanted = "[channels, rows, columns, batch, seconds] above 0"
    if not isinstance(data, list | tuple) or not data:
        raise MpiconvError(f"{where} is {data!r}, a list of {wanted} is wanted")
    found = []
    for point in data:
        numbers = list(point) if isinstance(point, list | tuple) else []
        whole = [type(number) is int and number > 0 for number in numbers[:-1]]
        if len(numbers) != 5 or not all(whole) or not _is_time(numbers[-1]):
            raise MpiconvError(f"{where} has {point!r} in it, {wanted} is wanted")
        *size, seconds = numbers
        found.append((*size, float(seconds)))
    return tuple(sorted(found))


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < LONGEST_S


def whole_blocks(channels: int) -> int:
    """The channels that are computed for a slice: the next multiple of ``BLOCK``."""
    return -(-channels // BLOCK) * BLOCK
