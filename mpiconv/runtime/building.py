"""A network made ready to run split: every rank gets the plan, its weights, and what it computes and exchanges."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mpi4py import MPI
from torch import nn

from mpiconv.errors import UsageError
from mpiconv.graph.tracers import unwrapped
from mpiconv.job.team import Team
from mpiconv.partition import Plan
from mpiconv.partition.turns import AnyPlan, in_turn
from mpiconv.runtime.builder import Model
from mpiconv.runtime.heap import settle_heap
from mpiconv.runtime.net import DistributedNet
from mpiconv.runtime.recovery import Recovery, Replan
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
    replan: Replan | None = None,
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
    replan
        On rank 0: makes the plan for the ranks that are left where some are lost, of the plan that ran and their
        numbers in it. That happens under ``mpirun --with-ft ulfm`` alone; else the loss of a rank ends the job. None:
        ``mpiconv.partition.leaving.plan_for_left``.

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
    settings = settings or Settings()
    settle_heap()
    recovery = Recovery(replan)
    try:
        ready = partial(_ready, model, plan, team.size, selfcheck=settings.selfcheck)
        return DistributedNet(recovery, recovery.begin(team, ready, settings, progress))
    except BaseException as error:
        team.watch.failed(error)
        if getattr(error, "everywhere", False):
            team.close()
        raise


def join(team: Team, settings: Settings) -> DistributedNet:
    """Join in with a network that the others run already, on those who are left. On a rank that was not ready yet."""
    recovery = Recovery()
    return DistributedNet(recovery, recovery.begin(team, partial(_ready, None, None, team.size), settings, None))


def _ready(
    model: nn.Module | None, given: AnyPlan | Sequence[Plan] | None, ranks: int, *, selfcheck: bool = True
) -> tuple[AnyPlan, Model]:
    """The plan for the network as it was traced, and what rank 0 knows of it."""
    if model is None or given is None:
        raise UsageError("rank 0 has to pass the model and the plan")
    plan = in_turn(given)
    if plan.ranks != ranks:
        raise UsageError(f"the plan is for {counted(plan.ranks, 'rank')} and {ranks} are running")
    traced, fitting = traced_for(model, plan, check=selfcheck)
    check_state(fitting.graph, traced.tensors)
    own = unwrapped(model, traced.layers.model).state_dict()
    return fitting, Model(traced.modules, traced.tensors, sorted(set(traced.tensors) - set(own)))
