"""Plans to consider for a network on a cluster: all on one device, every scheme, what a search finds. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import replace

import numpy as np

from mpiconv.graph.form import Graph
from mpiconv.graph.grouping import grouped
from mpiconv.partition.making import make_plan, on_rank
from mpiconv.partition.plan import FLOAT_BYTES, Plan
from mpiconv.partition.schemes import NO_SPLIT, ROOT, SCHEMES
from mpiconv.planner.baselines import BASELINES
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.estimating import estimate, scheduled
from mpiconv.planner.gathering import apart, joined
from mpiconv.planner.limits import Limits
from mpiconv.planner.memory import peak_bytes
from mpiconv.planner.search import Search
from mpiconv.planner.simulation import Timeline
from mpiconv.planner.ways import MANY, OF_MANY, alone, first_of_each, over, speeds_of, teams

Proposals = Iterator[tuple[str, Plan]]
"""Plans, each with what it is called."""

TILTS = (1.0, 1.0, 0.5, 0.75, 1.35, 1.8, 3.0)
"""By which factors the root's share is changed, once all devices compute as long; the first two make them do so."""

MOST_TILTED = 24
"""Of more devices the root is one of many."""

WEIGHTS = (1.0, 0.5)
"""What a second of sending counts in the search: some of it is hidden behind computing, which it does not look at."""

CROWDED = ("columns", "tiles")
"""Schemes that are left out once more, as the search takes their many messages to be as quick as few large ones."""

UNLIMITED = (1.0, 4.0, 16.0)
"""Where shares go by memory: the share of a device without a limit, over that of the device with the largest."""

FIRST_PRICE, DEARER = 0.1, 16
"""What all weights on a device count at first where they do not fit, as a part of a frame's time; and how often that is
doubled at most."""


def undivided(graph: Graph, cluster: Cluster, batch: int) -> Proposals:
    """All on one device of each kind, or all but the fully connected layers."""
    count, names = len(cluster.devices), names_of(cluster)
    for rank in first_of_each(cluster):
        for head in ("split", "root") if rank != ROOT else ("root",):
            units = grouped(graph, "pool", head)
            plan = on_rank(units, rank, count, batch)
            whole = rank == ROOT or head == "split"
            yield f"all on {names[rank]}" if whole else f"body on {names[rank]}, head on {names[ROOT]}", plan
            threads = lent(cluster, rank)
            beside = rank != ROOT and cluster.devices[rank].host == cluster.devices[ROOT].host
            if whole and not beside and threads > cluster.devices[rank].threads:
                each = tuple(threads if r == rank else d.threads for r, d in enumerate(cluster.devices))
                yield f"all on {names[rank]} with {threads} threads", replace(plan, threads=each)


def lent(cluster: Cluster, rank: int) -> int:
    """Threads that a rank has if the other ranks of its host lend it their cores; its own where it is emulated.

    A rank that may use more cores than it has threads is bound to none, so that these are all that the host has.
    """
    device = cluster.devices[rank]
    together = [other for other in cluster.devices if other.host == device.host]
    if device.pace > 1:
        return device.threads
    cores = device.cores if device.cores > device.threads else sum(other.cores for other in together)
    return max(min(sum(other.threads for other in together), cores), device.threads)


def named(graph: Graph, cluster: Cluster, batch: int) -> Proposals:
    """Every scheme by speed, with every place for the head; of more than ``MANY`` devices rows and kernels alone."""
    count, names = len(cluster.devices), names_of(cluster)
    if count == 1:
        return
    shares = speeds_of(grouped(graph, "pool", "split"), cluster, batch)
    how = "shares by speed" if max(shares) > min(shares) else "equal shares"
    fastest = max(range(count), key=lambda rank: shares[rank])
    heads: list[tuple[str, str | int]] = [("", "root"), (", head split", "split")]
    heads += [(f", head on {names[fastest]}", fastest)] if fastest != ROOT else []
    for scheme in SCHEMES:
        if scheme in NO_SPLIT or (count > MANY and scheme not in OF_MANY):
            continue
        for words, head in heads:
            plan = make_plan(graph, (batch, *graph.input_shape), scheme, count, shares, "pool", head)
            yield f"{scheme}, {how}{words}", plan


def searched(graph: Graph, cluster: Cluster, batch: int = 1) -> Proposals:
    """What the search finds with the devices of each team alone, and if sending counted less since it overlaps.

    Of more than ``MANY`` devices the latter is left out, and so are units that end before their pooling.
    """
    search = Search(grouped(graph, "pool", "split"), cluster, batch)
    several = list(teams(speeds_of(search.graph, cluster, batch)))
    for ranks in several:
        yield from _found(search, {ROOT, *ranks})
    finer = apart(graph) if len(cluster.devices) <= MANY else None
    if finer is not None and several:
        search = Search(finer, cluster, batch)
        for ranks in several:
            yield from ((name, joined(plan, graph)) for name, plan in _found(search, {ROOT, *ranks}))


