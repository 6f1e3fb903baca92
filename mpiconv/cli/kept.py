"""``--scheme auto`` begins with the plan that was fastest the last time on these devices, and keeps this time's."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from mpiconv.cli.memory_limit import asked_limits
from mpiconv.cli.notes import note
from mpiconv.cli.options import AUTO
from mpiconv.files import user_cache
from mpiconv.job.control import allgather_json
from mpiconv.job.host import cores_here
from mpiconv.partition.plan import Plan
from mpiconv.planner.kept_plans import Circumstances, KeptPlan, load_plan, network_hash, save_plan, with_kept
from mpiconv.probe.units import basis_here
from mpiconv.runtime.trials import Trial, fastest

if TYPE_CHECKING:
    from mpiconv.cli.setup import Job
    from mpiconv.job.team import Team

SETTINGS = ("wire", "in_flight", "same_host", "overlap", "wait")


@dataclass(frozen=True)
class KeptFor:
    """Plans that are kept for one network, devices and settings, on the root."""

    arguments: argparse.Namespace
    found: Circumstances
    tell: bool

    def keep(self, tried: Sequence[Trial], job: Job) -> None:
        """Keep the plan that was fastest as measured, if there is one, for the next run."""
        best = fastest(tried)
        if best is None or job.cluster is None or not isinstance(best.plan, Plan):
            return
        kept = KeptPlan(best.name, best.plan, best.measured_s)
        problem = save_plan(user_cache("wisdom"), self.found, job.cluster, kept)
        if problem and self.tell:
            note(problem)


def devices_here(arguments: argparse.Namespace, team: Team, pace: float) -> list[dict[str, Any]]:
    """What each rank is, as far as a plan's time depends on it and a file can tell. Collective."""
    basis = basis_here(arguments.compute, emulated=pace > 1)
    cores = len(cores_here())
    host = team.hosts[team.rank]
    return allgather_json(team, {"host": host, "cores": cores, "pace": pace / arguments.dilation, **asdict(basis)})


def begin_with_kept(arguments: argparse.Namespace, job: Job, devices: Sequence[Mapping[str, Any]]) -> Job:
    """The job with the plan that was kept for it, if there is one, among those to try. On the root."""
    if arguments.scheme != AUTO or job.cluster is None or not job.trials or job.plan.ranks == 1:
        return job
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    found = Circumstances(network_hash(job.plan.graph), job.plan.batch, devices, settings)
    kept, problem = load_plan(user_cache("wisdom"), found, job.cluster)
    if problem and not arguments.quiet:
        note(problem)
    trials = job.trials
    if kept is not None:
        limits = asked_limits(arguments, job.plan.ranks)
        trials = tuple(with_kept(trials, kept, job.cluster, limits, arguments.in_flight))
    kept_for = KeptFor(arguments, found, not arguments.quiet)
    return replace(job, plan=trials[0].runs, trials=trials, kept_for=kept_for)
