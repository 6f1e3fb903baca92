"""What one rank sent, received and computed in a series of frames, as numbers per inference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpiconv.measure.record import KINDS
from mpiconv.partition import Plan
from mpiconv.runtime.exchange.parts import Counter

COUNTED = ("bytes_sent", "bytes_received", "multicast_bytes", "messages_sent")


class Counts:
    """Counts of the plan that runs: whole numbers, since every frame has the same; of plans in turn means over frames.

    Parameters
    ----------
    plans
        The plan, or those by which frames go in turn.
    counters
        For every unit the exchanges before it: their pattern and what they count.
    """

    def __init__(self, plans: Sequence[Plan], counters: Sequence[Sequence[tuple[str, Counter]]]) -> None:
        self._plans, self._counters = plans, counters
        self._ran = [0] * len(plans)
        self.units = plans[0].graph.unit_names

    def clear(self) -> None:
        """Count from nothing again."""
        self._ran = [0] * len(self._plans)
        for before in self._counters:
            for _, counter in before:
                counter.clear()

    def ran(self, plan: Plan) -> None:
        """Note a frame that went by one of the plans."""
        self._ran[next(turn for turn, each in enumerate(self._plans) if each is plan)] += 1

    def mean(self, name: str) -> np.ndarray:
        """(1, unit): one of ``COUNTED`` per inference."""
        totals = [sum(getattr(counter, name) for _, counter in before) for before in self._counters]
        return self._each(np.array([totals], np.int64))

    def by_kind(self, name: str) -> np.ndarray:
        """(1, unit, kind): one of ``COUNTED`` per inference, by the kind of the exchange."""
        totals = np.zeros((1, len(self._counters), len(KINDS)), np.int64)
        for unit, before in enumerate(self._counters):
            for pattern, counter in before:
                if pattern in KINDS:
                    totals[0, unit, KINDS.index(pattern)] += getattr(counter, name)
        return self._each(totals)

    def flops(self, rank: int) -> np.ndarray:
        """(1, unit): FLOPs of a rank per inference."""
        plans = np.array([[plan.flops(u, rank) for u in range(len(self.units))] for plan in self._plans], np.int64)
        return plans if len(plans) == 1 else self._each(np.array([self._ran]) @ plans)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The MPI patterns of the exchange before each unit, by any of the plans, joined by ``+``."""
        found = []
        for unit in range(len(self.units)):
            names = dict.fromkeys(plan.pattern(unit) for plan in self._plans)
            found.append("+".join(name for name in names if name != "none") or "none")
        return tuple(found)

    def _each(self, totals: np.ndarray) -> np.ndarray:
        frames = max(sum(self._ran), 1)
        return totals / frames if len(self._plans) > 1 else totals // frames
