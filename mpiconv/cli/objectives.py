"""The options ``--objective`` and ``--energy-limit``: what the best plan is best in, and what it may take."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mpiconv.errors import UsageError
from mpiconv.words import seconds

if TYPE_CHECKING:
    from mpiconv.planner.candidates import Candidate
    from mpiconv.planner.cluster import Cluster
    from mpiconv.planner.objective import Objective

NAMES = ("latency", "p90", "throughput", "energy")
"""Those of ``planner.objective``; said here so that --help need not import it."""

IN_FLIGHT = 4
"""Batches under way where most pictures/s are wanted and nobody says how many."""


def add_objective(parser: argparse.ArgumentParser | argparse._ArgumentGroup, usual: str) -> None:
    """What the best plan is best in."""
    parser.add_argument(
        "--objective",
        choices=NAMES,
        help="what the best plan has: the least latency, or the least 90th percentile of it (measured by run; before "
        "that nothing is known of scatter, and it is estimated as the latency), the most pictures/s with several "
        "batches in flight (pipelines are looked for too), or the least energy a picture above idle, of all devices "
        f"together, by the estimate (default: {usual})",
    )


def add_energy_limit(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The most energy that a picture may take."""
    parser.add_argument(
        "--energy-limit",
        type=joules,
        metavar="J",
        help="the most energy above idle that a picture may take on all devices together, in J, as estimated from "
        "power_w in the cluster file (default: any)",
    )


def joules(text: str) -> float:
    """An energy above 0 J. Raises ArgumentTypeError for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no energy in J above 0")
    return value


def objective_of(arguments: argparse.Namespace) -> Objective:
    """The objective that is asked for; without: throughput where several batches are to be in flight, else latency."""
    from mpiconv.planner.objective import OBJECTIVES

    several = (getattr(arguments, "in_flight", None) or 1) > 1
    return OBJECTIVES[arguments.objective or ("throughput" if several else "latency")]


def settle_in_flight(arguments: argparse.Namespace) -> None:
    """Give ``--in-flight`` a value where nobody did: enough for throughput where that is the objective, else 1."""
    if arguments.in_flight is None:
        arguments.in_flight = IN_FLIGHT if arguments.objective == "throughput" else 1


def check_objective(arguments: argparse.Namespace) -> None:
    """Raise UsageError for an option that is for the planner where a plan or scheme is named."""
    for name in ("objective", "energy_limit"):
        if getattr(arguments, name):
            raise UsageError(
                f"--{name.replace('_', '-')} is for --scheme auto: leave it out, or leave out what says how to split"
            )


def flow_cells(candidate: Candidate, cluster: Cluster, *, streams: bool) -> dict[str, str]:
    """The cells of the table on pictures/s: simulated where that was wanted, else what a plan cannot exceed."""
    rate = f"{candidate.pictures_per_s(cluster):.3g}"
    if not streams:
        return {"pictures/s": f"< {rate}"}
    flow = candidate.flow
    return {"pictures/s": rate if flow else f"< {rate}", "in flight": str(flow.in_flight) if flow else "-"}


def pareto_rows(found: Sequence[Candidate], cluster: Cluster, names: Sequence[str]) -> list[dict[str, str]]:
    """The table of the plans that are best in something, a row for each; energy only where it is known."""
    rows = []
    for each in found:
        energy = each.joules(cluster)
        rank, most = each.most_memory
        cells = {"best in something": each.name, "latency": seconds(each.latency_s)}
        cells |= flow_cells(each, cluster, streams=True)
        cells |= {} if energy is None else {"energy J": f"{sum(energy):.3g}"}
        rows.append(cells | {"most memory MB": f"{most / 1e6:.0f} on {names[rank]}"})
    return rows


def as_data(candidate: Candidate, cluster: Cluster) -> dict[str, Any]:
    """Pictures/s and energy of a plan as plain data."""
    return {
        "pictures_per_s": candidate.pictures_per_s(cluster),
        "in_flight": candidate.flow.in_flight if candidate.flow else None,
        "energy_j": candidate.joules(cluster),
    }
