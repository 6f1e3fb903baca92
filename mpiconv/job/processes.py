"""The processes of this job on this machine; and one that ends them where MPI does not start. Standard library only."""

from __future__ import annotations

import os
import select
import signal
import sys
from contextlib import suppress
from pathlib import Path

JOB, RANK = "PMIX_NAMESPACE", "PMIX_RANK"
"""In the environment of all ranks of a job: the job's name, and the rank."""

SUPERVISED = "MPICONV_JOB"
"""In the environment of all that a supervisor starts on this host, with a word of its own: so it can be found."""

DONE = "mpiconv: done "
"""What rank 0 says at its end to a supervisor, with its exit status: mpirun may not end where a host was lost."""

START_S = 40.0


def tell_done(status: int) -> None:
    """Tell the supervisor, if there is one, that nothing more is to be done. On rank 0, when all is printed."""
    if SUPERVISED in os.environ:
        print(f"{DONE}{status}", file=sys.stderr, flush=True)


def ranks_here() -> dict[int, int]:
    """The processes of this job's ranks that this one sees, by their ranks as the launcher counts; empty if unknown."""
    found = {}
    job = f"{JOB}={os.environ.get(JOB, '')}".encode()
    for name in filter(str.isdecimal, os.listdir("/proc") if os.path.isdir("/proc") and JOB in os.environ else ()):
        try:
            around = Path("/proc", name, "environ").read_bytes().split(b"\0")
        except OSError:  # over, or another user's
            continue
        if job in around:
            rank = next((word.partition(b"=")[2] for word in around if word.startswith(f"{RANK}=".encode())), b"")
            if rank.isdigit():
                found[int(rank)] = int(name)
    return found


class Starting:
    """Sees from another process that MPI starts in time: a rank that dies or stops just then holds up all others there.

    MPI_Init can be ended in no other way.
    """

    def __init__(self) -> None:
        self._pipe = -1

    def begin(self, within_s: float = START_S) -> None:
        """End this rank, and say why, unless ``done`` is called in time."""
        read, self._pipe = os.pipe()
        if os.fork():
            os.close(read)
            return
        os.close(self._pipe)
        with suppress(BaseException):
            if not select.select([read], [], [], within_s)[0]:  # else the rank is over, or has said that it is through
                text = f"mpiconv: error: MPI did not start within {within_s:g} s: a rank died or stopped just then\n"
                os.write(sys.stderr.fileno(), text.encode())
                for pid in (*ranks_here().values(), os.getppid()):
                    if pid != os.getpid():
                        os.kill(pid, signal.SIGKILL)
        os._exit(1)

    def done(self) -> None:
        """MPI has started."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1


starting = Starting()
"""Of this process."""
