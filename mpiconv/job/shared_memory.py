"""Memory that the ranks of one host share."""

from __future__ import annotations

import mmap
import os
import platform
from typing import TYPE_CHECKING

from mpiconv.job.control import allgather_json, bcast_json

if TYPE_CHECKING:
    from mpiconv.job.team import Team

MARK_BYTES = 16


def share(team: Team, size: int) -> memoryview | None:
    """``size`` B of zeros that all these ranks see, for as long as one of them does. Collective over them.

    It has no name that would be left behind by a rank that is killed: the others open it through the first one's
    process, and look whether it is what was meant. None on all where it cannot be had: not Linux, too little
    memory, or ranks that do not see each other's processes.
    """
    handle, path, mark = -1, "", b""
    if team.rank == 0:
        try:
            handle = os.memfd_create("mpiconv")
            os.posix_fallocate(handle, 0, size)
            path, mark = f"/proc/{os.getpid()}/fd/{handle}", os.urandom(MARK_BYTES)
            os.pwrite(handle, mark, 0)
        except (OSError, AttributeError):
            handle = _closed(handle)
    path, text = bcast_json(team, [path if handle >= 0 else "", mark.hex()])
    memory: mmap.mmap | None = None
    try:
        if path and team.rank:
            handle = os.open(path, os.O_RDWR)
        if handle >= 0 and os.pread(handle, MARK_BYTES, 0).hex() == text:
            memory = mmap.mmap(handle, size)
    except OSError:
        pass
    everywhere = all(allgather_json(team, memory is not None))
    if everywhere and team.rank == 0:
        os.pwrite(handle, bytes(MARK_BYTES), 0)
    _closed(handle)
    return memoryview(memory) if memory is not None and everywhere else None


def in_order() -> bool:
    """Whether this processor shows others its writes in their order, so that a flag is not seen before the map.

    Others need an instruction for it that Python does not have: there ranks of one host send messages.
    """
    return platform.machine().lower() in ("x86_64", "amd64", "i686")


def _closed(handle: int) -> int:
    if handle >= 0:
        os.close(handle)
    return -1
