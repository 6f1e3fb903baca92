"""What a run does about lost ranks: which plan those who are left run, what is said and written of it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mpiconv.cli.memory_limit import asked_limits
from mpiconv.cli.notes import note
from mpiconv.cli.objectives import objective_of
from mpiconv.cli.options import AUTO
from mpiconv.cli.setup import Job
from mpiconv.errors import MpiconvError
from mpiconv.graph.grouping import single_layers
from mpiconv.partition.leaving import plan_for_left
from mpiconv.partition.turns import AnyPlan
from mpiconv.planner.candidates import candidates
from mpiconv.planner.cluster import Cluster
from mpiconv.runtime.recovery import Loss
from mpiconv.words import counted

PLANNED_S = 0.5
"""How long to look for a plan when ranks are lost."""

AHEAD_S, AHEAD = 5.0, 0.05
"""How long to look ahead of it, in all, for the loss of one rank each; no longer than this part of the run."""


class Surviving:
    """The job on those who are left; called for the plan that they run.

    With ``--scheme auto`` that is what the planner finds best for their devices, kept from before where one is lost;
    else what ``plan_for_left`` makes of the plan that ran.

    Attributes
    ----------
    job
        As it is on those who are left.
    """

    def __init__(self, arguments: argparse.Namespace, job: Job) -> None:
        self.arguments, self.job = arguments, job
        self._ahead: dict[str, AnyPlan] = {}

    def __call__(self, plan: AnyPlan, left: Sequence[int]) -> AnyPlan:
        """The plan for the ranks that are left, by their numbers in the one that ran."""
        cluster = self.job.cluster and self.job.cluster.in_order(left)
        found = self._planned(plan, left, cluster)
        self.job = replace(self.job, plan=found, cluster=cluster, trials=(), kept_for=None, baseline="")
        self.arguments.memory_limit = _of(self.arguments.memory_limit, left, plan.ranks)
        return found

    def plan_ahead(self, frames: int) -> None:
        """Look for the plans for the loss of each rank, if the ``frames`` to come are worth it.

        Devices that are alike count once.
        """
        cluster, plan, predicted = self.job.cluster, self.job.plan, self.job.predicted
        spared = self.arguments.spares or self.arguments.resilience
        if cluster is None or predicted is None or not self._chooses or spared or plan.ranks < 3:
            return
        most_s = min(AHEAD_S, AHEAD * frames * predicted.latency_s)
        whole = list(range(plan.ranks))
        ways = {_signature(cluster.in_order(left)): left for left in (whole[:r] + whole[r + 1 :] for r in whole[1:])}
        for signature, left in ways.items():
            found = self._best(plan, cluster.in_order(left), left, most_s / len(ways))
            if found is not None:
                self._ahead[signature] = found

    @property
    def _chooses(self) -> bool:
        return bool(self.arguments.scheme == AUTO)

    def _planned(self, plan: AnyPlan, left: Sequence[int], cluster: Cluster | None) -> AnyPlan:
        if cluster is None or not self._chooses or self.arguments.spares or self.arguments.resilience:
            return plan_for_left(plan, left)
        ahead = self._ahead.get(_signature(cluster))
        return ahead or self._best(plan, cluster, left, PLANNED_S) or plan_for_left(plan, left)

    def _best(self, plan: AnyPlan, cluster: Cluster, left: Sequence[int], most_s: float) -> AnyPlan | None:
        """The best plan for a cluster by the estimate; None where none keeps within the limits."""
        arguments = self.arguments
        try:
            limits = asked_limits(arguments, plan.ranks)
            found = candidates(
                single_layers(plan.graph),
                cluster,
                plan.batch,
                memory_limits=_of(limits, left, plan.ranks),
                objective=objective_of(arguments),
                in_flight=arguments.in_flight,
                most_s=most_s,
                wires=(plan.wire,),
            )
        except MpiconvError:
            return None
        return next((each.runs for each in found if arguments.in_flight >= len(getattr(each.runs, "plans", "1"))), None)


def _of(values: Any, left: Sequence[int], ranks: int) -> Any:
    """What a list with a value per rank says of those who are left; anything else as it is."""
    return [values[rank] for rank in left] if isinstance(values, list | tuple) and len(values) == ranks else values


def options_for(arguments: argparse.Namespace, kept: Sequence[int], ranks: int) -> None:
    """Have the options be for some of the ranks that they were given for."""
    arguments.shares = _of(arguments.shares, kept, ranks)
    arguments.memory_limit = _of(arguments.memory_limit, kept, ranks)
    if len(kept) < ranks and (arguments.plan or arguments.offload is not None):
        note(f"a rank was lost at the start: without {'--plan' if arguments.plan else '--offload'}")
        arguments.plan = arguments.offload = None


def _signature(cluster: Cluster) -> str:
    """What is the same for clusters of devices that are alike, in the same order."""
    return json.dumps(replace(cluster, devices=tuple(replace(each, host="") for each in cluster.devices)).to_dict())


def event_of(loss: Loss, plan: AnyPlan, picture: int, time_s: float) -> dict[str, Any]:
    """A loss as it stands in results, beside what rebalancing does."""
    return {
        "time_s": time_s,
        "picture": picture,
        "kind": "loss",
        "plan": plan.scheme,
        "shares": list(plan.shares),
        "ranks": list(loss.ranks),
        "hosts": list(loss.hosts),
        "noticed": loss.when_s,
        "bytes_moved": loss.bytes_moved,
        "seconds": loss.agree_s + loss.plan_s + loss.weights_s + loss.ready_s,
        "agree_s": loss.agree_s,
        "plan_s": loss.plan_s,
        "weights_s": loss.weights_s,
        "ready_s": loss.ready_s,
    }


def line_of(event: dict[str, Any]) -> str:
    """A loss in a line."""
    gone = zip(event["ranks"], event["hosts"], strict=True)
    names = ", ".join(f"rank {rank} (host {host})" for rank, host in gone) or "nobody"
    parts = ", ".join(f"{name} {1e3 * event[f'{name}_s']:.0f}" for name in ("agree", "plan", "weights", "ready"))
    return (
        f"lost {names} after {counted(event['picture'], 'picture')}: going on with {len(event['shares'])}, now "
        f"{event['plan']}; {event['bytes_moved'] / 1e6:.3g} MB of weights moved; {event['seconds']:.2g} s ({parts} ms)"
    )
