"""How a rank waits for others: spinning, or asleep where ranks share cores. Long waits are reported to the watch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import sleep
from typing import TYPE_CHECKING, Protocol

from mpi4py import MPI

from mpiconv.job.together import meeting
from mpiconv.job.watch import Place, Watch

if TYPE_CHECKING:
    from mpiconv.job.team import Team

NAP_S = 50e-6
LOOKS = 256
MEETING_TAG = 13

ANYWHERE = Place("an exchange")
_give_way = getattr(os, "sched_yield", lambda: sleep(0))  # sleep(0) takes 80 us where Linux's timers have slack


class Awaitable(Protocol):
    """Something that is there at some time, without a message that MPI knows of."""

    def reached(self) -> bool:
        """Whether it is there."""


class Flags:
    """Numbers in shared memory, each written by another rank, that have to reach ``wanted``."""

    def __init__(self, cells: memoryview, places: tuple[int, ...]) -> None:
        self.cells, self.places, self.wanted = cells, places, 0

    def reached(self) -> bool:
        """Whether all of them have."""
        for place in self.places:  # noqa: SIM110 - half the time of all(), and this is what a rank spins on
            if self.cells[place] < self.wanted:
                return False
        return True


class Gate:
    """Shut while a frame's last unit has yet to read what the next frame in its buffers would write over."""

    def __init__(self) -> None:
        self.open = True

    def reached(self) -> bool:
        """Whether it is open, asked as ``Flags`` are."""
        return self.open


@dataclass
class Awaited:
    """What a frame has to wait for before it can go on: messages, and flags in shared memory or of its slot.

    ``last`` says that this is nothing, and that nothing follows: what is left of the frame is its last unit. ``place``
    is where in the network that is.
    """

    requests: list[MPI.Request] = field(default_factory=list)
    flags: list[Awaitable] = field(default_factory=list)
    last: bool = False
    place: Place = ANYWHERE

    def __bool__(self) -> bool:
        return bool(self.requests or self.flags)

    def __iadd__(self, other: Awaited) -> Awaited:
        self.requests += other.requests
        self.flags += other.flags
        return self

    def done(self) -> bool:
        """Look whether all of it is there."""
        while self.flags and self.flags[-1].reached():
            self.flags.pop()
        return not self.flags and (not self.requests or MPI.Request.Testall(self.requests))


class Waiting:
    """Waits for messages and flags, and reports every wait that is not short to the watch.

    Spinning answers soonest and keeps a core busy; asleep, a rank looks every ``NAP_S`` and leaves its core to others
    and to the battery. ``patient`` spins for a moment, then sleeps: for what happens once.
    """

    def __init__(self, mode: str, watch: Watch | None = None) -> None:
        self._mode, self._watch = mode, watch or Watch()
        self._looks = 0

    def all(self, awaited: Awaited) -> None:
        """Return once all of it is there."""
        while not awaited.done():
            self.rest(awaited.place)
        self.over()

    def rest(self, place: Place = ANYWHERE) -> None:
        """What to do between two looks: let other threads of this process run, and MPI move other messages."""
        self._looks += 1
        self._watch.check()
        if self._looks % LOOKS == 0:
            self._watch.late(place)
        MPI.COMM_SELF.Iprobe()
        if self._mode == "sleep" or (self._mode == "patient" and self._looks > LOOKS):
            sleep(NAP_S)
        else:
            _give_way()

    def over(self) -> None:
        """Something was there."""
        if self._looks >= LOOKS:
            self._watch.over()
        self._looks = 0


def wait(team: Team, requests: Sequence[MPI.Request], place: Place) -> None:
    """Wait for messages that are sent once; ``place.ranks`` are the team's."""
    whom = replace(place, ranks=tuple(team.members[rank] for rank in place.ranks))
    Waiting("patient", team.watch).all(Awaited(list(requests), place=whom))


def meet(team: Team, what: str) -> None:
    """Return once all ranks are there, so that a call that blocks in MPI has nobody to wait for. Collective."""
    wait(team, meeting(team), Place(what))


def meet_some(team: Team, ranks: tuple[int, ...]) -> None:
    """Return once these ranks are there, so that a call that blocks in MPI has nobody to wait for. Collective there."""
    (first, *others), note = ranks, bytearray(1)
    place = Place("the start of an exchange", ranks)
    for sent_by, sent_to in ((others, [first]), ([first], others)):
        if team.rank in sent_by:
            wait(team, [team.comm.Isend(note, to, MEETING_TAG) for to in sent_to], place)
        elif team.rank in sent_to:
            wait(team, [team.comm.Irecv(bytearray(1), source, MEETING_TAG) for source in sent_by], place)
