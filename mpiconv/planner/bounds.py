"""Many boxes at once: what units need for them and how long they take, each case worked out once.

The arithmetic itself is ``partition.receptive``'s and ``planner.speed``'s; here it is only remembered. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mpiconv.graph.form import Graph
from mpiconv.partition.bounds import box_of
from mpiconv.partition.box import Box, Span
from mpiconv.partition.receptive import unit_needs
from mpiconv.planner.cluster import Cluster, kinds_of
from mpiconv.planner.speed import unit_seconds


def hulls(found: Sequence[np.ndarray]) -> np.ndarray:
    """The smallest boxes around those with the bounds (..., 6) of several arrays; an empty one counts for nothing."""
    first, *rest = found
    around = first.copy()
    for other in rest:
        here, there = around[..., 1:2] > 0, other[..., 1:2] > 0
        both = np.empty_like(around)
        both[..., 0::2] = np.minimum(around[..., 0::2], other[..., 0::2])
        both[..., 1::2] = np.maximum(around[..., 1::2], other[..., 1::2])
        around = np.where(here & there, both, np.where(there, other, around))
    return np.asarray(around)


class Needs:
    """What the units of a network need of their inputs.

    Channels, rows and columns do not depend on each other, so that every span along an axis is asked for once.
    """

    def __init__(self, graph: Graph) -> None:
        self._units = graph.units
        self._known: dict[tuple[int, int], dict[int, tuple[tuple[int, int], ...]]] = graph.memo.setdefault("needs", {})

    def __call__(self, unit: int, made: np.ndarray) -> list[np.ndarray]:
        """For every input the bounds (..., 6) of what is needed of it for boxes of the unit's output (..., 6)."""
        count = len(self._units[unit].inputs)
        found = np.empty((count, *made.shape), np.int64)
        for axis in range(3):
            spans = made[..., 2 * axis : 2 * axis + 2]
            found[..., 2 * axis : 2 * axis + 2] = self._along(unit, axis, spans)
        empty = (made[..., 1] == 0) | (found[..., 1::2] == 0).any(axis=-1)
        found[empty] = 0
        return list(found)

    def _along(self, unit: int, axis: int, spans: np.ndarray) -> np.ndarray:
        """(input, ..., 2): the spans that are needed for those of the output along one axis."""
        base = max(self._units[unit].out_shape) + 1
        codes, where = np.unique(spans[..., 0] * base + spans[..., 1], return_inverse=True)
        known = self._known.setdefault((unit, axis), {})
        for code in codes.tolist():
            if code not in known:
                known[code] = self._needed(unit, axis, Span(*divmod(code, base)))
        table = np.array([known[code] for code in codes.tolist()], np.int64)
        return np.moveaxis(table[where.reshape(spans.shape[:-1])], -2, 0)

    def _needed(self, unit: int, axis: int, span: Span) -> tuple[tuple[int, int], ...]:
        each = self._units[unit]
        if not span:
            return ((0, 0),) * len(each.inputs)
        around = list(Box.whole(each.out_shape).spans)
        around[axis] = span
        return tuple((need.spans[axis].lo, need.spans[axis].hi) for need in unit_needs(each, Box(*around)))


class Costs:
    """How long the units of a network take on the devices of a cluster; boxes of one size take the same."""

    def __init__(self, graph: Graph, cluster: Cluster, batch: int = 1) -> None:
        self._units, self._devices, self._batch = graph.units, cluster.devices, batch
        self.kinds = np.array(kinds_of(cluster.devices))
        self._known: dict[tuple[int, int], float] = {}

    def __call__(self, unit: int, made: np.ndarray) -> np.ndarray:
        """(..., rank): s in which each rank computes its box of the unit's output, for bounds (..., rank, 6)."""
        extent = made[..., 1::2] - made[..., 0::2]
        codes = self.kinds
        for axis, length in enumerate(self._units[unit].out_shape):
            codes = codes * (length + 1) + extent[..., axis]
        unique, first, where = np.unique(codes, return_index=True, return_inverse=True)
        flat = made.reshape(-1, 6)
        kinds = np.broadcast_to(self.kinds, codes.shape).reshape(-1)
        found = np.array(
            [
                self._seconds(unit, code, int(kinds[at]), flat[at])
                for code, at in zip(unique.tolist(), first.tolist(), strict=True)
            ]
        )
        return np.asarray(found[where.reshape(codes.shape)])

    def _seconds(self, unit: int, code: int, kind: int, row: np.ndarray) -> float:
        key = unit, code
        if key not in self._known:
            box = box_of(row.tolist())
            self._known[key] = unit_seconds(self._devices[kind], self._units[unit], box, self._batch) if box else 0.0
        return self._known[key]


def in_turn(count: int, most: int, work: Callable[[slice], np.ndarray]) -> np.ndarray:
    """Work on some of ``count`` columns at a time, ``most`` at most, and put the results side by side."""
    return np.concatenate([work(slice(at, at + most)) for at in range(0, count, most)], axis=1)
