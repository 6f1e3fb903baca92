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
    nothing where it is not wanted, or where this MPI cannot be called from several threads. Each rank decides alone:
    one whose maps all change hands in shared memory does without while others have messages.
    """

    def __init__(self, *, wanted: bool) -> None:
        self.active = wanted and MPI.Query_thread() == MPI.THREAD_MULTIPLE
        self._running = False
        self._depth = 0

    def want(self, wanted: bool) -> None:
        """Switch it on or off, also while entered."""
        active = wanted and MPI.Query_thread() == MPI.THREAD_MULTIPLE
        if self._depth and active != self.active:
            self._stop()
            self.active = active
            self._start()
        self.active = active

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth == 1:
            self._start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._stop()

    def _start(self) -> None:
        if self.active:
            self._running = True
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            self._thread.join()

    def _look(self) -> None:
        while self._running:
            MPI.COMM_SELF.Iprobe()
            sleep(PERIOD_S)
