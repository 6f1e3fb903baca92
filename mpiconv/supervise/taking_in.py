"""When a host that a job runs without answers again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Thread
from time import monotonic

from mpiconv.supervise.child import Child
from mpiconv.supervise.hosts import Place

Ask = Callable[[list[str]], dict[str, str]]
"""Tells for each host why it does not answer; empty if it does."""


class TakingIn:
    """Asks the hosts that a job runs without, now and then, and not before some time has passed."""

    def __init__(self, places: Sequence[Place], after_s: float, ask: Ask) -> None:
        self._places, self._after_s, self._ask = places, after_s, ask
        self._asking: Future[dict[str, str]] | None = None
        self._last_s = monotonic()

    def due(self, child: Child, living: set[str]) -> bool:
        """Whether one of them answers again; ``living`` are the hosts that the job was started on.

        This host answers, where a rank of it was lost and there is no list of hosts.
        """
        missing = {place.host for place in self._places} - (living - child.lost)
        alone = not self._places and child.lost_s > 0
        now = monotonic()
        if not (missing or alone) or now - max(child.lost_s, self._last_s) < self._after_s:
            return False
        if missing and self._asking is None:
            self._asking = asked(self._ask, sorted(missing))
        if self._asking is not None and not self._asking.done():
            return False
        reasons = {"": ""} if self._asking is None else self._asking.result()
        self._asking, self._last_s = None, now
        return any(not reason for reason in reasons.values())


def asked(ask: Ask, hosts: list[str]) -> Future[dict[str, str]]:
    """Why each of some hosts does not answer, once that is known."""
    asking = Future[dict[str, str]]()

    def run() -> None:
        try:
            asking.set_result(ask(hosts))
        except BaseException as error:
            asking.set_exception(error)

    Thread(target=run, daemon=True).start()  # which nobody waits for after a signal
    return asking
