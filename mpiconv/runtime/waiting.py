"""How a rank waits for others: spinning, or asleep where ranks share cores."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from time import sleep

from mpi4py import MPI

from mpiconv.runtime.messages import allgather_json

WAITS = ("auto", "spin", "sleep")
NAP_S = 50e-6


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

    ``last`` says that this is nothing, and that nothing follows: what is left of the frame is its last unit.
    """

    requests: list[MPI.Request] = field(default_factory=list)
    flags: list[Flags | Gate] = field(default_factory=list)
    last: bool = False

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
    """Waits for what a frame has to wait for.

    Spinning answers soonest and keeps a core busy; asleep, a rank looks every ``NAP_S`` and leaves its core to others
    and to the battery.
    """

    def __init__(self, mode: str) -> None:
        self.asleep = mode == "sleep"

    def all(self, awaited: Awaited) -> None:
        """Return once all of it is there."""
        if not self.asleep and not awaited.flags:
            MPI.Request.Waitall(awaited.requests)
            return
        while not awaited.done():
            self.rest()

    def rest(self) -> None:
        """What to do between two looks: let other threads of this process run, and MPI move other messages."""
        MPI.COMM_SELF.Iprobe()
        sleep(NAP_S if self.asleep else 0)


def choose(mode: str, comm: MPI.Intracomm) -> str:
    """``spin`` or ``sleep`` for ``auto``: asleep where a host has more ranks than cores. Collective.

    All ranks get the same answer.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    host = MPI.Intracomm(comm.Split_type(MPI.COMM_TYPE_SHARED))
    there = allgather_json(host, cores)
    crowded = len({core for found in there for core in found}) < len(there)
    host.Free()
    anywhere = any(allgather_json(comm, crowded))
    return mode if mode != "auto" else "sleep" if anywhere else "spin"
