"""What becomes of the plan while pictures are run: ranks that are lost, better plans that are adopted."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import Any

from mpiconv.cli.surviving import Surviving, event_of, line_of
from mpiconv.job import launcher
from mpiconv.partition.turns import Turns
from mpiconv.runtime.net import DistributedNet
from mpiconv.runtime.rebalance import Rebalance


class Meanwhile:
    """Looks after the plan of a run, on rank 0.

    Attributes
    ----------
    events
        As results have them: ranks that were lost, and what rebalancing did.
    """

    def __init__(
        self, arguments: argparse.Namespace, net: DistributedNet, surviving: Surviving, tell: Callable[[str], object]
    ) -> None:
        """``tell`` says a line about a plan that was adopted."""
        self.events: list[dict[str, Any]] = []
        self._net, self._surviving, self._tell = net, surviving, tell
        self._rebalances: bool = arguments.rebalance
        self._verify_every: int = arguments.verify_every or 0
        self._rebalance: Rebalance | None = None
        self._begin_s = monotonic()

    @property
    def reported(self) -> bool:
        """Whether results say what became of the plan."""
        return self._rebalance is not None or bool(self.events)

    def begin(self, frames: int) -> None:
        """Begin after the trials; ``frames`` is the number of frames still to run."""
        if self._net.team.watch.lifeline is not None:
            self._surviving.plan_ahead(frames)
        self._watch()

    def _watch(self) -> None:
        """Watch the plan that runs now, where that is asked for."""
        cluster = self._surviving.job.cluster
        several = self._net.team.size > 1 and not isinstance(self._net.plan, Turns)
        wanted = self._rebalances and cluster is not None and several
        self._rebalance = Rebalance(self._net, cluster, self._tell, self.events) if wanted and cluster else None

    def after(self, done: int, left: int) -> None:
        """Have another plan adopted if that pays; what was measured by the one before is forgotten."""
        if self._rebalance is not None and self._rebalance.after_picture(done, left):
            self.adopted()

    def verify(self, done: int) -> None:
        """After some pictures check what a rank computes, where that is asked for."""
        if self._verify_every and done % self._verify_every == 0:
            verdict = self._net.verify()
            if verdict is not None:
                wrong = f"rank {verdict.ranks[0]} of those who are left computes {verdict.unit} wrongly and is left out"
                launcher.tell(f"mpiconv: note: {wrong}; answers before this may be wrong")

    def adopted(self) -> None:
        """Another plan runs now."""
        self._surviving.job = replace(self._surviving.job, plan=self._net.plan)

    def note_losses(self, done: int) -> None:
        """Record and report ranks lost since the last call; ``done`` is the number of pictures answered by now."""
        new = self._net.losses[sum(event["kind"] == "loss" for event in self.events) :]
        for loss in new:
            self.events.append(event_of(loss, self._net.plan, done, monotonic() - self._begin_s))
            launcher.tell(f"mpiconv: note: {line_of(self.events[-1])}")
        if new and self._rebalance is not None:
            self._watch()

    def end(self) -> None:
        """No other plan is adopted any more."""
        if self._rebalance is not None:
            self._rebalance.end()
