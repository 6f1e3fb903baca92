"""Small control messages between ranks: JSON, never pickle; and errors that every rank gets to know.

None of them blocks in MPI: every wait can be ended, and says whom it is for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from mpiconv.errors import MpiconvError, UsageError, reason

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpiconv.job.team import Team

T = TypeVar("T")

CONTROL = "control messages"


def bcast_json(team: Team, value: Any, root: int = 0, what: str = CONTROL) -> Any:
    """Give every rank what the root has. Collective; ``what`` it is, for those who wait long."""
    from mpiconv.job.together import broadcast  # needs MPI, which a command may fail before it has

    data = np.frombuffer(json.dumps(value).encode(), np.uint8) if team.rank == root else np.empty(0, np.uint8)
    length = np.array([len(data)], np.int64)
    _wait(team, broadcast(team, length, root), what, root)
    if team.rank != root:
        data = np.empty(int(length[0]), np.uint8)
    _wait(team, broadcast(team, data, root), what, root)
    return json.loads(data.tobytes())


def allgather_json(team: Team, value: Any, what: str = CONTROL) -> list[Any]:
    """What every rank has, in the order of ranks, on every rank. Collective."""
    from mpiconv.job.together import all_gathered

    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.empty(team.size, np.int64)
    _wait(team, all_gathered(team, np.array([len(data)], np.int64), lengths, [1] * team.size), what)
    everything = np.empty(int(lengths.sum()), np.uint8)
    _wait(team, all_gathered(team, data, everything, lengths.tolist()), what)
    return [json.loads(part.tobytes()) for part in np.split(everything, np.cumsum(lengths)[:-1])]


def on_root(team: Team, work: Callable[[], T], what: str = "the work of rank 0") -> T | None:
    """Do something on rank 0 alone; whatever it raises there ends it on every rank. Collective.

    Returns what ``work`` returned on rank 0, and None on the others.

    Raises
    ------
    MpiconvError
        As on rank 0, or on the others in place of what was raised there.
    """
    result: T | None = None
    failed: BaseException | None = None
    failure: list[Any] | None = None
    if team.rank == 0:
        try:
            result = work()
        except BaseException as error:
            failed, failure = error, [getattr(error, "exit_status", 1), reason(error, 0)]
    failure = bcast_json(team, failure, what=what)
    if failed is None and failure is not None:
        status, message = failure
        failed = UsageError(message) if status == UsageError.exit_status else MpiconvError(message)
    if failed is not None:
        failed.everywhere = True  # type: ignore[attr-defined]
        raise failed
    return result


def _wait(team: Team, requests: Sequence[MPI.Request], what: str, *ranks: int) -> None:
    from mpiconv.job.waiting import wait
    from mpiconv.job.watch import Place

    wait(team, requests, Place(what, ranks))
