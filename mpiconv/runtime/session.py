"""A network on a team from its first plan to its end: what its ranks do between frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TypeVar

from mpiconv.errors import UsageError
from mpiconv.job.control import allgather_json, bcast_json
from mpiconv.job.waiting import meet
from mpiconv.measure import Record
from mpiconv.partition import Plan
from mpiconv.partition.making import fitted
from mpiconv.partition.schemes import ROOT
from mpiconv.partition.turns import AnyPlan, any_plan_of, each_of, in_turn
from mpiconv.runtime.builder import Built
from mpiconv.runtime.engine import Act, Engine
from mpiconv.runtime.feed import OpenStream
from mpiconv.runtime.health import Health
from mpiconv.runtime.orders import Kind, Order, Orders
from mpiconv.runtime.preparing import Prepared
from mpiconv.runtime.recording import Recorder
from mpiconv.runtime.recovery import Loss, Recovery
from mpiconv.runtime.reports import Reports

T = TypeVar("T")


class Session:
    """A network that runs split over ranks: which plan it runs, what was measured, whether it can still be used.

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
        self.tracing_s = made.tracing_s
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
        self.no_meter = self._recorder.no_meter
        self.reports = Reports(self.team, self._recorder, orders := Orders(self.team))
        acts: dict[Kind, Act] = {Kind.ADOPT: self._adopt, Kind.REPORT: self.reports.send}
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

    @property
    def record(self) -> Record:
        """What this rank measured since the last ``reset``, its times on its own clock."""
        return self._recorder.record(self.settings.pace)

    def collect(self) -> Record | None:
        """The record of all ranks on rank 0, its times on the root's clock; None on the others. Collective.

        What is measured afterwards is added to it, until a ``reset``.
        """
        self._open.end()

        def act() -> Record | None:
            self._engine.agree(Kind.COLLECT)
            return self._recorder.collect(self.record, self.settings.dilation)

        return self._together(act)

    def reset(self) -> None:
        """Forget what was measured so far (the warm-up, say), compare clocks, start power meters. Collective."""
        self._open.end()

        def act() -> None:
            self._engine.agree(Kind.RESET)
            self._recorder.reset()

        self._together(act)

    def adopt(self, plan: AnyPlan | Sequence[Plan] | None = None) -> int:
        """Run another plan from the next picture on. On rank 0; the other ranks do it in the call that they are in.

        Also in the midst of a ``stream``: the batches under way are finished, their outputs come as before, and the
        stream goes on. Only rows of weights travel that a rank needs and does not have; units of which a rank does what
        it did stay as they are. What was measured is forgotten, as by ``reset``. Where ranks are lost meanwhile those
        who are left run a plan of their own instead.

        Parameters
        ----------
        plan
            For the same network, ranks and batch; or several in turn. On other ranks the call does nothing.

        Returns
        -------
        int
            On rank 0 the B of weights that travelled between ranks, counted; 0 on the others.

        Raises
        ------
        MpiconvError
            On rank 0 for a plan that cannot run here: the one that ran goes on. Or a rank failed meanwhile.

        Examples
        --------
        >>> for number, output in enumerate(net.stream(batches)):
        ...     if number == 10:
        ...         net.adopt(mpiconv.make_plan(model, (1, 3, 224, 224), "kpm", 2, shares=(0.4, 0.6)))
        """
        if not self._is_root:
            return 0
        if plan is None:
            raise UsageError("rank 0 has to pass the plan to adopt")
        fitting = each_of(in_turn(plan), lambda each: fitted(each, self.plan.graph))
        self._builder.check(fitting, self.plan.batch)
        lost = len(self.losses)

        def act() -> int:
            if len(self.losses) > lost:
                return 0
            self._engine.drain()
            self._engine.orders.give(Order(Kind.ADOPT))
            return self._adopt(fitting)

        return self._together(act)

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

    def first_not_finite(self) -> str:
        """The unit and rank of the first output that was not finite, of those guarded; empty if none. Collective."""
        self._open.end()

        def act() -> str:
            self._engine.agree(Kind.GUARD)
            return self._builder.guard.first(self.team)

        return self._together(act)

    def close(self) -> None:
        """Give back communicators, messages and shared memory; the network cannot be used any more. Collective.

        Also done at the end of ``with distribute(...) as net``.
        """
        self._open.end()
        if not self._health.broken:
            self._together(self._end)
        self._engine.close()
        self._built = replace(self._built, slots=())  # shared memory is given back with the last who knows of it
        self._recorder.close()
        self._health.broken = self._health.broken or "it was closed"

    def _end(self) -> None:
        self._engine.agree(Kind.CLOSE)
        meet(self.team, "the end of the network")
        self._engine.orders.close()
        self._built.close()
        self._builder.close()
        self.team.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self._health.fail(error)
        self.close()

    @property
    def _is_root(self) -> bool:
        return self.team.rank == ROOT
