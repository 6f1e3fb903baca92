"""Numbers from repeated measurements: a time without disturbances, and the line through the times of a link."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median


def undisturbed(seconds: Sequence[float]) -> float:
    """The median of the faster half of some times in s: what else a machine or a network does only adds to a time.

    The minimum alone would trust one lucky round, the median of all a machine that is busy half of the time.
    """
    return median(sorted(seconds)[: (len(seconds) + 1) // 2])


def scatter(seconds: Sequence[float]) -> float:
    """By how much of itself a time is longer in the median than undisturbed: about 0 where nothing else runs."""
    return median(seconds) / max(undisturbed(seconds), 1e-12) - 1


def fit_link(seconds: Mapping[int, float]) -> tuple[float, float]:
    """Alpha (s) and beta (B/s) of ``t = alpha + bytes / beta`` from the time of a message of each of some sizes in B.

    beta comes from the slopes between all pairs of sizes (Theil-Sen), each weighted by the B between the two, so
    that the latency's noise does not reach it, nor a burst that a rate limit lets through before it sets in. alpha is
    what the smallest message takes beyond its bytes. Both are positive, however noisy the times are.
    """
    points = sorted(seconds.items())
    slopes = [((t - s) / (b - a), b - a) for i, (a, s) in enumerate(points) for b, t in points[i + 1 :]]
    rising = sorted((slope, weight) for slope, weight in slopes if slope > 0)
    if rising:
        per_byte = _weighted_median(rising)
    else:
        size, time = points[-1]
        per_byte = max(time, 1e-9) / size
    size, time = points[0]
    return max(time - size * per_byte, 1e-9), 1 / per_byte


def _weighted_median(values: Sequence[tuple[float, float]]) -> float:
    """The value at which half of the weight is reached, of (value, weight) pairs in the order of values."""
    half, sum_ = sum(weight for _, weight in values) / 2, 0.0
    for value, weight in values:
        sum_ += weight
        if sum_ >= half:
            return value
    return values[-1][0]
