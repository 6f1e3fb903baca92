"""The best split by dynamic programming over the cut points of a network, where one map alone is read later. Pure.

Between two cut points all units are split one way (``ways.Way``), or their rows are split at the last one and all that
this needs is computed again, with nothing to exchange. What a way costs depends on the way before, since the map has to
change hands. Ranks are taken to start each unit together; ``simulation`` looks closer at what comes out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from mpiconv.graph.form import PICTURE, Graph
from mpiconv.partition.box import Box, hull
from mpiconv.partition.plan import FLOAT_BYTES, Plan
from mpiconv.partition.receptive import box_flops, unit_needs
from mpiconv.partition.schemes import ROOT, Boxes
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.speed import unit_seconds
from mpiconv.planner.ways import Way, blocks, fused_before, ways

MOST_FUSED = 8
"""Blocks in a row that are fused at most."""


@dataclass
class Stage:
    """Some units in a row that are split one way: what they cost by themselves, and where they lead.

    ``needs`` is what each rank needs of the map before, ``made`` what it has of the map after: (rank, 6) bounds.
    """

    units: range
    way: int
    boxes: Boxes
    names: tuple[str, ...]
    seconds: float
    needs: np.ndarray
    made: np.ndarray


@dataclass
class Best:
    """The quickest known from the picture to a cut point, by the way of the last stage."""

    seconds: float = np.inf
    stages: list[Stage] = field(default_factory=list)


class Search:
    """All stages of a network on a cluster with what they cost; ``plan`` finds the quickest chain of them.

    ``among`` are the ways to choose between, by default all.
    """

    def __init__(self, graph: Graph, cluster: Cluster, batch: int = 1, among: Sequence[Way] | None = None) -> None:
        self.graph, self.cluster, self.batch = graph, cluster, batch
        self.ways, self.blocks = ways(graph, cluster) if among is None else list(among), blocks(graph)
        self._links = Rates(cluster, batch)
        self._computed: dict[tuple[int, int, Box], float] = {}
        self._needed: dict[tuple[int, Box], tuple[Box, ...]] = {}
        self._kinds = [cluster.devices.index(device) for device in cluster.devices]
        self._stages = [self._starting(first) for first in range(len(self.blocks))]

    def plan(self, ranks: Collection[int] | None = None, *, weight: float = 1.0) -> Plan | None:
        """The plan of the quickest chain of stages on these ranks, or on all; None where none leads to the end.

        ``weight`` is what a second of sending counts against one of computing.
        """
        root = _bounds([Box.whole(self.graph.input_shape), *(Box() for _ in self.cluster.devices[1:])])
        fine = [ranks is None or set(ranks).issuperset(way.ranks) for way in self.ways]
        best: list[dict[int, Best]] = [{} for _ in range(len(self.blocks) + 1)]
        best[0] = {-1: Best(0.0, [])}
        for first, before in enumerate(best[:-1]):
            if not before:
                continue
            made = np.stack([each.stages[-1].made if each.stages else root for each in before.values()])
            spent = np.array([each.seconds for each in before.values()])
            chains = [each.stages for each in before.values()]
            stages = [stage for stage in self._stages[first] if fine[stage.way]]
            if not stages:
                return None
            moving = self._links.seconds(made[:, None], np.stack([stage.needs for stage in stages])[None])
            total = spent[:, None] + weight * moving + np.array([stage.seconds for stage in stages])
            for number, stage in enumerate(stages):
                chain = int(total[:, number].argmin())
                there = best[self._block_after(stage)].setdefault(stage.way, Best())
                if total[chain, number] < there.seconds:
                    there.seconds, there.stages = float(total[chain, number]), [*chains[chain], stage]
        ends = list(best[-1].values())
        if not ends:
            return None
        final = [each.seconds + weight * self._to_root(each.stages[-1]) for each in ends]
        return self._assembled(ends[int(np.argmin(final))].stages)

    def _block_after(self, stage: Stage) -> int:
        return next(i for i, block in enumerate(self.blocks) if block.stop == stage.units.stop) + 1

    def _starting(self, first: int) -> list[Stage]:
        """All stages that begin with a block."""
        found = []
        for number, way in enumerate(self.ways):
            units = self.blocks[first]
            boxes = [way.boxes[unit] for unit in units]
            found.append(self._stage(units, number, boxes, way.names[units.start : units.stop]))
            if not way.fuses:
                continue
            for last in range(first, min(first + MOST_FUSED, len(self.blocks))):
                units = range(self.blocks[first].start, self.blocks[last].stop)
                fused = fused_before(self.graph, units, way.boxes[units[-1]]) if len(units) > 1 else None
                if fused is not None:
                    names = ("fused",) * (len(units) - 1) + (way.names[units[-1]],)
                    found.append(self._stage(units, number, fused, names))
                elif len(units) > 1:
                    break
        return found

    def _stage(self, units: range, way: int, boxes: Boxes, names: Sequence[str]) -> Stage:
        seconds = sum(
            max(self._compute(rank, unit, box) for rank, box in enumerate(row))
            for unit, row in zip(units, boxes, strict=True)
        )
        for unit in units[:-1]:
            own, need = _bounds(boxes[unit - units.start]), self._needs(unit, units, boxes)
            if not _all_there(own, need):
                seconds += float(self._links.seconds(own, need))
        before = {source for unit in units for source in self.graph.units[unit].inputs if source < units.start}
        needs = self._needs(max(before, default=PICTURE), units, boxes)
        return Stage(units, way, boxes, tuple(names), seconds, needs, _bounds(boxes[-1]))

    def _compute(self, rank: int, unit: int, box: Box) -> float:
        """S that a rank computes a box of a unit."""
        if not box:
            return 0.0
        key = self._kinds[rank], unit, box
        if key not in self._computed:
            device = self.cluster.devices[rank]
            self._computed[key] = unit_seconds(device, self.graph.units[unit], box, self.batch)
        return self._computed[key]

    def _needs(self, source: int, units: Sequence[int], boxes: Boxes) -> np.ndarray:
        """What each rank needs of a map for its boxes of these units: (rank, 6) bounds."""
        readers = [unit for unit in units if source in self.graph.units[unit].inputs]
        first = units[0]
        found = []
        for rank in range(len(self.cluster.devices)):
            needs = [(unit, self._unit_needs(unit, boxes[unit - first][rank])) for unit in readers]
            pairs = [pair for unit, each in needs for pair in zip(self.graph.units[unit].inputs, each, strict=True)]
            found.append(hull(need for of, need in pairs if of == source))
        return _bounds(found)

    def _unit_needs(self, unit: int, box: Box) -> tuple[Box, ...]:
        key = unit, box
        if key not in self._needed:
            self._needed[key] = unit_needs(self.graph.units[unit], box)
        return self._needed[key]

    def _to_root(self, stage: Stage) -> float:
        """S until the root has what the last unit, the model's output, is made of."""
        head = self.graph.units[-1]
        whole, count = Box.whole(head.out_shape), len(self.cluster.devices)
        seconds = 0.0
        for source, need in dict(zip(head.inputs, unit_needs(head, whole), strict=True)).items():
            if source in stage.units:
                own = _bounds(stage.boxes[source - stage.units.start])
                seconds += float(self._links.seconds(own, _bounds([need, *[Box()] * (count - 1)])))
        return seconds

    def _assembled(self, stages: Sequence[Stage]) -> Plan:
        boxes = tuple(tuple(row) for stage in stages for row in stage.boxes)
        names = tuple(name for stage in stages for name in stage.names)
        units = list(zip(self.graph.body, boxes, strict=True))
        work = [sum(box_flops(unit, row[rank]) for unit, row in units) for rank in range(len(self.cluster.devices))]
        total = sum(work)
        shares = tuple(each / total for each in work) if total else tuple(float(r == ROOT) for r in range(len(work)))
        return Plan(self.graph, names, shares, self.batch, boxes)


