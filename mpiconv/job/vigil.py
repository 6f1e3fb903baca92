"""Watching over the lives of all ranks, on each of them."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from mpi4py import MPI

from mpiconv.errors import Lost
from mpiconv.job.pulses import ROOT, Pulses
from mpiconv.job.seats import Seat

LOOK_S = 0.02
"""How often a rank's thread looks for the others."""

LEAST_S, STARTING_S, MOST_S = 2.0, 10.0, 30.0
"""How long a rank may be silent at least: once pictures are run, and before or where it is rank 0; and at most."""

GAPS = 4
"""A rank counts as lost once it is silent for GAPS times the longest gap between two signs of life so far."""


class Stage(IntEnum):
    """How far rank 0 is, which those who are left join in: before the network is sent, or from then on."""

    START = 0
    NETWORK = 1


class Vigil:
    """What one rank knows of the others' lives, from a thread that looks after it where MPI can be called by several.

    All but rank 0 send it signs of life, it to all of them. Rank 0 decides who is lost: of whose death MPI knows, there
    or on another rank, and who was silent for too long. It tells all others, also who is silent, should that wake.

    Parameters
    ----------
    comm
        A communicator of all ranks on which nobody waits for a message from any source. Its messages have two tags;
        those of ``Lines`` between those who are left have others.

    Attributes
    ----------
    alarm
        Whether somebody is lost that this rank still counts on: what it does with the others has to be given up.
    living
        The ranks that are left; ranks are numbered as ``number`` says.
    seats
        Where each rank runs, as far as it is known.
    losses
        How often some were lost.
    timeout_s
        After how many s of silence a rank is lost; None for four times the longest gap until then, 2 at least.
    settled
        Whether pictures are run: before that more patience is needed.
    kept
        What MPI may still write to, of what was given up.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        self.comm, self.settled = comm, False
        self.timeout_s: float | None = None
        self.alarm, self.losses, self.living = False, 0, tuple(range(comm.size))
        self.kept: list[Any] = []
        self.seats: dict[int, Seat] = {}
        self._pulses = Pulses(comm)
        self._lock, self._over = threading.RLock(), threading.Event()
        self._lost: set[int] = set()
        self._ready = dict.fromkeys(range(comm.size), 0)
        self._told: tuple[int, tuple[int, ...], Stage] = (0, self.living, Stage.START)
        if MPI.Query_thread() == MPI.THREAD_MULTIPLE:
            threading.Thread(target=self._watch, daemon=True).start()
            atexit.register(self.stop)

    def number(self, order: Sequence[int]) -> None:
        """Number the ranks anew: as these are in the communicator. On all of them, while nobody is lost."""
        with self._lock:
            self._pulses.number(order)

    @property
    def places(self) -> tuple[int, ...]:
        """The ranks that are left as they are in the communicator."""
        return tuple(self._pulses.order[rank] for rank in self.living)

    def stop(self) -> None:
        """Look after it no more."""
        self._over.set()
        with self._lock:
            pass

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            with self._lock:
                if not self._over.is_set():
                    self.look()

    def look(self) -> None:
        """Hear what others have said, give a sign of life, find out who is lost."""
        with self._lock:
            for rank, words in self._pulses.look(self.living):
                self._take(rank, *words)
            self._judge()

    def _take(self, rank: int, kind: str, *words: Any) -> None:
        if kind == "lost" and rank in self.living:  # a word about a loss that is over says nothing
            losses, ranks = words
            if losses == self.losses:
                self._lost |= set(ranks)
                self.alarm = True
        elif kind == "left":
            losses, living, stage = words
            self._told = losses, tuple(living), Stage(stage)
        elif kind == "ready":
            self._ready[rank] = words[0]

    def _judge(self) -> None:
        """Find out who is dead or silent for too long, and whether this rank counts on somebody lost."""
        least_s = LEAST_S if self.settled and self._pulses.rank == ROOT else STARTING_S
        patience_s = self.timeout_s or min(max(least_s, GAPS * self._pulses.gap_s), MOST_S)
        self._lost |= self._pulses.dead | (self._pulses.silent(patience_s) & set(self.living))
        if self._lost & set(self.living) or self._told[0] > self.losses:
            self.alarm = True

    def check(self) -> None:
        """Raise Lost where somebody is lost that this rank counts on."""
        if self.alarm:
            raise Lost(self.who())

    def who(self) -> str:
        """Who is lost, in a sentence."""
        gone = sorted((self._lost & set(self.living)) or set(self.living) - set(self._told[1]))
        names = ", ".join(map(self._name, gone)) or "a rank"
        return f"{names} {'are' if len(gone) > 1 else 'is'} lost"

    def _name(self, rank: int) -> str:
        return f"rank {rank} (host {self.seats[rank].host})" if rank in self.seats else f"rank {rank}"
