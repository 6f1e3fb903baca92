"""What all ranks of a team do together in MPI, without blocking in it; also where some of the ranks are lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from mpi4py import MPI

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpiconv.job.team import Team


def meeting(team: Team) -> list[MPI.Request]:
    """Be there: what it returns is done once all ranks are."""
    found = team.comm.Ibarrier()
    return [found] if isinstance(found, MPI.Request) else found


def broadcast(team: Team, data: np.ndarray, root: int) -> list[MPI.Request]:
    """Give every rank what the root has."""
    found = team.comm.Ibcast(data, root)
    return [found] if isinstance(found, MPI.Request) else found


def gathered(team: Team, mine: np.ndarray, everything: np.ndarray | None, root: int) -> list[MPI.Request]:
    """Give the root what each rank has, as ``everything`` (rank, ...), None on the others."""
    found = team.comm.Igather(mine, everything, root)
    return [found] if isinstance(found, MPI.Request) else found


def all_gathered(team: Team, mine: np.ndarray, everything: np.ndarray, lengths: Sequence[int]) -> list[MPI.Request]:
    """Give every rank what each has, one behind the other in a flat array, of these lengths."""
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1])).astype(np.int64)
    if isinstance(team.comm, MPI.Intracomm):
        return [team.comm.Iallgatherv(mine, [everything, (np.asarray(lengths), starts)])]
    return team.comm.Iallgatherv(mine, np.split(everything, starts[1:]))
