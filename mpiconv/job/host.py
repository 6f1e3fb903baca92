"""What the machine under this rank is: its name, cores, memory, versions."""

from __future__ import annotations

import os
import platform
import resource
import socket
from pathlib import Path
from typing import Any

from mpi4py import MPI

import mpiconv

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def describe() -> dict[str, Any]:
    """This rank's host, means and versions."""
    import torch

    return {
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "cores": len(cores_here()),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory_bytes(),
        "mpiconv": mpiconv.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "mpi": MPI.Get_library_version().strip("\0 \n").split(",")[0],
    }


def cores_here() -> list[int]:
    """The numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def memory_bytes() -> int:
    """The memory that this process may use, in B: the machine's, or its own limit where that is less; 0 if unknown."""
    pages = os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in os.sysconf_names else 0
    limits = [pages * os.sysconf("SC_PAGE_SIZE"), resource.getrlimit(resource.RLIMIT_DATA)[0]]
    return min([limit for limit in limits if limit > 0], default=0)


def machine_id() -> str:
    """What ranks on one machine have in common, be they in containers or namespaces with host names of their own."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()
