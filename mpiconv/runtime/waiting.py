"""How a rank waits for messages: spinning, or asleep where ranks share cores."""

from __future__ import annotations

import os
from time import sleep
from typing import TYPE_CHECKING

from mpi4py import MPI

from mpiconv.runtime.messages import allgather_json

if TYPE_CHECKING:
    from collections.abc import Sequence

WAITS = ("auto", "spin", "sleep")
NAP_S = 50e-6


class Waiting:
    """Waits for MPI requests.

    Spinning answers soonest and keeps a core busy; asleep, a rank looks every ``NAP_S`` and leaves its core to others
    and to the battery.
    """

    def __init__(self, mode: str) -> None:
        self.asleep = mode == "sleep"

    def all(self, requests: Sequence[MPI.Request]) -> None:
        """Return once all requests are complete."""
        if not self.asleep:
            MPI.Request.Waitall(requests)
            return
        while not MPI.Request.Testall(requests):
            sleep(NAP_S)

    def rest(self) -> None:
        """What to do between two looks at requests."""
        if self.asleep:
            sleep(NAP_S)


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
