"""A way to the stderr of the mpirun that started this process, for when it no longer forwards ours."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

LAUNCHERS = ("mpirun", "mpiexec", "prterun", "orterun", "mpiexec.hydra")


@cache
def _stderr() -> int:
    """A descriptor of the stderr of the mpirun that is this process's parent (Linux), else of our own."""
    parent = Path(f"/proc/{os.getppid()}")
    try:
        if (parent / "comm").read_text().strip() in LAUNCHERS:
            return os.open(parent / "fd" / "2", os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        pass
    return sys.stderr.fileno()


def open_stderr() -> None:
    """Find it while mpirun is alive."""
    _stderr()


def tell(text: str) -> None:
    """A line on mpirun's own stderr: after Ctrl-C it kills its ranks and forwards nothing that they say."""
    with suppress(OSError):  # nobody may be there to read it
        os.write(_stderr(), f"{text}\n".encode())
