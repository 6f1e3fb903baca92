"""How a frame goes by a plan on a cluster: the schedule that it would come to there, simulated. Pure."""

from __future__ import annotations

from dataclasses import replace

from mpiconv.partition.exchange import Exchange
from mpiconv.partition.plan import Plan
from mpiconv.partition.schedule import Schedule, schedule, worth_overlapping
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.simulation import Timeline, simulate

MORE_THREADS = 0.9
"""What every thread more adds to the speed of one."""


def estimate(plan: Plan, cluster: Cluster, *, multicast: bool = False) -> Timeline:
    """How a frame goes by a plan on a cluster, as ``distribute`` runs it there; ``multicast`` as in ``simulate``."""
    return simulate(scheduled(plan, cluster), with_threads(plan, cluster), multicast=multicast)


def with_threads(plan: Plan, cluster: Cluster) -> Cluster:
    """The cluster with devices as fast as they are with the threads that the plan has for them."""
    if not plan.threads:
        return cluster
    pairs = zip(cluster.devices, plan.threads, strict=True)
    devices = [device.faster(1 + MORE_THREADS * (threads / device.threads - 1)) for device, threads in pairs]
    return replace(cluster, devices=tuple(devices))


def scheduled(plan: Plan, cluster: Cluster) -> Schedule:
    """The schedule that a plan would come to on a cluster: memory between ranks of a host, pieces on slow links."""
    hosts = [device.host for device in cluster.devices]
    slowest = max((1 / link.beta_bytes_per_s for link in cluster.links), default=0.0)

    def medium(spread: Exchange) -> str:
        return "shared" if len({hosts[rank] for rank in spread.members}) <= 1 else "messages"

    def overlap(spread: Exchange) -> bool:
        return medium(spread) == "messages" and worth_overlapping(plan, spread, slowest)

    return schedule(plan, medium, overlap=overlap)
