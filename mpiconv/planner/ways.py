"""Ways to split every unit of a network, between which a search chooses from cut point to cut point. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mpiconv.graph.form import PICTURE, Graph
from mpiconv.partition.box import Box
from mpiconv.partition.making import on_rank
from mpiconv.partition.schemes import FUSES, MIXED, ROOT, Boxes, boxes_of
from mpiconv.planner.cluster import Cluster, kinds_of
from mpiconv.planner.speed import unit_seconds

FEW = 6
"""Up to this number of devices every number of them is tried, of more the powers of two."""

MANY, OF_MANY = 48, ("kpm", "wpm")
"""Of more devices than this fewer plans are compared: no baselines, no other weights, and only these schemes and, where
shares are equal, grids."""

EQUAL = 1.05
"""Devices whose speeds differ by less than this factor get equal shares."""


@dataclass(frozen=True)
class Way:
    """One way to split the whole network.

    ``names[u]`` and ``boxes[u][r]`` are for the units of the graph's body as in a plan; ``ranks`` are those that
    compute; ``fuses``: what comes before a unit may be computed twice at the borders, so that nothing is exchanged;
    ``scheme``: what splits it, none where one rank computes all.
    """

    names: tuple[str, ...]
    boxes: Boxes
    ranks: tuple[int, ...]
    fuses: bool = False
    scheme: str = ""


def blocks(graph: Graph) -> list[range]:
    """The body's units from cut point to cut point: behind each block only its last map is read."""
    body, found, start = graph.body, [], 0
    last_reader = [max(graph.consumers(source), default=PICTURE) for source in range(PICTURE, len(body))]
    alive = PICTURE
    for index in range(len(body)):
        alive = max(alive, last_reader[index])  # of all maps before this one
        if alive <= index or index == len(body) - 1:
            found.append(range(start, index + 1))
            start = index + 1
    return found


def ways(graph: Graph, cluster: Cluster, batch: int = 1) -> list[Way]:
    """All on each device, and every scheme that can be mixed over more and more of the fastest devices, by speed."""
    speeds, count = speeds_of(graph, cluster, batch), len(cluster.devices)
    found = [alone(graph, rank, count) for rank in first_of_each(cluster)]
    for ranks in teams(speeds):
        found += over(graph, [speeds[rank] if rank in ranks else 0.0 for rank in range(count)])
    return found


def over(graph: Graph, shares: Sequence[float]) -> list[Way]:
    """Every scheme that can be mixed, by these shares of the ranks; of those that cut alike the first alone."""
    ranks, found = tuple(rank for rank, share in enumerate(shares) if share), list[Way]()
    for scheme in _worthwhile(graph, shares):
        way = among(graph, scheme, [shares[rank] for rank in ranks], ranks, len(shares))
        if all(way.boxes != other.boxes for other in found):
            found.append(way)
    return found


def _worthwhile(graph: Graph, shares: Sequence[float]) -> Iterator[str]:
    """The schemes that may be best by these shares: columns are longer borders than rows unless a picture is wide."""
    _, rows, columns = graph.input_shape
    equal = len(set(shares) - {0.0}) == 1
    for scheme in MIXED:
        if len(shares) > MANY and scheme not in OF_MANY and not (scheme == "grid" and equal):
            continue
        if scheme != "columns" or columns > rows:
            yield scheme


def among(graph: Graph, scheme: str, shares: Sequence[float], ranks: tuple[int, ...], count: int) -> Way:
    """A scheme over some of ``count`` ranks, with a share for each of them; what is opaque stays on the root."""
    names, parts = boxes_of(scheme, graph, shares)
    boxes: Boxes = []
    for unit, row in zip(graph.body, parts, strict=True):
        boxes.append([Box()] * count)
        for rank, box in zip((ROOT,) if unit.opaque else ranks, row, strict=False):
            boxes[-1][rank] = box
    return Way(tuple(names), boxes, ranks, scheme in FUSES, scheme)


def alone(graph: Graph, rank: int, count: int) -> Way:
    """One of ``count`` ranks computes all but the opaque units, which stay on the root."""
    plan = on_rank(graph, rank, count, batch=1)
    return Way(plan.schemes, list(map(list, plan.boxes)), (rank,))


def first_of_each(cluster: Cluster) -> list[int]:
    """The root, and the first device of every kind behind it."""
    return [ROOT, *sorted({rank + 1 for rank in kinds_of(cluster.devices[1:])})]


def speeds_of(graph: Graph, cluster: Cluster, batch: int = 1) -> list[float]:
    """How many pictures a s each device would compute by itself, the parts that only the root can compute apart.

    Devices as fast as each other but for 5 % count as equal.
    """
    seconds: dict[int, float] = {}
    for kind in kinds_of(cluster.devices):
        if kind not in seconds:
            device = cluster.devices[kind]
            whole = [unit_seconds(device, unit, Box.whole(unit.out_shape), batch) for unit in graph.body]
            seconds[kind] = sum(each for each, unit in zip(whole, graph.body, strict=True) if not unit.opaque) or 1.0
    found = [1 / seconds[kind] for kind in kinds_of(cluster.devices)]
    return [max(found)] * len(found) if max(found) <= EQUAL * min(found) else found


def teams(speeds: Sequence[float]) -> Iterator[tuple[int, ...]]:
    """Two and more of the fastest ranks; the same with the root where it is not one of them."""
    count, seen = len(speeds), set()
    order = sorted(range(count), key=lambda rank: (-speeds[rank], rank))
    sizes = range(2, count + 1) if count <= FEW else sorted({*(2**i for i in range(1, count.bit_length())), count})
    for size in sizes:
        if size > count:
            continue
        for chosen in (order[:size], [ROOT, *(rank for rank in order if rank != ROOT)][:size]):
            ranks = tuple(sorted(chosen))
            if ranks not in seen:
                seen.add(ranks)
                yield ranks
