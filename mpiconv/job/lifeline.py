"""Who is lost: ranks that died or fell silent, found out by each, decided by rank 0, and told to those who are left."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from time import monotonic, sleep

from mpi4py import MPI

from mpiconv.errors import Lost, Refused, RootLost
from mpiconv.job.processes import ranks_here
from mpiconv.job.pulses import ROOT
from mpiconv.job.vigil import Stage, Vigil

POLL_S = 0.001

READY_S = 30.0
"""How long a rank that lives may take to come to a recovery."""

EXPLAIN_S = 0.3
"""How long after an error of MPI's it may take until somebody is known to be dead."""

__all__ = ["Lifeline", "Stage"]


class Lifeline(Vigil):
    """Watches over all ranks and, when some are lost, agrees with those who are left on who that is."""

    def explains(self, error: BaseException) -> bool:
        """Whether an error is for somebody's loss."""
        if isinstance(error, Lost):
            return not isinstance(error, Refused)
        if not isinstance(error, MPI.Exception):
            return False
        end = monotonic() + EXPLAIN_S
        while not self.alarm and monotonic() < end:
            self.look()
            sleep(POLL_S)
        return self.alarm

    def agree(self, stage: Stage) -> Stage:
        """Agree on who is left: ``living`` from now on. On all who are left; rank 0's stage is theirs.

        Raises
        ------
        Refused
            This rank is counted as lost.
        RootLost
            Rank 0 is lost, without which nothing can go on.
        """
        return self._lead(stage) if self._pulses.rank == ROOT else self._follow()

    def _lead(self, stage: Stage) -> Stage:
        while True:
            with self._lock:
                self.losses += 1
                self.living = tuple(rank for rank in self.living if rank not in self._lost)
                self.alarm = False
                for rank in self._pulses.heard_s:
                    self._pulses.say(rank, ["left", self.losses, self.living, stage])
            end = monotonic() + READY_S
            while not self.alarm:
                self.look()
                waited = {rank for rank in self.living[1:] if self._ready[rank] < self.losses}
                if not waited:
                    return stage
                if monotonic() > end:
                    self._lost |= waited
                sleep(POLL_S)

    def _follow(self) -> Stage:
        self.look()
        if self._told[0] <= self.losses:
            self._pulses.say(ROOT, ["lost", self.losses, sorted(self._lost)])
        while self._told[0] <= self.losses:
            self.look()
            if ROOT in self._lost:
                raise RootLost(f"{self._name(ROOT)} is lost, which the others need")
            sleep(POLL_S)
        with self._lock:
            self.losses, living, stage = self._told
            if self._pulses.rank not in living:
                raise Refused("it was silent for too long and counts as lost")
            self.living, self.alarm = living, False
            self._pulses.say(ROOT, ["ready", self.losses])
        return stage

    def exclude(self, number: int) -> None:
        """Count a rank as lost, by its number among those who are left. On rank 0."""
        with self._lock:
            self._lost.add(self.living[number])
            self.alarm = True

    def end_silent(self) -> None:
        """End the processes that were counted as lost and still are there, as far as this rank sees them."""
        places = {self._pulses.order[rank] for rank in set(range(len(self._pulses.order))) - set(self.living)}
        for place, pid in ranks_here().items():
            if place in places:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
