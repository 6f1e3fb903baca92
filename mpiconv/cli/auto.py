"""``--scheme auto`` and the baselines: what the ranks are, which plans are worth a trial on them, what came of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf, isfinite
from typing import Any

from torch import nn

from mpiconv.cli.memory_limit import asked_limits
from mpiconv.cli.notes import note
from mpiconv.cli.objectives import check_objective, objective_of
from mpiconv.cli.options import AUTO
from mpiconv.cli.wire_options import by_tolerance, check_wire_error, wires_of
from mpiconv.errors import UsageError
from mpiconv.graph.form import Graph
from mpiconv.graph.trace import trace
from mpiconv.job.control import bcast_json, on_root
from mpiconv.job.team import Team
from mpiconv.partition.plan import Plan, at_work
from mpiconv.partition.turns import Turns
from mpiconv.planner.baselines import BASELINES
from mpiconv.planner.candidates import Candidate, candidates
from mpiconv.planner.cluster import Cluster, find_hosts
from mpiconv.planner.objective import LATENCY, Objective
from mpiconv.probe.probing import probe
from mpiconv.probe.units import UnitProbe, with_unit_times
from mpiconv.runtime.trials import Trial, fastest, shortlist
from mpiconv.text import align
from mpiconv.words import counted, percent

ROUNDS = 1
"""A quick probe: the trials tell what it misses."""

UNITS_S, UNIT_ROUNDS = 1.0, 3
"""About how long a rank measures units of which no times are kept, and how often each."""

CHOSEN_BY_PLANNER = ("shares", "offload", "gather", "head")
SEARCHED_S = 5.0
"""How long the root looks for plans at most: a Raspberry Pi takes ten times longer than a laptop."""

ENOUGH_REPEATS = 20
"""With fewer the trials would take most of the pictures."""


def wants_auto(arguments: argparse.Namespace, ranks: int) -> bool:
    """Whether the planner is to choose: where that is asked for, or several ranks run and nothing says how to split.

    An objective asks for it too.
    """
    if arguments.plan:
        return False
    said = [name for name in CHOSEN_BY_PLANNER if getattr(arguments, name) is not None]
    asked = ranks > 1 or arguments.objective or arguments.energy_limit
    return bool(arguments.scheme == AUTO or (arguments.scheme is None and asked and not said))


def wants_baseline(arguments: argparse.Namespace) -> bool:
    """Whether the split is to be one as published, which is for the devices and links at hand."""
    return arguments.scheme in BASELINES and not arguments.plan


def find_cluster(
    arguments: argparse.Namespace, team: Team, launched: Sequence[int], pace: float, network: Callable[[], Graph]
) -> Cluster | None:
    """The devices and links of this job: from the file, or measured in a few seconds. Collective.

    Times of the units of ``network``, which the root builds, are measured where none are kept. Where the planner is not
    to choose, now or later (--rebalance), they are read from the file to predict for; None without one. ``launched``
    has the number that mpirun gave to each rank: the devices of a file of other hosts are taken in that order. Raises
    UsageError on every rank for options that do not go together, or a file of another number of devices than ranks.
    """
    chosen = wants_auto(arguments, team.size)
    if chosen:
        arguments.scheme = AUTO
    chosen = chosen or wants_baseline(arguments)
    on_root(team, lambda: _check(arguments) if chosen else _check_named(arguments, team.size))
    wanted = chosen or (arguments.rebalance and team.size > 1)
    if not arguments.cluster:
        if not wanted:
            return None
        graph = on_root(team, network, what="loading the network")
        found, _ = probe(team, ROUNDS, pace, arguments.dilation, wait=arguments.wait)
        if team.size == 1:
            return found
        measured = UnitProbe(arguments.batch or 1, UNITS_S, UNIT_ROUNDS, arguments.compute, pace)
        cluster, notes = with_unit_times(team, found, graph, measured)
        for text in notes if team.rank == 0 and not arguments.quiet else ():
            note(text)
        return cluster

    def load() -> dict[str, Any]:
        cluster = Cluster.load(arguments.cluster)
        if len(cluster.devices) != team.size:
            raise UsageError(
                f"{arguments.cluster} is a cluster of {counted(len(cluster.devices), 'device')} and "
                f"{counted(team.size, 'rank')} are running"
            )
        if cluster.medium == "multicast":
            note(f"{arguments.cluster} has the medium multicast, by which no run sends yet: planned as for a switch")
            cluster = replace(cluster, medium="switch")
        hosts = [team.hosts[launched.index(rank)] for rank in range(team.size)]
        found = find_hosts(cluster.devices, hosts)
        if found is None:
            if not arguments.quiet:
                names = ", ".join(device.host for device in cluster.devices)
                note(
                    f"the devices of {arguments.cluster} ({names}) are not the hosts that run ({', '.join(hosts)}): "
                    "they are taken in the order of mpirun's ranks"
                )
            found = list(range(team.size))
        return cluster.in_order([found[rank] for rank in launched]).to_dict()

    loaded = on_root(team, load)
    return Cluster.from_dict(bcast_json(team, loaded, what="the cluster"))


def _check(arguments: argparse.Namespace) -> None:
    """Raise UsageError for an option that says what the planner or a baseline is to choose."""
    scheme = arguments.scheme
    for name in CHOSEN_BY_PLANNER:
        if getattr(arguments, name) is not None:
            raise UsageError(f"--scheme {scheme} chooses the {name} by itself: leave --{name} out, or name a scheme")
    check_wire_error(
        arguments, chooses=scheme == AUTO, otherwise=f"leave out --scheme {scheme}, or name one with --wire"
    )
    if scheme != AUTO and arguments.plan_by:
        raise UsageError(f"--plan-by is for --scheme {AUTO}: leave it out, --scheme {scheme} has one plan")
    if scheme != AUTO:
        check_objective(arguments)
    if arguments.plan_by == "measure" and objective_of(arguments).measured is None:
        raise UsageError(
            "--objective energy is by the estimate, which --plan-by measure does not time: leave --plan-by out"
        )


def _check_named(arguments: argparse.Namespace, ranks: int) -> None:
    """Raise UsageError for an option that is for the planner where a plan is named."""
    otherwise = "leave out what says how to split, or name a format with --wire"
    check_wire_error(arguments, chooses=ranks == 1, otherwise=otherwise)
    if arguments.plan_by:
        raise UsageError(f"--plan-by is for --scheme {AUTO}: leave it out, or leave out what says how to split")
    check_objective(arguments)


def plans_to_try(
    arguments: argparse.Namespace, model: nn.Module, shape: Sequence[int], cluster: Cluster, repeats: int
) -> list[Candidate]:
    """The plans to try in turn for pictures (N, C, H, W); the run starts with the first, or has one alone.

    Raises MpiconvError where none keeps within the memory of the devices.
    """
    batch, *picture = shape
    asked, objective = asked_limits(arguments, len(cluster.devices)), objective_of(arguments)
    layers = trace(model, picture, batch=batch).layers
    tell = (lambda _: None) if arguments.quiet else note
    enough = repeats >= ENOUGH_REPEATS and objective.measured is not None
    by = arguments.plan_by or ("measure" if enough else "estimate")
    wires = wires_of(arguments, measured=by == "measure")
    if by == "estimate" and arguments.wire_error is not None:
        tell(by_tolerance(arguments, wires))
    found = candidates(
        layers,
        cluster,
        batch,
        memory_limits=asked,
        energy_limit_j=arguments.energy_limit or inf,
        objective=objective,
        in_flight=arguments.in_flight,
        most_s=SEARCHED_S,
        wires=wires,
        tell=tell,
    )
    if arguments.rebalance:  # which watches parts of pictures
        found = [each for each in found if each.turns is None]
    return shortlist(found) if by == "measure" else found[:1]


def as_published(name: str, model: nn.Module, shape: Sequence[int], cluster: Cluster) -> Plan:
    """The plan of a baseline for pictures (N, C, H, W) on these devices and links."""
    batch, *picture = shape
    return BASELINES[name](trace(model, picture, batch=batch).layers, cluster, batch)


def verdict(tried: Sequence[Trial], batch: int, objective: Objective = LATENCY) -> str:
    """What was chosen and what it gains, in a sentence or two, and the trials."""

    def said(value: float) -> str:
        return objective.said(value, batch) if objective.streams else f"{1e3 * value:.3g} ms"

    best, own = fastest(tried), tried[0]
    if best is None:
        return ""
    each = "" if objective.streams else f" a {'picture' if batch == 1 else 'batch'}"
    each += " or less in nine of ten," if objective.name == "p90" else ""
    gain = "" if best is own else f", {own.measured_s / best.measured_s:.2f} x {objective.gain} {own.name}"
    took = f"{said(best.measured_s)}{each} as measured{gain}"
    if len(at_work(best.plan)) == 1:
        splits = [each for each in tried if each.frames and len(at_work(each.plan)) > 1]
        split = min(splits, key=lambda each: each.measured_s, default=None)
        came = "came to" if objective.streams else "took"
        other = f" The fastest split tried, {split.name}, {came} {said(split.measured_s)}." if split else ""
        what = f"auto     do not split: {best.name}, {took}.{other}"
    else:
        how = "do not split" if isinstance(best.plan, Turns) else "split"
        what = f"auto     {how}: {best.name}, {took}."
    rows = [["tried", "measured", "estimated", ""]]
    rows += [
        [
            each.name,
            said(each.measured_s) if each.frames else "-",
            said(each.estimated_s),
            each.why or ("" if each.error is None else f"errs by {percent(each.error)}"),
        ]
        for each in tried
    ]
    return "\n".join([what, *(f"         {line}".rstrip() for line in align(rows))])


def as_list(tried: Sequence[Trial]) -> list[dict[str, Any]]:
    """The trials as plain data."""
    return [
        {
            "name": each.name,
            "estimated_s": each.estimated_s,
            "measured_s": each.measured_s if isfinite(each.measured_s) else None,
            "frames": each.frames,
            "why": each.why,
            "error": each.error if each.error is not None and isfinite(each.error) else None,
        }
        for each in tried
    ]
