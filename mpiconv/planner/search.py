"""The best split by dynamic programming over the cut points of a network, where one map alone is read later. Pure.

Between two cut points all units are split one way (``ways.Way``), or their rows are split at the last one and all that
this needs is computed again, with nothing to exchange. What a way costs depends on the way before, since the map has to
change hands. Ranks are taken to start each unit together; ``simulation`` looks closer at what comes out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mpiconv.graph.form import Graph
from mpiconv.partition.bounds import bounds, box_of
from mpiconv.partition.box import Box
from mpiconv.partition.plan import FLOAT_BYTES, Plan
from mpiconv.partition.receptive import box_flops, box_weights
from mpiconv.partition.schemes import ROOT
from mpiconv.planner.bounds import Costs, Needs
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.rates import Rates
from mpiconv.planner.stages import MOST_FUSED, Stage, Stages
from mpiconv.planner.ways import Way, ways


@dataclass(frozen=True)
class Leg:
    """All stages that begin with a block, and what they cost after each way of the block before.

    ``waits_s[a, s, r]``: until rank r has what it needs for stage s of what way a has left; ``each_s[s, r]`` and
    ``rest_s[s]`` as of ``Stage``; ``ends[s]``: the number of blocks behind which stage s ends; ``ways[s]`` its way.
    """

    stages: tuple[Stage, ...]
    ends: np.ndarray
    ways: np.ndarray
    each_s: np.ndarray
    rest_s: np.ndarray
    waits_s: np.ndarray

    def seconds(self, weight: float = 1.0) -> np.ndarray:
        """(a, s): what stage s takes after way a; ``weight`` is what a second of sending counts."""
        return np.asarray((weight * self.waits_s + self.each_s).max(axis=-1) + self.rest_s)


class Search:
    """All stages of a network on a cluster with what they cost; ``plan`` finds the quickest chain of them.

    ``choice`` are the ways to choose between, and ``most_fused`` the number of blocks that are fused at most.
    """

    def __init__(
        self,
        graph: Graph,
        cluster: Cluster,
        batch: int = 1,
        choice: Sequence[Way] | None = None,
        most_fused: int = MOST_FUSED,
    ) -> None:
        self.graph, self.cluster, self.batch = graph, cluster, batch
        self.ways, self._links = list(choice or ways(graph, cluster, batch)), Rates(cluster, batch)
        found = Stages(graph, self.ways, Costs(graph, cluster, batch), self._links, most_fused)
        self.blocks, self._boxes, self._stages = found.blocks, found.boxes, found.starting()
        self._weight_bytes: dict[tuple[int, int, int], int] = {}

    @cached_property
    def legs(self) -> list[Leg]:
        """The stages by the block that they begin with."""
        root = bounds([Box.whole(self.graph.input_shape), *(Box() for _ in self.cluster.devices[1:])])[None]
        found = []
        for first, stages in enumerate(self._stages):
            made = self._boxes[self.blocks[first].start - 1] if first else root
            found.append(
                Leg(
                    tuple(stages),
                    np.array([self._block_after(stage) for stage in stages], int),
                    np.array([stage.way for stage in stages], int),
                    np.stack([stage.each_s for stage in stages])[:, self._links.seen],
                    np.array([stage.rest_s for stage in stages]),
                    self._links.between(made, np.stack([stage.needs for stage in stages])),
                )
            )
        return found

    @cached_property
    def _last_s(self) -> np.ndarray:
        """Of every way, until the root has what the model's output is made of."""
        return np.array([self._to_root(way) for way in range(len(self.ways))])

    def plan(
        self,
        ranks: Collection[int] | None = None,
        *,
        weight: float = 1.0,
        price: np.ndarray | None = None,
        without: Collection[str] = (),
    ) -> Plan | None:
        """The plan of the quickest chain of stages on these ranks, or on all; None where none leads to the end.

        ``weight`` is what a second of sending counts against one of computing; ``price`` (rank,) how many s a B of
        weights counts on each rank; ``without`` are schemes that are not to be in it.
        """
        found = self.chain(ranks, weight=weight, price=price, without=without)
        return None if found is None else self._assembled(found)

    def chain(
        self,
        ranks: Collection[int] | None = None,
        *,
        weight: float = 1.0,
        price: np.ndarray | None = None,
        without: Collection[str] = (),
    ) -> list[Stage] | None:
        """The stages of that plan."""
        if not self.blocks:
            return None
        within = range(len(self.cluster.devices)) if ranks is None else set(ranks)
        fine = np.array([set(way.ranks) <= set(within) and way.scheme not in without for way in self.ways])
        count = len(self.ways)
        spent = np.full((len(self.blocks) + 1, count), np.inf)
        before = np.full((len(self.blocks) + 1, count, 3), -1)  # leg, stage, way before
        for first, leg in enumerate(self.legs):
            start = spent[first] if first else np.zeros(1)
            total = start[:, None] + leg.seconds(weight) + np.where(fine[leg.ways], 0.0, np.inf)
            if price is not None:
                total = total + self._weights(leg) @ price
            origin = total.argmin(axis=0)
            least = total[origin, np.arange(len(leg.stages))]
            better = np.flatnonzero(least < spent[leg.ends, leg.ways])
            chosen = better[np.argsort(-least[better], kind="stable")]  # of several for one place the last stays
            there = leg.ends[chosen], leg.ways[chosen]
            spent[there] = least[chosen]
            before[there] = np.stack([np.full(len(chosen), first), chosen, origin[chosen]], axis=-1)
        final = spent[-1] + weight * self._last_s
        way = int(final.argmin())
        if not np.isfinite(final[way]):
            return None
        end, stages = len(self.blocks), list[Stage]()
        while end:
            first, stage, origin_way = before[end, way]
            stages.insert(0, self.legs[first].stages[stage])
            end, way = int(first), int(origin_way)
        return stages

    def _weights(self, leg: Leg) -> np.ndarray:
        """(stage, rank): B of weights that the stages need."""
        held = np.zeros((len(leg.stages), len(self.cluster.devices)))
        for number, stage in enumerate(leg.stages):
            for unit, row in zip(stage.units, stage.boxes, strict=True):
                held[number] += [self._held(unit, box) for box in row]
        return held

    def _held(self, unit: int, row: np.ndarray) -> int:
        key = unit, int(row[0]), int(row[1])
        if key not in self._weight_bytes:
            self._weight_bytes[key] = FLOAT_BYTES * box_weights(self.graph.units[unit], box_of(row.tolist()))
        return self._weight_bytes[key]

    def _block_after(self, stage: Stage) -> int:
        return next(i for i, block in enumerate(self.blocks) if block.stop == stage.units.stop) + 1

    def _to_root(self, way: int) -> float:
        """S until the root has what the last unit, the model's output, is made of."""
        head, last = self.graph.units[-1], len(self.graph.body)
        whole, count = bounds([Box.whole(head.out_shape)]), len(self.cluster.devices)
        seconds = 0.0
        for source, need in dict(zip(head.inputs, Needs(self.graph)(last, whole), strict=True)).items():
            if source in self.blocks[-1]:
                rest = np.zeros((count - 1, 6), np.int64)
                seconds += float(self._links.seconds(self._boxes[source][way], np.concatenate([need, rest])))
        return seconds

    def _assembled(self, stages: Sequence[Stage]) -> Plan:
        boxes = tuple(tuple(map(box_of, row.tolist())) for stage in stages for row in stage.boxes)
        names = tuple(name for stage in stages for name in stage.names)
        units = list(zip(self.graph.body, boxes, strict=True))
        work = [sum(box_flops(unit, row[rank]) for unit, row in units) for rank in range(len(self.cluster.devices))]
        total = sum(work)
        shares = tuple(each / total for each in work) if total else tuple(float(r == ROOT) for r in range(len(work)))
        return Plan(self.graph, names, shares, self.batch, boxes)
