"""A network on a team, and on those who are left whenever ranks of it are lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mpiconv.job.control import allgather_json, bcast_json
from mpiconv.partition.schemes import ROOT
from mpiconv.partition.turns import AnyPlan, any_plan_of
from mpiconv.runtime.builder import Built
from mpiconv.runtime.engine import Act, Engine
from mpiconv.runtime.faults import injected
from mpiconv.runtime.feed import OpenStream
from mpiconv.runtime.health import Health
from mpiconv.runtime.orders import Kind, Orders
from mpiconv.runtime.preparing import Prepared
from mpiconv.runtime.recording import Recorder
from mpiconv.runtime.recovery import Loss, Recovery
from mpiconv.runtime.reports import Reports
from mpiconv.runtime.verifying import Verdict, verify

T = TypeVar("T")


class Crew:
    """A network that runs split over ranks, and on those who are left where some are lost; what all it does stands on.

    Attributes
    ----------
    team, settings
        The ranks that it runs on, and how; ``wait`` is what ``auto`` came to.
    plan, weight_bytes
        The plan that it runs, and the B of weights that this rank computes with; the root's are views of the model.
    sharing, overlapped
        Whether this rank exchanges maps with others of its host through memory that they share, and the units whose
        output is sent piece by piece while the rest is computed.
    no_meter, reports
        Why this rank's host has no power meter, empty if it has or another rank does it; what the last frames took.
    tracing_s
        s that the root took to trace the model and to compare what was traced with it.
    weights_received_bytes, weights_stored_bytes
        B of weights that came to each rank in messages since the start, and that each read from its own disk instead.
    """

    def __init__(self, recovery: Recovery, made: Prepared) -> None:
        self._recovery, self._open = recovery, OpenStream()
        self.tracing_s, self._verified = made.tracing_s, 0
        self._start(made, None)

    def _start(self, made: Prepared, before: Engine | None) -> None:
        """Run what was prepared, whoever is lost meanwhile. Collective over those who are left."""
        while True:
            try:
                return self._begin(made, before)
            except BaseException as error:  # noqa: PERF203 - once a loss
                made = self._recovery.after(error, made.team, made.settings)

    def _begin(self, made: Prepared, before: Engine | None) -> None:
        """Run what was prepared, and again the frames that the engine before has not answered. Collective."""
        self.team, self.settings, self._builder, built = made.team, made.settings, made.builder, made.built
        self._recorder = Recorder(self.team, built)
        faults = map(injected, self.settings.inject)
        self._recorder.faults = [each for each in faults if each.rank == self.team.rank]
        self.no_meter = self._recorder.no_meter
        self.reports = Reports(self.team, self._recorder, orders := Orders(self.team))
        acts: dict[Kind, Act] = {
            Kind.ADOPT: self._adopt,
            Kind.REPORT: self.reports.send,
            Kind.VERIFY: self._verify,
        }
        self._engine = Engine(orders, self._recorder, self.settings.wait, acts)
        self._health = Health(self.team)
        self._take(built)
        self._recorder.reset()
        if before is not None:
            self._engine.redo(before)
        if self.team.watch.lifeline is not None:
            self.team.watch.lifeline.settled = True

    def _take(self, built: Built) -> None:
        """Make a plan that was built the one that runs. Collective."""
        self._engine.adopt(built.slots, asleep=built.lends)
        self._built, self.plan, self.weight_bytes = built, built.plan, built.weight_bytes
        self.overlapped, self.sharing = built.overlapped, built.sharing
        self._health.progress.want(built.messages and (bool(built.overlapped) or self.settings.in_flight > 1))
        weights = self._builder.weights
        moved = allgather_json(self.team, [weights.received_bytes, weights.stored_bytes])
        self.weights_received_bytes, self.weights_stored_bytes = (tuple(each) for each in zip(*moved, strict=True))

    @property
    def losses(self) -> list[Loss]:
        """The ranks that were lost so far, and what it took to go on without them."""
        return self._recovery.losses

    def _together(self, act: Callable[[], T]) -> T:
        """Do something with the other ranks; again, with those who are left, where some are lost meanwhile."""
        while True:
            try:
                with self._health.together():
                    return act()
            except BaseException as error:  # noqa: PERF203 - once a loss
                self._recover(error)

    def _recover(self, error: BaseException) -> None:
        """Go on with those who are left if an error is for the loss of ranks; else raise it again."""
        before = self._recorder
        self._start(self._recovery.after(error, self.team, self.settings), self._engine)
        before.close()
        self._recorder.begun = before.begun

    def _adopt(self, plan: AnyPlan | None = None) -> int:
        """Switch to rank 0's plan; no frame is under way. Returns the B of weights that travelled. Collective."""
        found = bcast_json(self.team, None if plan is None else plan.to_dict(), what="another plan")
        before = sum(self.weights_received_bytes)
        self._built.close()
        built = self._builder.build(any_plan_of(found) if plan is None else plan)
        self._recorder.adopt(built)
        self._take(built)
        self._recovery.adopted(built.plan)
        self._recorder.reset()
        return int(sum(self.weights_received_bytes) - before)

    def _verify(self) -> Verdict | None:
        """Check what one rank computes of one unit; no frame is under way. Collective."""
        self._verified += 1
        return verify(self.team, self._builder, self._built, self._engine.waiting, self._verified)

    @property
    def _is_root(self) -> bool:
        return self.team.rank == ROOT
