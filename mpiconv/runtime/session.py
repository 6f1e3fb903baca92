"""A network on a team, from its first plan to its end: what runs, what was measured, whether it can still be used."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from mpiconv.errors import MpiconvError, UsageError, reason
from mpiconv.job.control import allgather_json, bcast_json
from mpiconv.job.team import Team
from mpiconv.job.waiting import meet
from mpiconv.measure import Record
from mpiconv.partition import Plan
from mpiconv.partition.schemes import ROOT
from mpiconv.runtime.builder import Builder, Built
from mpiconv.runtime.engine import Engine, mismatch
from mpiconv.runtime.feed import Feed
from mpiconv.runtime.orders import TOLD, Kind, Order
from mpiconv.runtime.recording import Recorder
from mpiconv.runtime.settings import Settings
from mpiconv.words import counted


class Session:
    """What ranks do together with one network. All of it is collective, as ``DistributedNet`` says.

    Attributes
    ----------
    built
        The plan that runs, made ready on this rank.
    received_bytes, stored_bytes
        B of weights that came to each rank in messages, and that each read from its own disk, since the start.
    """

    def __init__(self, team: Team, settings: Settings, builder: Builder, built: Built) -> None:
        self.team, self.settings, self.builder, self.built = team, settings, builder, built
        self._broken = ""
        self.recorder = Recorder(team, built)
        self.engine = Engine(team, built.slots, self.recorder, settings.wait, self._adopt_as_ordered)
        self._progress = team.progress(wanted=self._wants_progress(built))
        self._count_weights()
        self._forget()

    def _count_weights(self) -> None:
        weights = self.builder.weights
        everywhere = allgather_json(self.team, [weights.received_bytes, weights.stored_bytes])
        self.received_bytes, self.stored_bytes = (tuple(each) for each in zip(*everywhere, strict=True))

    @property
    def record(self) -> Record:
        """What this rank measured since the last reset, its times on its own clock."""
        return self.recorder.record(self.settings.pace)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What ranks do together: an exception on one is told to the others, who would wait for it."""
        if self._broken:
            raise MpiconvError(f"this network cannot be used any more: {self._broken}")
        try:
            with self._progress:
                yield
        except BaseException as error:
            self.fail(error)
            raise

    def fail(self, error: BaseException) -> None:
        """Have the network never be used again, and tell the other ranks; nothing where it is so already."""
        if not self._broken:
            self._broken = reason(error, self.team.rank)
            self.team.watch.failed(error)

    def stream(self, feed: Feed) -> Generator[Any, None, None]:
        """The outputs of all batches of a feed, after a first None; leaving it early finishes those under way."""
        frames = self._frames(feed)
        try:
            yield None
            for output in frames:  # noqa: UP028 - to close this must not close the frames under way
                yield output
        except BaseException:
            feed.end()
            for _ in frames:
                pass
            raise
        if feed.error is not None:
            raise feed.error

    def _frames(self, feed: Feed) -> Iterator[Any]:
        with self.together():
            yield from self.engine.frames(feed)

    def obey(self, kind: Kind) -> bool:
        """Do what rank 0 ordered between frames; False where that was to dismiss this rank. Not on rank 0."""
        self.engine.orders.take()
        if kind is Kind.RESET:
            self._forget()
        elif kind is Kind.COLLECT:
            self.recorder.collect(self.record, self.settings.dilation)
        elif kind is Kind.REFUSED:
            bcast_json(self.team, "", what=TOLD.name)
        elif kind is not Kind.DISMISS:
            raise mismatch(kind, Kind.DISMISS)
        return kind is not Kind.DISMISS

    def adopt(self, plan: Plan) -> int:
        """Run another plan from the next frame on; B of weights that travelled for it. On rank 0.

        Raises MpiconvError for a plan that cannot run here; the one that ran goes on.
        """
        fitting = plan.fitted(self.built.plan.graph)
        if fitting.batch != self.built.plan.batch:
            raise UsageError(
                f"the plan is for batches of {counted(fitting.batch, 'picture')}, and those that run have "
                f"{self.built.plan.batch}"
            )
        self.builder.check(fitting)
        with self.together():
            self.engine.drain()
            self.engine.orders.give(Order(Kind.ADOPT))
            return self._adopt(fitting)

    def _adopt_as_ordered(self) -> None:
        self._adopt(None)

    def _adopt(self, plan: Plan | None) -> int:
        shared = Plan.from_dict(bcast_json(self.team, None if plan is None else plan.to_dict(), what="another plan"))
        before = sum(self.received_bytes)
        self.built.close()
        self.built = self.builder.build(shared if plan is None else plan)
        self.engine.adopt(self.built.slots)
        self.recorder.adopt(self.built)
        self._progress.want(self._wants_progress(self.built))
        self._count_weights()
        self._forget()
        return int(sum(self.received_bytes) - before)

    def reset(self) -> None:
        """Forget what was measured, compare clocks, start power meters."""
        with self.together():
            self.engine.agree(Kind.RESET)
            self._forget()

    def _forget(self) -> None:
        self.engine.number = 0
        self.recorder.reset()

    def collect(self) -> Record | None:
        """The record of all ranks on rank 0."""
        with self.together():
            self.engine.agree(Kind.COLLECT)
            return self.recorder.collect(self.record, self.settings.dilation)

    def close(self) -> None:
        """Give all back, together where nothing went wrong."""
        if not self._broken:
            with self.together():
                self.engine.agree(Kind.CLOSE)
                meet(self.team, "the end of the network")
                self.engine.orders.close()
                self.built.close()
                self.builder.close()
                self.team.close()
        self.engine.adopt(())
        self.recorder.close()
        self._broken = self._broken or "it was closed"

    def _wants_progress(self, built: Built) -> bool:
        """Whether messages have to move while this rank computes."""
        return built.messages and (bool(built.overlapped) or self.settings.in_flight > 1)

    @property
    def is_root(self) -> bool:
        """Whether this is rank 0."""
        return self.team.rank == ROOT
