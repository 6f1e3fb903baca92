"""Baselines: the ways to split a network that others published, on this engine, to be compared with. Pure.

Each is built from its paper, with the estimates of this planner in place of the paper's own; what is not built is said.

[Mao17] J. Mao et al., *MoDNN: Local distributed mobile computing system for deep neural network*, DATE 2017.
[Zeng21] L. Zeng et al., *CoEdge: Cooperative DNN inference with adaptive workload partitioning over heterogeneous edge
devices*, IEEE/ACM Transactions on Networking 29(2), 2021.
[Zhao18] Z. Zhao, K. Mirzazad Barijough, A. Gerstlauer, *DeepThings: Distributed adaptive deep learning inference on
resource-constrained IoT edge clusters*, IEEE TCAD 37(11), 2018.
[Zhou19] L. Zhou et al., *Adaptive parallel execution of deep neural networks on heterogeneous edge devices*, ACM/IEEE
SEC 2019.
[Zhang25] R. Zhang et al., *FlexPie: Accelerate distributed inference on edge devices with flexible combinatorial
optimization*, arXiv 2502.15312, 2025.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from mpiconv.graph.form import PICTURE, Graph
from mpiconv.graph.grouping import grouped
from mpiconv.partition.bounds import box_of
from mpiconv.partition.box import Box, hull, normalised
from mpiconv.partition.making import make_plan
from mpiconv.partition.plan import FLOAT_BYTES, Plan
from mpiconv.partition.receptive import needs_of
from mpiconv.partition.schemes import ROOT, Boxes
from mpiconv.planner.bounds import Costs
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.coedge import coedge, moving_s
from mpiconv.planner.rates import Rates
from mpiconv.planner.search import Search
from mpiconv.planner.speed import unit_seconds
from mpiconv.planner.stages import Stages
from mpiconv.planner.ways import Way, alone, among

Baseline = Callable[[Graph, Cluster, int], Plan]


def modnn(graph: Graph, cluster: Cluster, batch: int = 1) -> Plan:
    """Bands along the longer edge by the devices' speeds, layer by layer, and fully connected weights by speed [Mao17].

    Built: the biased one-dimensional partition of convolutional layers, their maps exchanged after each (and the
    pooling behind it); fully connected layers split by their outputs. Not built: the relay of every map through one
    device, here halos go straight to the neighbours, and the clustering of sparse weights.
    """
    rows, columns = graph.input_shape[1:]
    count = len(cluster.devices)
    shares = normalised([device.gflop_per_s["conv3x3"] for device in cluster.devices], count)
    scheme = "wpm" if rows >= columns else "columns"
    return make_plan(graph, (batch, *graph.input_shape), scheme, count, shares, "pool", "split")


def deepthings(graph: Graph, cluster: Cluster, batch: int = 1) -> Plan:
    """The first layers fused and their output cut into a grid of equal tiles, the rest on the root [Zhao18].

    Built: the fused tile partition, a tile per device, with what tiles share at their borders computed again by each;
    the number of fused layers, which the paper sets by hand, is the best by this planner's estimates. Not built:
    several tiles per device that idle ones steal from busy ones, and the reuse of a neighbour's borders.
    """
    graph = grouped(graph, "pool", "root")
    count = len(cluster.devices)
    shares, root = tuple(normalised([1.0] * count, count)), alone(graph, ROOT, count)
    found, least_s = _on_root(graph, cluster, batch), math.inf
    for fused in _fused_tiles(graph, cluster, batch) if count > 1 else ():
        done = len(fused)
        boxes = tuple(map(tuple, [*fused, *root.boxes[done:]]))
        seconds = _fused_s(graph, cluster, batch, boxes, done)
        if seconds < least_s:
            names = ("fused",) * (done - 1) + ("tiles",) + root.names[done:]
            found, least_s = Plan(graph, names, shares, batch, boxes), seconds
    return found


def aofl(graph: Graph, cluster: Cluster, batch: int = 1) -> Plan:
    """The best groups of fused layers, each cut into equal bands of rows over all devices [Zhou19].

    Built: the dynamic programming over where a group of fused layers ends, by this planner's estimates; fully connected
    layers on the root. Not built: the choice of how many devices take part, and sending all of a group's output
    through the host, here only rows that are missing travel. At most ``search.MOST_FUSED`` blocks are fused.
    """
    graph = grouped(graph, "pool", "root")
    return _searched(graph, cluster, batch, [_equal(graph, cluster, "wpm")])


def flexpie(graph: Graph, cluster: Cluster, batch: int = 1) -> Plan:
    """Rows, columns, tiles or output channels for each layer, fused or not, over all devices equally [Zhang25].

    Built: the dynamic programming over these four schemes and fusion, by this planner's estimates. Not built: the
    estimates by boosted trees, trained on measurements of the paper's boards, and the compiler's optimisations of
    single layers. At most ``search.MOST_FUSED`` blocks are fused.
    """
    graph = grouped(graph, "pool", "split")
    found: list[Way] = []
    for scheme in ("wpm", "columns", "tiles", "kpm"):
        way = _equal(graph, cluster, scheme)
        if all(way.boxes != other.boxes for other in found):
            found.append(way)
    return _searched(graph, cluster, batch, found)


BASELINES: dict[str, Baseline] = {
    baseline.__name__: baseline for baseline in (modnn, coedge, deepthings, aofl, flexpie)
}
"""By name; each makes a plan for a network in any grouping, a cluster, and pictures that travel together."""


def _equal(graph: Graph, cluster: Cluster, scheme: str) -> Way:
    """A scheme over all devices, by equal shares."""
    count = len(cluster.devices)
    return among(graph, scheme, [1.0] * count, tuple(range(count)), count)


def _searched(graph: Graph, cluster: Cluster, batch: int, among: Sequence[Way]) -> Plan:
    """The best chain of these ways; all on the root where the network has nothing to split."""
    found = Search(graph, cluster, batch, among).plan() if graph.body else None
    return found or _on_root(graph, cluster, batch)


def _on_root(graph: Graph, cluster: Cluster, batch: int) -> Plan:
    count = len(cluster.devices)
    shares = tuple(float(rank == ROOT) for rank in range(count))
    way = alone(graph, ROOT, count)
    return Plan(graph, way.names, shares, batch, tuple(map(tuple, way.boxes)))


def _fused_tiles(graph: Graph, cluster: Cluster, batch: int) -> Iterator[Boxes]:
    """The boxes of the first blocks of units, fused, for every number of blocks: tiles of the last one's map."""
    tiles, costs = [_equal(graph, cluster, "tiles")], Costs(graph, cluster, batch)
    stages = Stages(graph, tiles, costs, Rates(cluster, batch), most_fused=len(graph.body)).starting()
    for stage in stages[0] if stages else ():
        last = graph.units[stage.units.stop - 1]
        if last.opaque or last.fully_connected:
            return
        if set(stage.names[:-1]) <= {"fused"}:
            yield [[box_of(row) for row in rows.tolist()] for rows in stage.boxes]


def _fused_s(graph: Graph, cluster: Cluster, batch: int, boxes: Sequence[Sequence[Box]], done: int) -> float:
    """Estimated s for a picture whose first ``done`` units are fused: its way to the devices, theirs back, the rest."""
    seconds = sum(
        max(unit_seconds(device, unit, box, batch) for device, box in zip(cluster.devices, row, strict=True))
        for unit, row in zip(graph.body, boxes, strict=True)
    )
    readers = [unit for unit in graph.consumers(PICTURE) if unit < done]
    for rank in range(len(cluster.devices)):
        need = hull(need for unit in readers for need in needs_of(graph.units[unit], boxes[unit][rank], PICTURE))
        for source, target, box in ((ROOT, rank, need), (rank, ROOT, boxes[done - 1][rank])):
            seconds += moving_s(cluster, source, target, FLOAT_BYTES * batch * box.size) if box else 0.0
    return seconds
