"""A network made ready to run split: every rank gets the plan, its weights, and what it computes and exchanges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from time import perf_counter
from typing import Any

from mpi4py import MPI
from torch import nn

from mpiconv.errors import UsageError
from mpiconv.graph.tracers import unwrapped
from mpiconv.job.control import bcast_json, on_root
from mpiconv.job.team import Team
from mpiconv.job.world import default_timeout_s
from mpiconv.models.weights import is_finite
from mpiconv.partition import Plan
from mpiconv.partition.turns import AnyPlan, any_plan_of, in_turn
from mpiconv.runtime.builder import Builder, Model
from mpiconv.runtime.heap import settle_heap
from mpiconv.runtime.net import DistributedNet
from mpiconv.runtime.selfcheck import traced_for
from mpiconv.runtime.settings import Settings
from mpiconv.runtime.weights import Progress, check_state
from mpiconv.words import counted


def distribute(
    model: nn.Module | None,
    plan: AnyPlan | Sequence[Plan] | None,
    comm: MPI.Intracomm | Team | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> DistributedNet:
    """Send every rank its plan and its slice of the weights, and make ready to run. Collective.

    Parameters
    ----------
    model
        The module that the plan was made for, on rank 0; the others pass None.
    plan
        The plan, on rank 0; the others pass None. Or several, by which batches go in turn (``mpiconv.Turns``).
    comm
        The communicator, or a team of one; it must have as many ranks as the plan. None: this process alone.
    settings
        How to run it: the root's count, of the others only ``pace``. None for the defaults.
    progress
        On rank 0 called again and again while the weights are sent: with the B sent so far, and with all.

    Raises
    ------
    MpiconvError
        On every rank, if the plan is for another number of ranks or another model, a message would be too large, or
        another rank failed.

    Examples
    --------
    >>> comm = MPI.COMM_WORLD  # on every rank
    >>> model = mpiconv.load_model("vgg11") if comm.rank == 0 else None
    >>> plan = mpiconv.make_plan(model, (1, 3, 227, 227), "wpm", comm.size) if comm.rank == 0 else None
    >>> with mpiconv.distribute(model, plan, comm) as net:
    ...     scores = net(torch.rand(1, 3, 227, 227) if comm.rank == 0 else None)
    """
    team = Team.of(MPI.COMM_SELF if comm is None else comm)
    try:
        return _distribute(model, plan, team, settings or Settings(), progress)
    except BaseException as error:
        team.watch.failed(error)
        if getattr(error, "everywhere", False):
            team.close()
        raise


def _distribute(
    model: nn.Module | None,
    given: AnyPlan | Sequence[Plan] | None,
    team: Team,
    settings: Settings,
    progress: Progress | None,
) -> DistributedNet:
    settle_heap()
    begin = perf_counter()

    def check() -> tuple[AnyPlan, Model]:
        if model is None or given is None:
            raise UsageError("rank 0 has to pass the model and the plan")
        plan = in_turn(given)
        if plan.ranks != team.size:
            raise UsageError(f"the plan is for {counted(plan.ranks, 'rank')} and {team.size} are running")
        traced, fitting = traced_for(model, plan, check=settings.selfcheck)
        check_state(fitting.graph, traced.tensors)
        own = unwrapped(model, traced.layers.model).state_dict()
        return fitting, Model(traced.modules, traced.tensors, sorted(set(traced.tensors) - set(own)))

    checked = on_root(team, check, what="preparing the network")
    tracing_s = perf_counter() - begin
    known = checked[1] if checked is not None else Model({}, {})
    if not all(map(is_finite, known.state.values())):
        settings = replace(settings, compute="eager")  # what is compiled makes numbers of NaN
    about: dict[str, Any] | None = None
    if checked is not None:
        about = {"plan": checked[0].to_dict(), "unsaved": known.unsaved, "settings": asdict(settings)}
    about = bcast_json(team, about)
    shared = checked[0] if checked is not None else any_plan_of(about["plan"])
    known = replace(known, unsaved=about["unsaved"])
    settings = _agreed(Settings(**about["settings"]), settings.pace, team)
    params = [param.key for unit in shared.graph.units for param in unit.params]
    builder = Builder(team, settings, known, params)
    on_root(team, lambda: builder.check(shared, shared.batch))
    built = builder.build(shared, progress)
    return DistributedNet(team, settings, builder, built, tracing_s)


def _agreed(settings: Settings, pace: float, team: Team) -> Settings:
    """The root's settings, with what depends on rank and team; the team's waits end as they say. Collective."""
    asked = settings.rank_timeout_s
    team.watch.limit_s = bcast_json(team, default_timeout_s()) if asked is None else asked
    team.watch.idle_limit_s = asked or 0.0
    wait = settings.wait if settings.wait != "auto" else "sleep" if team.crowded else "spin"
    # JSON has lists for tuples
    return replace(settings, pace=pace, wait=wait, readers=tuple(settings.readers), as_slices=tuple(settings.as_slices))
