"""The cores that a rank computes on: its own, and those of ranks of its host that a plan leaves with nothing to do."""

from __future__ import annotations

import os
from collections.abc import Collection

import torch

from mpiconv.job.team import Team
from mpiconv.partition.plan import at_work
from mpiconv.partition.turns import AnyPlan


class Cores:
    """Sets the threads of this rank, and the cores that they may run on, as plans want it.

    Attributes
    ----------
    lends
        Whether this rank has nothing to compute while another of its host has more threads than it was started with:
        it had better wait asleep.
    """

    def __init__(self, team: Team) -> None:
        self._team, self._own_threads = team, torch.get_num_threads()
        self.lends = False

    def use(self, plan: AnyPlan) -> bool:
        """Compute with a plan's threads from now on; returns whether they are others than before."""
        rank, busy = self._team.rank, set(at_work(plan)) if plan.threads else set(range(plan.ranks))
        threads, idle = plan.threads[rank] if plan.threads else self._own_threads, busy.isdisjoint({rank})
        self.lends = idle and any(plan.threads[other] > 1 for other in self._team.neighbours if other in busy)
        cores = set(self._team.seats[rank].cores)
        if threads > self._own_threads:
            cores |= {core for other in self._team.neighbours if other not in busy for core in self._cores_of(other)}
        changed = threads != torch.get_num_threads()
        torch.set_num_threads(threads)
        _run_on(cores)
        return changed

    def close(self) -> None:
        """Compute as this rank was started."""
        torch.set_num_threads(self._own_threads)
        _run_on(self._cores_of(self._team.rank))

    def _cores_of(self, rank: int) -> Collection[int]:
        return self._team.seats[rank].cores


def _run_on(cores: Collection[int]) -> None:
    """Let this thread, and those that it starts, run on these cores; only where Linux can, and if they are others."""
    if hasattr(os, "sched_setaffinity") and set(cores) != os.sched_getaffinity(0):
        os.sched_setaffinity(0, cores)
