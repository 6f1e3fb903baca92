"""Pictures per second of a plan with several batches in flight, and how many of them that takes. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpiconv.partition.plan import Plan
from mpiconv.partition.schedule import Schedule
from mpiconv.partition.schemes import ROOT
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.simulation import Timeline, simulate_stream

DEPTHS = (1, 2, 3, 4, 6, 8)
"""Batches in flight that are tried where nothing says how many there are."""

ENOUGH = 0.98
"""More batches in flight are not worth it for less than the rest."""

COUNTED = 16
"""Frames that are counted, after those that fill the ranks and before those that leave them empty."""


@dataclass(frozen=True)
class Flow:
    """Simulated pictures/s, and the number of batches in flight that they are for."""

    pictures_per_s: float
    in_flight: int


def flow(schedule: Schedule, cluster: Cluster, in_flight: int | None = None, most: int = DEPTHS[-1]) -> Flow:
    """Pictures/s of a plan with ``in_flight`` batches; None: with the fewest that reach 98 % of what more would.

    ``most`` batches are tried at most. ``cluster`` has the devices as fast as the plan's threads make them.
    """
    frame = simulate_stream(schedule, cluster, 1, 1)[0]
    bound = pictures_per_s_at_most(schedule.plan, Timeline(frame), cluster)
    if in_flight is not None:
        return Flow(min(_pictures_per_s(schedule, cluster, in_flight), bound), in_flight)
    found: list[Flow] = []
    for depth in (each for each in DEPTHS if each <= most or each == 1):
        found.append(Flow(min(_pictures_per_s(schedule, cluster, depth), bound), depth))
        if found[-1].pictures_per_s >= ENOUGH * bound:
            break
    best = max(each.pictures_per_s for each in found)
    return next(each for each in found if each.pictures_per_s >= ENOUGH * best)


def _pictures_per_s(schedule: Schedule, cluster: Cluster, in_flight: int) -> float:
    """Pictures over the time between their answers, as simulated."""
    filling = 2 * in_flight + 1
    stamps_s = simulate_stream(schedule, cluster, in_flight, filling + COUNTED + in_flight)
    answered_s = np.maximum.accumulate(stamps_s[:, ROOT, -1, 2])[filling - 1 :]
    return schedule.plan.batch * COUNTED / float(answered_s[COUNTED] - answered_s[0])


def pictures_per_s_at_most(plan: Plan, timeline: Timeline, cluster: Cluster) -> float:
    """Pictures/s that a plan cannot exceed: what is busy longest, a device or a link, is always busy.

    ``timeline`` is of one frame by itself.
    """
    busy_s = max(float(timeline.compute_s.max()), _sending_s(plan, cluster))
    return plan.batch / min(busy_s, timeline.latency_s)


def _sending_s(plan: Plan, cluster: Cluster) -> float:
    """S per batch in which the busiest end of a link carries messages, or the medium where all share one."""
    hosts = [device.host for device in cluster.devices]
    out, into = [0.0] * plan.ranks, [0.0] * plan.ranks
    for number, spread in plan.exchanges.items():
        once = spread.pattern == "bcast" or cluster.medium == "multicast"  # the source does not send to all of them
        each = plan.payloads[number].each
        payload = np.bincount(spread.table[:, 0] * plan.ranks + spread.table[:, 1], each, plan.ranks**2)
        for code in np.flatnonzero(payload).tolist():
            source, target = divmod(code, plan.ranks)
            if hosts[source] != hosts[target]:
                seconds = float(payload[code]) / cluster.link(source, target).beta_bytes_per_s
                out[source] += 0.0 if once else seconds
                into[target] += seconds
    return sum(into) if cluster.medium == "shared" else max(*out, *into)
