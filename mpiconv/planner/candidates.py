"""Plans to choose from for a network on a cluster: all on one device, and every scheme by equal shares and by speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mpiconv.errors import MpiconvError
from mpiconv.graph.form import Graph
from mpiconv.graph.grouping import grouped
from mpiconv.partition.exchange import Exchange
from mpiconv.partition.making import make_plan
from mpiconv.partition.plan import FLOAT_BYTES, Plan, at_work
from mpiconv.partition.schedule import Schedule, schedule, worth_overlapping
from mpiconv.partition.schemes import NO_SPLIT, ROOT, SCHEMES
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.limits import Limits, limits_for
from mpiconv.planner.memory import Memory, peak_bytes
from mpiconv.planner.search import Search
from mpiconv.planner.simulation import Timeline, simulate
from mpiconv.planner.ways import alone, first_of_each, speed, teams

WEIGHTS = (1.0, 0.5)
"""What a second of sending counts in the search: some of it is hidden behind computing, which it does not look at."""


UNLIMITED = (1.0, 4.0, 16.0)
"""A device without a limit gets so many times the share of the one with the largest, where shares go by memory."""

FIRST_PRICE, DEARER = 0.1, 16
"""What all weights on a device count at first where they do not fit, as a part of a frame's time; and how often that is
doubled at most."""


@dataclass(frozen=True)
class Candidate:
    """A plan with what it is called, how a frame goes by it as simulated, and what memory each rank needs for it."""

    name: str
    plan: Plan
    timeline: Timeline
    memory: tuple[Memory, ...] = ()

    @property
    def latency_s(self) -> float:
        """Estimated s from a picture to its answer."""
        return self.timeline.latency_s

    @property
    def bytes_moved(self) -> int:
        """B that travel between ranks for a frame, once per receiver."""
        units, ranks = range(len(self.plan.graph.units)), range(self.plan.ranks)
        return sum(self.plan.bytes_received(unit, rank) for unit in units for rank in ranks)

    @property
    def weight_bytes(self) -> list[int]:
        """B of weights that each rank computes with."""
        units = range(len(self.plan.graph.units))
        return [sum(self.plan.weight_bytes(unit, rank) for unit in units) for rank in range(self.plan.ranks)]

    @property
    def most_memory(self) -> tuple[int, int]:
        """Which rank needs the most memory, and how many B at most."""
        needed = [each.peak_bytes for each in self.memory]
        return needed.index(max(needed)), max(needed)


def candidates(
    graph: Graph,
    cluster: Cluster,
    batch: int = 1,
    *,
    memory_limits: Sequence[float | None] | None = None,
    in_flight: int = 1,
    tell: Callable[[str], object] = lambda _: None,
) -> list[Candidate]:
    """All plans to choose from, the fastest by the simulation first; only those for which every device has the memory.

    Parameters
    ----------
    graph
        The network, in any grouping.
    cluster
        Its device 0 has the pictures and gets the answers.
    batch
        N, the number of pictures that travel together.
    memory_limits
        The most B that each rank may take for the network, None for what its device's memory allows.
    in_flight
        How many batches are under way at a time.
    tell
        Called with a sentence where no split keeps within ``memory_limits``, so that one device does all.

    Raises
    ------
    MpiconvError
        No plan keeps within the memory; the device, the limit and the nearest plan are named.
    """
    limits = limits_for(cluster, names_of(cluster), memory_limits)
    found, left_out, seen = list[Candidate](), list[Candidate](), set()

    def sort(pairs: Iterator[tuple[str, Plan]]) -> None:
        for name, plan in pairs:
            made = (tuple(plan.graph.unit_names), plan.boxes)
            if made not in seen and (name.startswith("all on") or len(at_work(plan)) > 1):
                candidate = _candidate(name, plan, cluster, in_flight)
                (found if limits.broken(candidate.memory) is None else left_out).append(candidate)
            seen.add(made)

    for pairs in (undivided, named, searched):
        sort(pairs(graph, cluster, batch))
    if left_out:
        sort(lighter(graph, cluster, batch, limits))
    if not found:
        raise MpiconvError(_refusal(f"no plan for {graph.model}", left_out, limits))
    splits = [each for each in left_out if len(at_work(each.plan)) > 1]
    if memory_limits is not None and splits and not any(len(at_work(each.plan)) > 1 for each in found):
        tell(_refusal(f"no split of {graph.model}", splits, limits))
    found.sort(key=lambda candidate: candidate.latency_s)
    return [_told_apart(candidate, found[:number]) for number, candidate in enumerate(found)]


def _refusal(what: str, left_out: Sequence[Candidate], limits: Limits) -> str:
    """The sentence on plans that all break a limit: which, and by how much at least."""
    nearest = min(left_out, key=lambda each: limits.ratio(each.memory))
    return limits.refusal(what, f"the nearest, {nearest.name},", nearest.memory)


def _candidate(name: str, plan: Plan, cluster: Cluster, in_flight: int) -> Candidate:
    carried = scheduled(plan, cluster)
    return Candidate(name, plan, simulate(carried, cluster), tuple(peak_bytes(carried, in_flight=in_flight)))


def _told_apart(candidate: Candidate, before: Sequence[Candidate]) -> Candidate:
    """The plan with a number in its name where one before it has the same."""
    alike = sum(each.name == candidate.name for each in before)
    return replace(candidate, name=f"{candidate.name} ({alike + 1})") if alike else candidate


def searched(graph: Graph, cluster: Cluster, batch: int = 1) -> Iterator[tuple[str, Plan]]:
    """What the search finds with the devices of each team alone, and if sending counted less since it overlaps."""
    search = Search(grouped(graph, "pool", "split"), cluster, batch)
    for ranks in teams(cluster):
        for weight in WEIGHTS:
            plan = search.plan({ROOT, *ranks}, weight=weight)
            if plan is not None:
                yield _searched_name(plan), plan


def _searched_name(plan: Plan) -> str:
    return f"unit by unit: {', '.join(name for name in dict.fromkeys(plan.schemes) if name in SCHEMES)}"


def lighter(graph: Graph, cluster: Cluster, batch: int, limits: Limits) -> Iterator[tuple[str, Plan]]:
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
        yield _searched_name(plan), plan
        needed = [each.peak_bytes for each in peak_bytes(scheduled(plan, cluster))]
        over = np.array(needed) > np.array(limits.most_bytes)
        if not over.any():
            return
        least = FIRST_PRICE * estimate(plan, cluster).latency_s / max(weights, 1)
        price[over] = np.maximum(2 * price, least)[over]
        plan = search.plan(price=price)


def estimate(plan: Plan, cluster: Cluster) -> Timeline:
    """How a frame goes by a plan on a cluster, as ``distribute`` would run it there."""
    return simulate(scheduled(plan, cluster), cluster)


def scheduled(plan: Plan, cluster: Cluster) -> Schedule:
    """What a plan comes to on a cluster, as ``distribute`` would run it there."""
    hosts = [device.host for device in cluster.devices]
    slowest = max((1 / link.beta_bytes_per_s for link in cluster.links), default=0.0)

    def medium(spread: Exchange) -> str:
        return "shared" if len({hosts[rank] for rank in spread.members}) <= 1 else "messages"

    def overlap(spread: Exchange) -> bool:
        return medium(spread) == "messages" and worth_overlapping(plan, spread, slowest)

    return schedule(plan, medium, overlap=overlap)


def speed_shares(cluster: Cluster) -> list[float]:
    """A share per device by its speed in 3x3 convolutions."""
    return [speed(cluster, rank) for rank in range(len(cluster.devices))]


def undivided(graph: Graph, cluster: Cluster, batch: int) -> Iterator[tuple[str, Plan]]:
    """All on one device of each kind, or all but the fully connected layers."""
    count, names = len(cluster.devices), names_of(cluster)
    for rank in first_of_each(cluster):
        shares = tuple(float(other == rank) for other in range(count))
        for head in ("split", "root") if rank != ROOT else ("root",):
            units = grouped(graph, "pool", head)
            way = alone(units, rank, count)
            plan = Plan(units, way.names, shares, batch, tuple(map(tuple, way.boxes)))
            whole = rank == ROOT or head == "split"
            yield f"all on {names[rank]}" if whole else f"body on {names[rank]}, head on {names[ROOT]}", plan


def named(graph: Graph, cluster: Cluster, batch: int) -> Iterator[tuple[str, Plan]]:
    """Every scheme by equal shares and by speed, with every place for the head."""
    count, names = len(cluster.devices), names_of(cluster)
    if count == 1:
        return
    shares = speed_shares(cluster)
    uneven = max(shares) > 1.05 * min(shares)
    fastest = max(range(count), key=lambda rank: shares[rank])
    heads: list[tuple[str, str | int]] = [("", "root"), (", head split", "split")]
    heads += [(f", head on {names[fastest]}", fastest)] if fastest != ROOT else []
    for scheme in SCHEMES:
        if scheme in NO_SPLIT:
            continue
        for how, each in (("equal shares", [1.0] * count), ("shares by speed", shares))[: 1 + uneven]:
            for words, head in heads:
                plan = make_plan(graph, (batch, *graph.input_shape), scheme, count, each, "pool", head)
                yield f"{scheme}, {how}{words}", plan


def names_of(cluster: Cluster) -> list[str]:
    """A name for every rank: its host's, with its number where several are on that host."""
    hosts = [device.host for device in cluster.devices]
    return [host if hosts.count(host) == 1 else f"{host} (rank {rank})" for rank, host in enumerate(hosts)]
