"""Ranks that do what rank 0 orders until it dismisses them."""

from __future__ import annotations

from collections.abc import Callable

from mpiconv.job.control import bcast_json
from mpiconv.runtime.engine import mismatch
from mpiconv.runtime.orders import TOLD, Kind, Order
from mpiconv.runtime.session import Session


class Following(Session):
    """A network whose other ranks follow rank 0."""

    def follow(self, each: Callable[[], object] = lambda: None) -> int:
        """Do what rank 0 orders - run, adopt, reset, collect - until it dismisses this rank. On all ranks but rank 0.

        Parameters
        ----------
        each
            Called after every frame.

        Returns
        -------
        int
            How many frames were run since the last reset.
        """
        self._open.end()
        return self._together(lambda: self._followed(each))

    def _followed(self, each: Callable[[], object]) -> int:
        while True:
            kind = self._engine.next_kind()
            if kind in (Kind.RUN, Kind.END):
                for _ in self._engine.frames(None):
                    each()
                continue
            self._engine.orders.take()
            if kind is Kind.RESET:
                self._recorder.reset()
            elif kind is Kind.COLLECT:
                self._recorder.collect(self.record, self.settings.dilation)
            elif kind is Kind.GUARD:
                self._builder.guard.first(self.team)
            elif kind is Kind.REST:
                self._engine.rest()
            elif kind is Kind.REFUSED:
                bcast_json(self.team, "", what=TOLD.name)
            elif kind is Kind.DISMISS:
                return self._recorder.measured
            else:
                raise mismatch(kind, Kind.DISMISS)

    def rest(self) -> None:
        """Have all other ranks, which ``follow``, wait asleep for what comes next. On rank 0."""
        self._open.end()
        self._together(lambda: self._engine.orders.give(Order(Kind.REST)))

    def dismiss(self) -> None:
        """Have ``follow`` end on all other ranks. On rank 0."""
        self._open.end()
        self._together(lambda: self._engine.orders.give(Order(Kind.DISMISS)))
