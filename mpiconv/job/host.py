"""What the machine under this rank is: its name, cores, memory, versions."""

from __future__ import annotations

import os
import platform
import resource
import socket
from pathlib import Path
from typing import Any

import torch
from mpi4py import MPI

import mpiconv
from mpiconv.job.control import allgather_json
from mpiconv.job.waiting import meet

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def describe() -> dict[str, Any]:
    """This rank's host, means and versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "memory_bytes": memory_bytes(),
        "mpiconv": mpiconv.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "mpi": MPI.Get_library_version().strip("\0 \n").split(",")[0],
    }


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


def choose_wait(mode: str, comm: MPI.Intracomm) -> str:
    """``spin`` or ``sleep`` for ``auto``: asleep where a host has more ranks than cores. Collective.

    All ranks get the same answer.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    meet(comm, "finding the ranks of each host")
    host = MPI.Intracomm(comm.Split_type(MPI.COMM_TYPE_SHARED))
    there = allgather_json(host, cores)
    crowded = len({core for found in there for core in found}) < len(there)
    host.Free()
    anywhere = any(allgather_json(comm, crowded))
    return mode if mode != "auto" else "sleep" if anywhere else "spin"