def _found(search: Search, ranks: Collection[int] | None = None) -> Proposals:
    """What a search finds on some ranks: by what sending counts, with schemes that have many neighbours and without."""
    many = len(search.cluster.devices) > MANY
    for without in ((), CROWDED) if any(way.scheme in CROWDED for way in search.ways) else ((),):
        for weight in WEIGHTS[:1] if many else WEIGHTS:
            plan = search.plan(ranks, weight=weight, without=without)
            if plan is not None:
                yield _name(plan, search.cluster), plan


def published(graph: Graph, cluster: Cluster, batch: int = 1) -> Proposals:
    """The baselines from the literature, where there are several devices to split over, up to ``MANY``."""
    if 1 < len(cluster.devices) <= MANY:
        yield from ((name, baseline(graph, cluster, batch)) for name, baseline in BASELINES.items())


def levelled(graph: Graph, cluster: Cluster, batch: int, best: Plan) -> Proposals:
    """What the search finds with better shares than those of the best split so far.

    By level shares all devices compute as long as each other; then the root, which need not wait for its part of the
    picture nor send its part of the answer, gets more of them, or less.
    """
    units = grouped(graph, "pool", "split")
    own = [alone(units, rank, len(cluster.devices)) for rank in first_of_each(cluster)]
    shares = level_shares(best, estimate(best, cluster))
    for factor in TILTS if len(cluster.devices) <= MOST_TILTED else TILTS[:1]:
        tilted = [factor * share if rank == ROOT else share for rank, share in enumerate(shares)]
        search = Search(units, cluster, batch, [*own, *over(units, tilted)])
        found = list(_found(search))
        yield from found
        if factor == 1 and found:
            shares = level_shares(found[0][1], estimate(found[0][1], cluster))


def level_shares(plan: Plan, timeline: Timeline) -> list[float]:
    """A share for each rank by the FLOP/s that it reaches in what several ranks compute; 0 for one that has no part."""
    split = [unit for unit, row in enumerate(plan.boxes) if sum(map(bool, row)) > 1]
    busy_s = (timeline.stamps_s[:, split, 2] - timeline.stamps_s[:, split, 1]).sum(axis=1)
    work = [sum(plan.flops(unit, rank) for unit in split) for rank in range(plan.ranks)]
    speeds = [each / seconds if seconds else 0.0 for each, seconds in zip(work, busy_s.tolist(), strict=True)]
    return speeds if any(speeds) else list(plan.shares)


def lighter(graph: Graph, cluster: Cluster, batch: int, limits: Limits) -> Proposals:
    """Plans that need less memory on the devices that have little: kernels by memory, and dearer weights in the search.

    A B of weights counts more and more s on the devices where it does not fit, until the plan that is found does.
    """
    count = len(cluster.devices)
    if count == 1:
        return
    most = max((each for each in limits.most_bytes if each < math.inf), default=1.0) or 1.0
    for times in UNLIMITED:
        shares = [each if each < math.inf else times * most for each in limits.most_bytes]
        for words, head in (("", "root"), (", head split", "split")) if any(shares) else ():
            made = make_plan(graph, (batch, *graph.input_shape), "kpm", count, shares, "pool", head)
            yield f"kpm, shares by memory{words}", made
    search = Search(grouped(graph, "pool", "split"), cluster, batch)
    plan, price = search.plan(), np.zeros(count)
    weights = FLOAT_BYTES * sum(param.size for unit in graph.units for param in unit.params)
    for _ in range(DEARER):
        if plan is None:
            return
        yield _name(plan, cluster), plan
        needed = [each.peak_bytes for each in peak_bytes(scheduled(plan, cluster))]
        over = np.array(needed) > np.array(limits.most_bytes)
        if not over.any():
            return
        least = FIRST_PRICE * estimate(plan, cluster).latency_s / max(weights, 1)
        price[over] = np.maximum(2 * price, least)[over]
        plan = search.plan(price=price)


def _name(plan: Plan, cluster: Cluster) -> str:
    """What a plan that was searched for is called: by the schemes in it, or the devices that take turns."""
    schemes = [name for name in dict.fromkeys(plan.schemes) if name in SCHEMES]
    if schemes:
        return f"unit by unit: {', '.join(schemes)}"
    names = names_of(cluster)
    turns = [names[rank] for rank in dict.fromkeys(rank for row in plan.boxes for rank, box in enumerate(row) if box)]
    return f"all on {turns[0]}" if len(turns) == 1 else f"first on {', then on '.join(turns)}"


def names_of(cluster: Cluster) -> list[str]:
    """A name for every rank: its host's, with its number where several are on that host."""
    hosts = [device.host for device in cluster.devices]
    return [host if hosts.count(host) == 1 else f"{host} (rank {rank})" for rank, host in enumerate(hosts)]
