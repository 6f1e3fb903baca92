"""What the best plan is best in: latency, its 90th percentile, throughput or energy. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mpiconv.errors import UsageError
from mpiconv.planner.energy import unknown_power
from mpiconv.words import seconds

if TYPE_CHECKING:
    from mpiconv.planner.candidates import Candidate
    from mpiconv.planner.cluster import Cluster


@dataclass(frozen=True)
class Objective:
    """What plans are ordered by; of all its values the smaller one is better.

    Attributes
    ----------
    name, unit
        What the option calls it, and the unit of its values.
    value
        The estimate for a batch by a plan on a cluster.
    measured
        The same from the s between the answers of some batches; None where times do not say it.
    said
        Puts a value into words; its second argument is the batch.
    gain
        What follows ``3 x`` where a plan is three times better than another.
    """

    name: str
    unit: str
    value: Callable[[Candidate, Cluster], float]
    measured: Callable[[Sequence[float]], float] | None
    said: Callable[[float, int], str]
    gain: str

    @property
    def streams(self) -> bool:
        """Whether it is about several batches in flight."""
        return self.name == "throughput"


def _latency_s(candidate: Candidate, _: Cluster) -> float:
    return candidate.latency_s


def _interval_s(candidate: Candidate, cluster: Cluster) -> float:
    return candidate.plan.batch / candidate.pictures_per_s(cluster)


def _joules(candidate: Candidate, cluster: Cluster) -> float:
    found = candidate.joules(cluster)
    if found is None:
        raise UsageError(
            f"energy is estimated from what devices draw, and which is not known of {unknown_power(cluster)}: give "
            "it as power_w in a cluster file (docs/cluster.md)"
        )
    return sum(found)


def _each(batch: int) -> str:
    return "picture" if batch == 1 else "batch"


def _timed(value: float, batch: int) -> str:
    return f"{seconds(value)} a {_each(batch)}"


OBJECTIVES = {
    each.name: each
    for each in (
        Objective("latency", "s", _latency_s, lambda times: float(np.median(times)), _timed, "faster than"),
        Objective("p90", "s", _latency_s, lambda times: float(np.percentile(times, 90)), _timed, "faster than"),
        Objective(
            "throughput",
            "s",
            _interval_s,
            lambda times: float(np.mean(times)),
            lambda value, batch: f"{batch / value:.3g} pictures/s",
            "as many as",
        ),
        Objective("energy", "J", _joules, None, lambda value, batch: f"{value / batch:.3g} J a picture", "less than"),
    )
}
"""The objectives by name. Nothing is known of scatter before a run: p90 is estimated as the latency."""

LATENCY = OBJECTIVES["latency"]
