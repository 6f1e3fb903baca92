"""What a run has ready for the loss of ranks: spare ranks, weights in two places, a look at what others compute."""

from __future__ import annotations

import argparse
from dataclasses import replace
from math import inf

from mpiconv.cli.memory_limit import asked_limits
from mpiconv.cli.notes import note
from mpiconv.cli.setup import Job
from mpiconv.errors import UsageError
from mpiconv.job import openmpi
from mpiconv.partition.holdings import extra_bytes, holdings
from mpiconv.partition.leaving import with_backups, with_spares
from mpiconv.partition.plan import plans_of
from mpiconv.partition.schedule import schedule
from mpiconv.partition.turns import each_of
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.limits import limits_for
from mpiconv.planner.memory import peak_bytes
from mpiconv.planner.proposals import names_of
from mpiconv.runtime.settings import Settings
from mpiconv.words import counted


def check_readiness(arguments: argparse.Namespace, ranks: int) -> None:
    """Raise UsageError where there are more spare ranks than ranks; note where nothing comes of them."""
    if arguments.spares >= ranks:
        raise UsageError(f"--spares {arguments.spares}: {counted(ranks, 'rank')} are running, one has to compute")
    wanted = [name for name in ("spares", "resilience") if getattr(arguments, name)]
    if wanted and not openmpi.survives() and not arguments.quiet:
        note(f"--{wanted[0]} is of use under mpirun --with-ft ulfm alone (Open MPI from 5.0 on)")


def with_spare_ranks(job: Job, spares: int, cluster: Cluster | None) -> Job:
    """The job with ``spares`` more ranks at the end, which compute nothing and hold no weights."""
    if not spares:
        return job
    trials = tuple(replace(each, plan=with_spares(each.plan, spares)) for each in job.trials if each.turns is None)
    plan = trials[0].plan if trials else each_of(job.plan, lambda each: with_spares(each, spares))
    return replace(job, plan=plan, trials=trials, cluster=cluster, kept_for=None)


def with_backups_where_there_is_room(arguments: argparse.Namespace, job: Job, settings: Settings) -> Settings:
    """The settings with the ranks that hold more weights than they need now, as far as the memory of each allows."""
    if not arguments.resilience:
        return settings
    plan, cluster = job.plan, job.cluster
    limits = asked_limits(arguments, plan.ranks)
    most = [inf if each is None else each for each in limits] if limits is not None else [inf] * plan.ranks
    if cluster is not None:
        most = list(limits_for(cluster, names_of(cluster), limits).most_bytes)
    needed = peak_bytes([schedule(each, lambda _: "messages") for each in plans_of(plan)], in_flight=settings.in_flight)
    extra = extra_bytes(holdings(plan), with_backups(plan, range(plan.ranks)))
    room = [rank for rank in range(1, plan.ranks) if needed[rank].peak_bytes + extra[rank] <= most[rank]]
    without = sorted(set(range(1, plan.ranks)) - set(room))
    if without and not arguments.quiet:
        note(f"--resilience: {', '.join(f'rank {rank}' for rank in without)} has no memory for more weights")
    return replace(settings, backups=tuple(room))
