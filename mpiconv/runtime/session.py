"""A network on a team from its first plan to its end: what its ranks do between frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType

from mpiconv.errors import MpiconvError, UsageError
from mpiconv.job.waiting import meet
from mpiconv.measure import Record
from mpiconv.partition import Plan
from mpiconv.partition.making import fitted
from mpiconv.partition.schemes import ROOT
from mpiconv.partition.turns import AnyPlan, each_of, in_turn
from mpiconv.runtime.crew import Crew
from mpiconv.runtime.orders import Kind, Order
from mpiconv.runtime.verifying import Verdict


class Session(Crew):
    """What the ranks of a network do between frames: measure, adopt another plan, end."""

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

    def verify(self) -> Verdict | None:
        """Have what one rank computes of one unit computed again by others. On rank 0; also in the midst of a stream.

        A rank of whom two others say that it is wrong counts as lost, where the job outlives that.

        Returns
        -------
        Verdict or None
            Who computes wrongly, by the numbers of the ranks that are running; None for nobody.

        Raises
        ------
        MpiconvError
            Somebody computes wrongly, and the job cannot go on without.
        """
        losses = len(self.losses)

        def act() -> Verdict | None:
            if len(self.losses) > losses:
                return None
            self._engine.drain()
            self._engine.orders.give(Order(Kind.VERIFY))
            return self._verify()

        found, lifeline = self._together(act), self.team.watch.lifeline
        if found is None:
            return None
        names = " or ".join(f"rank {rank} (host {self.team.hosts[rank]})" for rank in found.ranks)
        if lifeline is None or len(found.ranks) > 1 or ROOT in found.ranks:
            raise MpiconvError(f"{names} computes {found.unit} wrongly: run without that device, and test its memory")
        lifeline.exclude(found.ranks[0])
        return found

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
