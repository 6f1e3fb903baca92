"""A thread that lets MPI move messages while the rank computes."""

from __future__ import annotations

import threading
from time import sleep
from types import TracebackType

from mpi4py import MPI

PERIOD_S = 200e-6


class Progress:
    """While entered, looks at MPI now and then from a thread of its own; torch computes without Python's lock.

    Without it a message larger than what the transport takes at once would only move when the rank next waits. Does
    nothing where it is not wanted, for one rank alone, or where this MPI cannot be called from several threads.
    """

    def __init__(self, comm: MPI.Intracomm, *, wanted: bool) -> None:
        self.active = wanted and comm.size > 1 and MPI.Query_thread() == MPI.THREAD_MULTIPLE
        self.comm = comm.Dup() if self.active else comm
        self._running = False
        self._depth = 0

    def __enter__(self) -> None:
        self._depth += 1
        if self.active and self._depth == 1:
            self._running = True
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self.active and self._depth == 0:
            self._running = False
            self._thread.join()

    def _look(self) -> None:
        while self._running:
            self.comm.Iprobe(MPI.ANY_SOURCE, 0)
            sleep(PERIOD_S)
