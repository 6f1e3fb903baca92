"""The energy above idle that a frame takes on every device, from what the device draws and what it does when. Pure."""

from __future__ import annotations

from mpiconv.partition.plan import Plan
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.simulation import Timeline


def joules(plan: Plan, timeline: Timeline, cluster: Cluster) -> list[float] | None:
    """J above idle per frame and device, as estimated; None where it is not known of every device what it draws.

    A device draws more than its idle power while it computes or waits for others, and more for as long as its bytes
    take on the link: E_c = P_c T_c and E_t = p T_t ([KPM22]), with what the device draws while it waits besides. One
    that has no part in the plan draws nothing.
    """
    if unknown_power(cluster):
        return None
    units, latency_s = range(len(plan.graph.units)), timeline.latency_s
    found = []
    for rank, (device, busy_s) in enumerate(zip(cluster.devices, timeline.compute_s.tolist(), strict=True)):
        power = device.power_w
        sent, received = (sum(each(unit, rank) for unit in units) for each in (plan.bytes_sent, plan.bytes_received))
        waits_s = max(latency_s - busy_s, 0.0) if rank == 0 or busy_s or sent or received else 0.0
        found.append(
            power["computing"] * busy_s
            + power["waiting"] * waits_s
            + power["transferring"] * (sent + received) / link_rate(cluster, rank)
        )
    return found


def unknown_power(cluster: Cluster) -> str:
    """The host of the first device of which it is not known what it draws; empty where all are known."""
    return next((device.host for device in cluster.devices if not device.power_w), "")


def link_rate(cluster: Cluster, rank: int) -> float:
    """B/s of a device's slowest link; infinite without one."""
    own = (link.beta_bytes_per_s for link in cluster.links if rank in (link.source, link.target))
    return min(own, default=float("inf"))
