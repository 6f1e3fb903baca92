"""Plans to choose from for a network on a cluster: all on one device, and every scheme by equal shares and by speed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mpiconv.graph.form import Graph
from mpiconv.graph.grouping import grouped
from mpiconv.partition.exchange import Exchange
from mpiconv.partition.making import make_plan
from mpiconv.partition.plan import Plan, at_work
from mpiconv.partition.schedule import Schedule, schedule, worth_overlapping
from mpiconv.partition.schemes import NO_SPLIT, ROOT, SCHEMES
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.search import Search
from mpiconv.planner.simulation import Timeline, simulate
from mpiconv.planner.ways import alone, first_of_each, speed, teams

MEMORY_PART = 0.5
"""The part of a device's memory that weights may take; what else a process needs lies in the rest."""

WEIGHTS = (1.0, 0.5)
"""What a second of sending counts in the search: some of it is hidden behind computing, which it does not look at."""


@dataclass(frozen=True)
class Candidate:
    """A plan with what it is called, and how a frame goes by it as simulated."""

    name: str
    plan: Plan
    timeline: Timeline

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


def candidates(graph: Graph, cluster: Cluster, batch: int = 1, *, search: bool = True) -> list[Candidate]:
    """All plans to choose from, the fastest by the simulation first; those are left out whose weights find no room.

    Parameters
    ----------
    graph
        The network, in any grouping.
    cluster
        Its device 0 has the pictures and gets the answers.
    batch
        N, the number of pictures that travel together.
    search
        Whether those are among them that a search finds, which takes longest.
    """
    found, seen = [], set()
    for name, plan in (
        *undivided(graph, cluster, batch),
        *named(graph, cluster, batch),
        *(searched(graph, cluster, batch) if search else ()),
    ):
        made = (tuple(plan.graph.unit_names), plan.boxes)
        candidate = Candidate(name, plan, estimate(plan, cluster))
        alike = name.startswith("all on") or len(at_work(plan)) > 1
        if made not in seen and alike and _fits(candidate, cluster):
            found.append(candidate)
        seen.add(made)
    found.sort(key=lambda candidate: candidate.latency_s)
    return [_told_apart(candidate, found[:number]) for number, candidate in enumerate(found)]


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
                schemes = [name for name in dict.fromkeys(plan.schemes) if name in SCHEMES]
                yield f"unit by unit: {', '.join(schemes)}", plan


def estimate(plan: Plan, cluster: Cluster) -> Timeline:
    """How a frame goes by a plan on a cluster, as ``distribute`` would run it there."""
    return simulate(scheduled(plan, cluster), cluster)


def scheduled(plan: Plan, cluster: Cluster) -> Schedule:
    """What a plan comes to on a cluster's hosts and links."""
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


def _fits(candidate: Candidate, cluster: Cluster) -> bool:
    """Whether every device has room for its weights, as far as its memory is known."""
    pairs = zip(candidate.weight_bytes, cluster.devices, strict=True)
    return all(not device.memory_bytes or held <= MEMORY_PART * device.memory_bytes for held, device in pairs)
