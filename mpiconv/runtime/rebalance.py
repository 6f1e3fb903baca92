"""Another plan while a run goes on, as soon as the ranks' times say that it pays; on rank 0, the others follow."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, perf_counter, thread_time
from typing import Any

import numpy as np

from mpiconv.errors import PlanError, UsageError
from mpiconv.partition import Plan
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.rebalancing import Move, Rebalancer, Window
from mpiconv.runtime.reports import FRAMES
from mpiconv.runtime.session import Session

LOOKING = 0.008
"""Looking at reports may take this part of the root's time: of very quick pictures fewer reports are asked for."""

PATIENCE_S = 0.25
"""No longer than this no report is asked for: a look takes longer now and then, the first one above all."""


class Rebalance:
    """Asks for reports every few pictures, and has the network adopt what the planner makes of them.

    Parameters
    ----------
    net
        The network, which runs the plan that was decided on at the start.
    cluster
        Its devices and links as they were measured.
    tell
        Is told of every event, in a line.

    Attributes
    ----------
    events
        To these is added what was done, as plain data: ``time_s`` since this began, ``picture`` (how many were done),
        ``kind`` (``rebalance`` or ``undo``), ``plan``, ``shares``, ``ranks``, ``why``, ``predicted_gain``,
        ``realised_gain`` (None where the run was over before it was known), ``bytes_moved``, and ``seconds`` that the
        pictures waited for
        it: to decide, to send weights and to make the plan ready.
    """

    def __init__(
        self, net: Session, cluster: Cluster, tell: Callable[[str], object], events: list[dict[str, Any]] | None = None
    ) -> None:
        self.events = [] if events is None else events
        self._net, self._tell = net, tell
        if not isinstance(net.plan, Plan):
            raise UsageError("plans in turn are not watched: every device has as many pictures as it manages")
        self._rebalancer = Rebalancer(net.plan, cluster)
        self._begin_s = monotonic()
        self._since, self._asked, self._not_before_s = 0, False, 0.0

    def after_picture(self, done: int, left: int) -> bool:
        """Take note of an answer and of how many pictures are done and to come; whether another plan runs now."""
        self._since += 1
        if self._asked:
            window = self._net.reports.take()
            if window is not None:
                self._asked = False
                return self._look(window, done, left)
        elif self._since >= FRAMES and left > 0 and perf_counter() >= self._not_before_s:
            self._net.reports.ask()
            self._since, self._asked = 0, True
        return False

    def end(self) -> None:
        """Nothing is adopted any more: wait for what was asked for."""
        self._net.reports.settle()

    def _look(self, window: Window, done: int, left: int) -> bool:
        begin, busy_s = perf_counter(), thread_time()
        dilation = self._net.settings.dilation
        parts = (window.exchange_s, window.compute_s, window.latency_s)
        move = self._rebalancer.look(Window(*(np.asarray(part) / dilation for part in parts)), left)
        gain = self._rebalancer.realised_gain
        if gain is not None and self.events and self.events[-1].get("realised_gain", gain) is None:
            self.events[-1]["realised_gain"] = gain
        if move is not None:
            return self._adopt(move, begin, done)
        self._not_before_s = perf_counter() + min((thread_time() - busy_s) / LOOKING, PATIENCE_S)
        return False

    def _adopt(self, move: Move, begin: float, done: int) -> bool:
        """Have the network run the plan; whether it does."""
        dilation = self._net.settings.dilation
        adopting = perf_counter()
        try:
            moved = self._net.adopt(move.plan)
        except PlanError:
            self._rebalancer.refused(move)
            return False
        end = perf_counter()
        self._rebalancer.adopted(move, (end - adopting) / dilation)
        self._since = 0
        event = {
            "time_s": (monotonic() - self._begin_s) / dilation,
            "picture": done,
            "kind": move.kind,
            "plan": move.name,
            "shares": list(move.plan.shares),
            "ranks": list(move.ranks),
            "why": move.why,
            "predicted_gain": move.predicted_gain,
            "realised_gain": None,
            "bytes_moved": moved,
            "seconds": (end - begin) / dilation,
        }
        self.events.append(event)
        self._tell(line_of(event))
        return True


def line_of(event: dict[str, Any]) -> str:
    """An event in a line."""
    what, how = ("back to", "measured") if event["kind"] == "undo" else ("now", "estimated")
    shares = ", ".join(f"{share:.2g}" for share in event["shares"])
    return (
        f"{event['kind']} after {event['picture']} pictures: {event['why']}; {what} {event['plan']} (shares {shares}), "
        f"{how} {event['predicted_gain']:.2f} x faster; {event['bytes_moved'] / 1e6:.3g} MB of weights moved, "
        f"{event['seconds']:.2g} s"
    )
