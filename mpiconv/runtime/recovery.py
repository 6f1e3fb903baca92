"""Going on without ranks that are lost: those who are left agree on it, get a plan of their own, and run that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter, time

from mpiconv.errors import UsageError
from mpiconv.job.leaving import without_lost
from mpiconv.job.lifeline import Stage
from mpiconv.job.team import Team
from mpiconv.partition.leaving import plan_for_left
from mpiconv.partition.turns import AnyPlan
from mpiconv.runtime.builder import Builder, Model
from mpiconv.runtime.faults import injected
from mpiconv.runtime.preparing import Prepared, Ready, prepare
from mpiconv.runtime.settings import Settings
from mpiconv.runtime.weights import Progress

Replan = Callable[[AnyPlan, Sequence[int]], AnyPlan]
"""Makes of the plan that ran one for the ranks that are left, given by their numbers in it."""


class Anew(Exception):  # noqa: N818 - no failure
    """Rank 0 is still at the start, and all ranks begin again there with it, as ``team``."""

    def __init__(self, team: Team) -> None:
        super().__init__("rank 0 begins again")
        self.team = team


@dataclass(frozen=True)
class Loss:
    """Ranks that were lost, and what it took to go on.

    Attributes
    ----------
    ranks, hosts
        Their numbers at the start of the job, and where they ran.
    when_s
        When it was noticed, by ``time.time``.
    agree_s, plan_s, weights_s, ready_s
        How long it took to agree on it, to make a plan, to send the weights that were missing, and the rest until
        pictures could be run, in s.
    bytes_moved
        B of weights that travelled.
    """

    ranks: tuple[int, ...]
    hosts: tuple[str, ...]
    when_s: float
    agree_s: float
    plan_s: float
    weights_s: float
    ready_s: float
    bytes_moved: int


class Recovery:
    """Prepares a network on a team, and again on those who are left whenever ranks of it are lost.

    Attributes
    ----------
    replan
        Makes the plans for those who are left.
    losses
        What has happened so far; on rank 0, and on the others since they came to it.
    """

    def __init__(self, replan: Replan | None = None) -> None:
        self.replan: Replan = replan or plan_for_left
        self.losses: list[Loss] = []
        self._builder: Builder | None = None
        self._ready: Ready | None = None
        self._known: tuple[AnyPlan, Model] | None = None
        self._living: tuple[int, ...] = ()

    def begin(self, team: Team, ready: Ready, settings: Settings, progress: Progress | None) -> Prepared:
        """Prepare the network; whoever is lost meanwhile. Collective. Raises Anew where rank 0 has begun again."""
        self._ready, self._living = ready, _living(team)
        try:
            return self._prepared(team, self._first, settings, progress)
        except BaseException as error:
            return self.after(error, team, settings)

    def after(self, error: BaseException, team: Team, settings: Settings) -> Prepared:
        """Prepare the network on those who are left, if an error is for the loss of ranks; else raise it again."""
        while True:
            lifeline, when_s, begin = team.watch.lifeline, time(), perf_counter()
            if lifeline is None or not team.watch.explains(error):
                raise error
            lifeline.kept.append(error)  # what MPI may still write to is held by its traceback
            before = _living(team)
            team, stage = without_lost(team, Stage.NETWORK)
            if stage is Stage.START:
                raise Anew(team)
            agreed, was = perf_counter(), self._moved_bytes
            settings = _fewer(settings, [before.index(rank) for rank in lifeline.living])
            try:
                made = self._prepared(team, partial(self._again, lifeline.living), settings)
            except BaseException as another:
                error = another
                continue
            gone = tuple(sorted(set(before) - set(lifeline.living)))
            weights_s, total_s = made.builder.weights_s, perf_counter() - agreed
            self.losses.append(
                Loss(
                    ranks=gone,
                    hosts=tuple(lifeline.seats[rank].host for rank in gone),
                    when_s=when_s,
                    agree_s=agreed - begin,
                    plan_s=made.tracing_s,
                    weights_s=weights_s,
                    ready_s=total_s - weights_s - made.tracing_s,
                    bytes_moved=self._moved_bytes - was,
                )
            )
            return made

    def adopted(self, plan: AnyPlan) -> None:
        """Note the plan that runs now. On rank 0."""
        if self._known is not None:
            self._known = plan, self._known[1]

    @property
    def _moved_bytes(self) -> int:
        return 0 if self._builder is None else self._builder.weights.moved_bytes

    def _prepared(self, team: Team, ready: Ready, settings: Settings, progress: Progress | None = None) -> Prepared:
        return prepare(team, ready, settings, progress, self._builder, self._made)

    def _made(self, builder: Builder) -> None:
        self._builder = builder

    def _first(self) -> tuple[AnyPlan, Model]:
        if self._ready is None:
            raise UsageError("rank 0 has to pass the model and the plan")
        self._known = self._ready()
        return self._known

    def _again(self, living: tuple[int, ...]) -> tuple[AnyPlan, Model]:
        """The plan for those who are left."""
        plan, model = self._known or self._first()
        plan = self.replan(plan, [self._living.index(rank) for rank in living])
        self._known, self._living = (plan, model), living
        return self._known


def _fewer(settings: Settings, left: Sequence[int]) -> Settings:
    """The settings for some of the ranks, by their numbers before."""
    readers = tuple(left.index(rank) for rank in settings.readers if rank in left)
    happen = (replace(each, rank=left.index(each.rank)) for each in map(injected, settings.inject) if each.rank in left)
    return replace(settings, readers=readers, inject=tuple(map(str, happen)), backups=())


def _living(team: Team) -> tuple[int, ...]:
    return team.watch.lifeline.living if team.watch.lifeline is not None else tuple(range(team.size))
