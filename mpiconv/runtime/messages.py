"""Small control messages between ranks: JSON, never pickle; and errors that every rank gets to know."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from mpiconv.errors import MpiconvError, UsageError

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")


def bcast_json(comm: MPI.Intracomm, value: Any, root: int = 0) -> Any:
    """Give every rank what the root has. Collective."""
    data = np.frombuffer(json.dumps(value).encode(), np.uint8) if comm.rank == root else np.empty(0, np.uint8)
    length = np.array([len(data)], np.int64)
    comm.Bcast(length, root)
    if comm.rank != root:
        data = np.empty(int(length[0]), np.uint8)
    comm.Bcast(data, root)
    return json.loads(data.tobytes())


def allgather_json(comm: MPI.Intracomm, value: Any) -> list[Any]:
    """What every rank has, in the order of ranks, on every rank. Collective."""
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.empty(comm.size, np.int64)
    comm.Allgather(np.array([len(data)], np.int64), lengths)
    everything = np.empty(int(lengths.sum()), np.uint8)
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    comm.Allgatherv(data, [everything, (lengths, starts)])
    return [json.loads(part.tobytes()) for part in np.split(everything, starts[1:])]


def on_root(comm: MPI.Intracomm, work: Callable[[], T]) -> T | None:
    """Do something on rank 0 alone; an MpiconvError it raises there is raised on every rank. Collective.

    Returns what ``work`` returned on rank 0, and None on the others.
    """
    result, failed, failure = None, None, None
    if comm.rank == 0:
        try:
            result = work()
        except MpiconvError as error:
            failed, failure = error, [error.exit_status, str(error)]
    failure = bcast_json(comm, failure)
    if failed is not None:
        raise failed
    if failure is not None:
        status, message = failure
        raise UsageError(message) if status == UsageError.exit_status else MpiconvError(message)
    return result