class Rates:
    """What it takes to have maps change hands on a cluster: every rank sends and receives one message at a time."""

    def __init__(self, cluster: Cluster, batch: int) -> None:
        devices, count = cluster.devices, len(cluster.devices)
        self._near = np.array([[a.host == b.host for b in devices] for a in devices])
        self._seconds_per_element, self._alpha_s = np.zeros((count, count)), np.zeros((count, count))
        self._shared = cluster.medium == "shared"
        for source, device in enumerate(devices):
            for target in range(count):
                if self._near[source, target]:
                    rate = device.weight_bytes_per_s
                else:
                    link = cluster.link(source, target)
                    rate, self._alpha_s[source, target] = link.beta_bytes_per_s, link.alpha_s
                self._seconds_per_element[source, target] = FLOAT_BYTES * batch / rate

    def seconds(self, own: np.ndarray, need: np.ndarray) -> np.ndarray:
        """Until every rank has what it needs: (..., rank, 6) bounds each, broadcast against each other.

        Of one rank's map that several need all of, each hands on what it has, as in a binomial tree.
        """
        lo = np.maximum(own[..., :, None, 0::2], need[..., None, :, 0::2])
        hi = np.minimum(own[..., :, None, 1::2], need[..., None, :, 1::2])
        elements = np.clip(hi - lo, 0, None).prod(axis=-1).astype(float)
        elements *= ~np.eye(elements.shape[-1], dtype=bool)
        taken = elements * self._seconds_per_element
        far = taken * ~self._near
        waits = np.max(np.where(far > 0, self._alpha_s, 0.0), axis=(-1, -2))
        sent, received = taken.sum(axis=-1), taken.sum(axis=-2)
        targets = (elements > 0).sum(axis=-1)
        same = elements.max(axis=-1) * targets == elements.sum(axis=-1)
        tree = (targets > 1) & same & ((elements > 0).any(axis=-1).sum(axis=-1, keepdims=True) == 1)
        rounds = np.ceil(np.log2(targets + 1.0))
        sent = np.where(tree, sent * rounds / np.maximum(targets, 1), sent)
        busy = np.maximum(sent.max(axis=-1), received.max(axis=-1))
        if self._shared:
            busy = np.maximum(busy, far.sum(axis=(-1, -2)))
        return np.asarray(busy + waits)


def _bounds(boxes: Sequence[Box]) -> np.ndarray:
    """(rank, 6): where each box begins and ends in channels, rows and columns."""
    return np.array([[edge for span in box.spans for edge in (span.lo, span.hi)] for box in boxes])


def _all_there(own: np.ndarray, need: np.ndarray) -> bool:
    """Whether every rank has what it needs: ``Rates.seconds`` would take overlapping bands to be exchanged."""
    empty = need[:, 1] == need[:, 0]
    within = (own[:, 0::2] <= need[:, 0::2]).all(axis=1) & (need[:, 1::2] <= own[:, 1::2]).all(axis=1)
    return bool((empty | within).all())
