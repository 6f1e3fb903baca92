"""CoEdge: bands of rows whose shares follow from the devices' speeds and their links, as published in [Zeng21]. Pure.

[Zeng21] L. Zeng et al., *CoEdge: Cooperative DNN inference with adaptive workload partitioning over heterogeneous edge
devices*, IEEE/ACM Transactions on Networking 29(2), 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mpiconv.graph.form import PICTURE, Graph, Unit
from mpiconv.graph.grouping import grouped
from mpiconv.partition.box import Box, Span, hull, normalised
from mpiconv.partition.plan import FLOAT_BYTES, Plan
from mpiconv.partition.receptive import needs_of, unit_needs
from mpiconv.partition.schemes import ROOT, ROOT_ALONE, Boxes, boxes_of, needs_all
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.speed import unit_seconds

AT_A_TIME = 8
"""Of more devices than this an eighth is left out at a time, else one."""


def coedge(graph: Graph, cluster: Cluster, batch: int = 1) -> Plan:
    """Bands of rows by computing and link rates, halos exchanged with the neighbours alone [Zeng21].

    Built: one share per device for all layers, so that the slowest is as fast as can be, computing and links counted; a
    device whose band would be thinner than what a neighbour needs of it is left out, and the shares are found again;
    the maps behind the last one with several rows are the root's, with the fully connected layers. Not built: the
    least energy under a deadline, which is what the paper looks for, and its adaptation while the network changes.
    """
    graph = grouped(graph, "pool", "root")
    count = len(cluster.devices)
    kept = list(range(count)) if split_units(graph) else [ROOT]
    whole = {rank: _whole_s(graph, cluster, batch, rank) for rank in kept}
    halos = [FLOAT_BYTES * batch * elements for elements in map(_halo_elements, graph.body[: split_units(graph)])]
    while True:
        fixed = {rank: _halos_s(cluster, halos, kept, rank) for rank in kept}
        found = balanced(fixed, whole)
        useless = [rank for rank in kept if found[rank] <= 0]
        if not useless:
            shares = normalised([found.get(rank, 0.0) for rank in range(count)], count)
            names, boxes = _bands(graph, shares)
            if len(kept) == 1 or _neighbours_suffice(graph, boxes, kept):
                return Plan(graph, tuple(names), tuple(shares), batch, tuple(map(tuple, boxes)))
        leaving = sorted(useless or kept, key=lambda rank: (found[rank], -rank))[: max(1, len(kept) // AT_A_TIME)]
        kept = [rank for rank in kept if rank not in leaving]


def split_units(graph: Graph) -> int:
    """How many units of the body come before the maps of one row and column at its end."""
    count = len(graph.body)
    while count and (graph.units[count - 1].opaque or graph.units[count - 1].out_shape[1:] == (1, 1)):
        count -= 1
    return count


def balanced(fixed_s: Mapping[int, float], whole_s: Mapping[int, float]) -> dict[int, float]:
    """The shares of these devices, summing to 1, with which all of them end at the same time.

    Each takes ``fixed_s + share * whole_s``. The share of one whose fixed part alone takes longer is not above 0: the
    others are faster without it.
    """
    inverse = sum(1 / whole_s[rank] for rank in fixed_s)
    end_s = (1 + sum(fixed_s[rank] / whole_s[rank] for rank in fixed_s)) / inverse
    return {rank: (end_s - fixed_s[rank]) / whole_s[rank] for rank in fixed_s}


def _whole_s(graph: Graph, cluster: Cluster, batch: int, rank: int) -> float:
    """S in which a device would get the whole picture, compute all units that are split, and send the last map."""
    count = split_units(graph)
    device = cluster.devices[rank]
    units = [unit for unit in graph.body[:count] if not unit.opaque]
    seconds = sum(unit_seconds(device, unit, Box.whole(unit.out_shape), batch) for unit in units)
    last = graph.shape_of(count - 1)
    for source, target, shape in ((ROOT, rank, graph.input_shape), (rank, ROOT, last)):
        seconds += moving_s(cluster, source, target, FLOAT_BYTES * batch * Box.whole(shape).size)
    return max(seconds, 1e-12)


def _halos_s(cluster: Cluster, halos: Sequence[float], kept: Sequence[int], rank: int) -> float:
    """S that a device waits for halos, B each, from its neighbours among those kept, and for messages to begin."""
    place = kept.index(rank)
    neighbours = [kept[other] for other in (place - 1, place + 1) if 0 <= other < len(kept)]
    seconds = sum(moving_s(cluster, other, rank, size / 2) for size in halos if size for other in neighbours)
    if rank != ROOT:
        seconds += moving_s(cluster, ROOT, rank, 0) + moving_s(cluster, rank, ROOT, 0)
    return seconds


def _halo_elements(unit: Unit) -> float:
    """Elements per picture that a band in the midst of the map needs from above and below it; 0 of the picture."""
    if needs_all(unit) or unit.inputs[0] == PICTURE:
        return 0.0
    channels, rows, columns = unit.out_shape
    middle = Span(rows // 2, rows // 2 + 1)
    need = unit_needs(unit, Box(Span(0, channels), middle, Span(0, columns)))[0]
    beside = max(len(need.rows) - unit.in_shapes[0][1] / rows, 0.0)
    return beside * len(need.channels) * len(need.columns)


def moving_s(cluster: Cluster, source: int, target: int, size_bytes: float) -> float:
    """S that a message takes between two devices; through memory where they have one host."""
    if source == target:
        return 0.0
    giver = cluster.devices[source]
    if giver.host == cluster.devices[target].host:
        return size_bytes / giver.weight_bytes_per_s
    return cluster.link(source, target).seconds(size_bytes)


def _bands(graph: Graph, shares: Sequence[float]) -> tuple[list[str], Boxes]:
    names, boxes = boxes_of("wpm", graph, shares)
    for index in range(split_units(graph), len(graph.body)):
        whole = Box.whole(graph.units[index].out_shape)
        boxes[index] = [whole if rank == ROOT else Box() for rank in range(len(shares))]
        names[index] = ROOT_ALONE
    return names, boxes


def _neighbours_suffice(graph: Graph, boxes: Boxes, kept: Sequence[int]) -> bool:
    """Whether every band finds the rows that it needs in its own device's and in those of the two beside it."""
    for index in range(split_units(graph)):
        unit = graph.units[index]
        if needs_all(unit):
            continue
        for source in set(unit.inputs):
            if source == PICTURE or graph.units[source].opaque or graph.shape_of(source)[1] == 1:
                continue
            for place, rank in enumerate(kept):
                there = hull(boxes[source][other] for other in kept[max(place - 1, 0) : place + 2])
                needs = needs_of(unit, boxes[index][rank], source)
                if not all(need.rows in there.rows for need in needs):
                    return False
    return True
