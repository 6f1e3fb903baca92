"""What happened during a series of inferences: times, bytes, memory. Numbers only; nobody talks to anybody here."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Record:
    """Measurements with axes repeat, rank, unit; a rank's own record has one rank.

    ``stamps_s`` is (repeat, rank, unit, 3): when the unit's exchange began, when its computation began, and when that
    ended, in s; on the rank's own clock in its own record, on the root's since the first inference in a merged one.
    The bytes and messages are per inference; those by kind are (rank, unit, kind). ``clock_*`` are (rank,): the rank's
    clock minus the root's at the start, how it drifts, and the most that the offset can be wrong by.
    ``pace`` is how much slower than its core each rank was made to compute, ``pace_overrun`` in which part of its units
    the core was too busy to keep that pace.
    Of a very long series the times are those of every ``kept_every``-th inference; all else is of all of them.
    ``measured_joules`` is the host's energy per inference where it has a meter (on the first rank of a host), else NaN.
    """

    units: tuple[str, ...]
    latency_s: np.ndarray
    stamps_s: np.ndarray
    bytes_sent: np.ndarray
    bytes_received: np.ndarray
    multicast_bytes: np.ndarray
    messages_sent: np.ndarray
    bytes_sent_by_kind: np.ndarray
    messages_sent_by_kind: np.ndarray
    flops: np.ndarray
    weight_bytes: np.ndarray
    peak_rss_bytes: np.ndarray
    threads: np.ndarray
    pace: np.ndarray
    pace_overrun: np.ndarray
    measured_joules: np.ndarray
    clock_offset_s: np.ndarray
    clock_drift: np.ndarray
    clock_error_s: np.ndarray
    hostnames: tuple[str, ...]
    meters: tuple[str, ...]
    patterns: tuple[str, ...]
    kept_every: int = 1

    @property
    def exchange_time_s(self) -> np.ndarray:
        """(repeat, rank, unit): time in the exchange before the unit, waiting included."""
        return np.asarray(self.stamps_s[..., 1] - self.stamps_s[..., 0])

    @property
    def compute_time_s(self) -> np.ndarray:
        """(repeat, rank, unit): time in the unit's computation."""
        return np.asarray(self.stamps_s[..., 2] - self.stamps_s[..., 1])

    @property
    def ranks(self) -> int:
        """Number of ranks in it."""
        return len(self.hostnames)

    @staticmethod
    def rank_axis(name: str) -> int:
        """Which axis of an array field counts ranks."""
        return 1 if name == "stamps_s" else 0


KINDS = ("bcast", "scatterv", "gatherv", "allgatherv", "sendrecv", "p2p")
"""The kinds of exchange."""

TEXTS = ("hostnames", "meters")
"""The fields with one text per rank."""

PER_RANK = tuple(
    f.name for f in fields(Record) if f.name not in ("units", "latency_s", *TEXTS, "patterns", "kept_every")
)
"""The array fields that every rank has its own of."""


def merge(records: list[Record]) -> Record:
    """One record of all ranks from each rank's own, in their order; latency is rank 0's."""
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(r, name) for r in records], axis=Record.rank_axis(name)) for name in PER_RANK
    }
    arrays |= {name: tuple(text for r in records for text in getattr(r, name)) for name in TEXTS}
    return replace(records[0], **arrays)


def typical(latency_s: np.ndarray) -> np.ndarray:
    """The numbers of the half of the repeats whose latency is nearest to the median.

    Means over them add up, rank by rank and unit by unit, which medians do not; and a few late repeats do not count.
    """
    return np.argsort(np.abs(latency_s - np.median(latency_s)), kind="stable")[: (len(latency_s) + 1) // 2]


def undilated(record: Record, dilation: float) -> Record:
    """The record with all its times divided by a time dilation."""
    times = {
        name: getattr(record, name) / dilation for name in ("latency_s", "stamps_s", "clock_offset_s", "clock_error_s")
    }
    return replace(record, **times)


def peak_rss_bytes() -> int:
    """The most memory that this process has had resident so far, in B."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
