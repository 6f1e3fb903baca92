"""Plans to choose from for a network on a cluster: all on one device, and every scheme by equal shares and by speed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mpiconv.graph.form import Graph
from mpiconv.partition.exchange import Exchange
from mpiconv.partition.making import make_plan
from mpiconv.partition.plan import Plan
from mpiconv.partition.schedule import schedule, worth_overlapping
from mpiconv.partition.schemes import ROOT, SCHEMES
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.simulation import Timeline, simulate

MEMORY_PART = 0.5
"""The part of a device's memory that weights may take; what else a process needs lies in the rest."""


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

    @property
    def devices(self) -> list[int]:
        """The ranks that compute something."""
        return [rank for rank, seconds in enumerate(self.timeline.compute_s) if seconds > 0]


def candidates(graph: Graph, cluster: Cluster, batch: int = 1) -> list[Candidate]:
    """All plans to choose from, the fastest by the simulation first; those are left out whose weights find no room.

    Parameters
    ----------
    graph
        The network, in any grouping.
    cluster
        Its device 0 has the pictures and gets the answers.
    batch
        N, the number of pictures that travel together.
    """
    shape = (batch, *graph.input_shape)
    found = []
    for name, scheme, shares, head in _named(cluster):
        plan = make_plan(graph, shape, scheme, len(cluster.devices), shares, "pool", head)
        candidate = Candidate(name, plan, estimate(plan, cluster))
        if _fits(candidate, cluster):
            found.append(candidate)
    return sorted(found, key=lambda candidate: candidate.latency_s)


def estimate(plan: Plan, cluster: Cluster) -> Timeline:
    """How a frame goes by a plan on a cluster, as ``distribute`` would run it there."""
    hosts = [device.host for device in cluster.devices]
    slowest = max((1 / link.beta_bytes_per_s for link in cluster.links), default=0.0)

    def medium(spread: Exchange) -> str:
        return "shared" if len({hosts[rank] for rank in spread.members}) <= 1 else "messages"

    def overlap(spread: Exchange) -> bool:
        return medium(spread) == "messages" and worth_overlapping(plan, spread, slowest)

    return simulate(schedule(plan, medium, overlap=overlap), cluster)


def speed_shares(cluster: Cluster) -> list[float]:
    """A share per device by its speed in 3x3 convolutions."""
    return [device.gflop_per_s["conv3x3"] for device in cluster.devices]


def _named(cluster: Cluster) -> Iterator[tuple[str, str, Sequence[float], str | int]]:
    """Name, scheme, shares and head of every candidate."""
    count = len(cluster.devices)
    hosts = [device.host for device in cluster.devices]
    names = [host if hosts.count(host) == 1 else f"{host} (rank {rank})" for rank, host in enumerate(hosts)]
    for rank, name in enumerate(names):
        only = [float(other == rank) for other in range(count)]
        yield f"all on {name}", "kpm", only, "root" if rank == ROOT else rank
        if rank != ROOT:
            yield f"body on {name}, head on {names[ROOT]}", "kpm", only, "root"
    if count == 1:
        return
    shares = speed_shares(cluster)
    uneven = max(shares) > 1.05 * min(shares)
    fastest = max(range(count), key=lambda rank: shares[rank])
    heads: list[tuple[str, str | int]] = [("", "root"), (", head split", "split")]
    heads += [(f", head on {names[fastest]}", fastest)] if fastest != ROOT else []
    for scheme in SCHEMES:
        if scheme == "single":
            continue
        for how, each in (("equal shares", [1.0] * count), ("shares by speed", shares))[: 1 + uneven]:
            for words, head in heads:
                yield f"{scheme}, {how}{words}", scheme, each, head


def _fits(candidate: Candidate, cluster: Cluster) -> bool:
    """Whether every device has room for its weights, as far as its memory is known."""
    pairs = zip(candidate.weight_bytes, cluster.devices, strict=True)
    return all(not device.memory_bytes or held <= MEMORY_PART * device.memory_bytes for held, device in pairs)
