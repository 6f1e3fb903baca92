"""The job around a command: is it the one that was meant, do the ranks agree, and how it ends when a rank fails."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

import mpiconv
from mpiconv.errors import MpiconvError, UsageError
from mpiconv.job import openmpi
from mpiconv.job.control import allgather_json, bcast_json
from mpiconv.job.processes import starting, tell_done
from mpiconv.text import safe_text
from mpiconv.words import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpi4py import MPI

    from mpiconv.job.lifeline import Lifeline
    from mpiconv.job.team import Team

JOIN_S = 25.0
JOIN_VARIABLE = "MPICONV_JOIN_S"
POLL_S = 0.001
LEAVE_S = 3.0
BATCH_TIMEOUT_S = 300.0
TAG = 6

LAUNCHER_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS")
LAUNCHER_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")


def join_world(*, same_version: bool = True, rank_timeout_s: float = 0.0) -> Team:
    """All ranks as a team, once it is sure that they belong together. Collective.

    A rank that waits for another longer than rank 0's ``rank_timeout_s`` from now on gives up, unless that is 0.

    Raises
    ------
    MpiconvError
        The launcher started several processes that do not see each other, a rank does not answer within half a
        minute, or the ranks run different versions.
    """
    from mpi4py import MPI

    starting.done()
    comm: MPI.Intracomm = MPI.COMM_WORLD
    # The first that is there is the innermost launcher's: mpirun -n 1 inside a SLURM job of 4 tasks is one rank.
    for variable in [name for name in LAUNCHER_SIZES if name in os.environ][:1]:
        wanted = os.environ[variable]
        if comm.size == 1 and wanted.isdigit() and int(wanted) > 1:
            raise MpiconvError(
                f"{variable} is {wanted}, but MPI sees one rank: start with the mpirun of this Python's MPI "
                f"({MPI.Get_library_version().split(',')[0].strip()}), also inside sbatch, or srun --mpi=pmix"
            )
    team = _joined(comm)
    team.watch.limit_s = team.watch.idle_limit_s = bcast_json(team, rank_timeout_s)
    versions = allgather_json(team, mpiconv.__version__)
    if same_version and len(set(versions)) > 1:
        found = ", ".join(f"rank {rank} has {version}" for rank, version in enumerate(versions))
        raise MpiconvError(f"the ranks run different versions of mpiconv: {found}; install one version on all hosts")
    return team


def _joined(comm: MPI.Intracomm) -> Team:
    """All ranks as a team, or those who are left where some are lost meanwhile and the job outlives that."""
    from mpiconv.job.leaving import team_of_left
    from mpiconv.job.lifeline import Lifeline, Stage
    from mpiconv.job.team import Team

    lifeline = Lifeline(comm) if openmpi.survives() and comm.size > 1 else None
    try:
        await_all(comm, _join_seconds(), lifeline)
        return Team.of(comm, lifeline)
    except BaseException as error:
        if lifeline is None or not lifeline.explains(error):
            raise
        lifeline.kept.append(error)
        return team_of_left(lifeline, Stage.START)[0]


def rooted(team: Team, root: str | None) -> tuple[Team, list[int]]:
    """The ranks of a team with the one first that is to be the root; the others stay in their order. Collective.

    The team is closed if another takes its place. The numbers are those that its ranks had in it, in their new order.

    Parameters
    ----------
    root
        A host, whose first rank is meant, or the number of a rank; None for rank 0. What rank 0 says counts.

    Raises
    ------
    UsageError
        On every rank, where neither a host nor a rank of the team is called that.
    """
    root = bcast_json(team, root, what="the choice of the root")
    first = 0 if root is None else _rank_of(root, team.hosts)
    order = [first, *(rank for rank in range(team.size) if rank != first)]
    if first == 0:
        return team, order
    made = team.shrink(order)
    team.close()
    return made, order


def _rank_of(name: str, hosts: Sequence[str]) -> int:
    if name in hosts:
        return hosts.index(name)
    if re.fullmatch(r"\d{1,9}", name, re.ASCII) and int(name) < len(hosts):
        return int(name)
    names = list(dict.fromkeys(hosts))
    ranks = "rank 0 alone runs" if len(hosts) == 1 else f"ranks 0 to {len(hosts) - 1} run"
    raise UsageError(f"--root {name}: {ranks} on {', '.join(names)}{did_you_mean(name, names)}")


def default_timeout_s() -> float:
    """How long a rank waits for another unless told: for ever where a person looks on, else some minutes."""
    return 0.0 if on_terminal() and "SLURM_JOB_ID" not in os.environ else BATCH_TIMEOUT_S


def leave(team: Team, status: int = 0) -> None:
    """Wait until all ranks are through, in silence: rank 0 may have much to write. Collective.

    MPI would wait for that, too, but not be ended by a signal while it does. Where ranks were lost it may wait for
    ever: there the process ends here, with this exit status.
    """
    from mpiconv.job.together import meeting
    from mpiconv.signals import caught

    lifeline = team.watch.lifeline
    if team.rank == 0:
        sys.stdout.flush()
        tell_done(status)
    requests = meeting(team) if lifeline is None or not lifeline.losses else []
    while requests and not (lifeline is not None and lifeline.alarm) and not requests[0].Test():
        if caught.ending and time.monotonic() - caught.when_s > LEAVE_S:
            raise MpiconvError("ended by SIGTERM while another rank was at work")
        time.sleep(POLL_S)
    if lifeline is not None and (lifeline.losses or lifeline.alarm):
        lifeline.end_silent()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _join_seconds() -> float:
    text = os.environ.get(JOIN_VARIABLE, "")
    try:
        return float(text) if text else JOIN_S
    except ValueError:
        raise UsageError(f"{JOIN_VARIABLE} is {text!r}: a number of seconds is wanted") from None


def await_all(comm: MPI.Intracomm, within_s: float, lifeline: Lifeline | None = None) -> None:
    """Exchange a byte between rank 0 and every other, in time. Collective.

    A device that went silent after the start would else keep all others waiting in the first collective for as long as
    their TCP tries again: a quarter of an hour.

    Raises
    ------
    MpiconvError
        On rank 0 if a rank does not answer, named; on the others, some seconds later, if rank 0 does not.
    """
    others = range(1, comm.size) if comm.rank == 0 else [0]
    buffers = {rank: bytearray(1) for rank in others}
    waiting = {rank: comm.Irecv(buffers[rank], rank, TAG) for rank in others}
    sent = [] if comm.rank == 0 else [comm.Isend(bytearray(1), 0, TAG)]
    later_s = 0 if comm.rank == 0 else 3 + (comm.rank - 1) / 2  # so that one alone says it and ends the job
    deadline = time.monotonic() + within_s + later_s
    while waiting:
        if lifeline is not None:
            lifeline.check()
        waiting = {rank: request for rank, request in waiting.items() if not request.Test()}
        if waiting and time.monotonic() > deadline:
            silent = ", ".join(f"rank {rank}" for rank in waiting)
            raise MpiconvError(
                f"{silent} did not answer rank {comm.rank} within {within_s:g} s: see that the host is up and lets "
                f"TCP through, by mpiconv doctor --hostfile FILE ({JOIN_VARIABLE}=SECONDS waits longer for a slow one)"
            )
        time.sleep(POLL_S)
    if comm.rank == 0:
        sent = [comm.Isend(bytearray(1), rank, TAG) for rank in others]
    for request in sent:
        request.Wait()


def launcher_rank() -> int:
    """The rank of this process as its launcher's environment tells, 0 where it says nothing. Needs no MPI."""
    return next((int(os.environ[name]) for name in LAUNCHER_RANKS if os.environ.get(name, "").isdigit()), 0)


def on_terminal() -> bool:
    """Whether a person sees this process's stderr: directly, or through an mpirun on this Linux machine."""
    if sys.stderr.isatty():
        return True
    try:
        return launcher_rank() == 0 and os.readlink(f"/proc/{os.getppid()}/fd/2").startswith("/dev/pts/")
    except OSError:
        return False


def fail(message: str, status: int, after_s: float = 0.0, *, at_once: bool = False) -> NoReturn:
    """Say on stderr, once for all ranks and ``after_s``, why the job ends; end it with this exit status on every rank.

    An empty message is for a job whose output nobody reads any more: it ends without a word.
    Several ranks often fail for one reason; the later a rank's turn, the longer it waits for another to have ended it;
    little where rank 0 has no turn (``at_once``).
    """
    for number in (signal.SIGTERM, signal.SIGINT):  # the launcher ends the ranks whose turn has not come
        signal.signal(number, signal.SIG_DFL)
    time.sleep(after_s)
    rank = launcher_rank()
    if rank:
        time.sleep(0.05 * rank if at_once else min(0.9 + 0.6 * rank, 3.5))
    with suppress(OSError):  # nobody listens any more
        if message:
            print(f"mpiconv: error: {safe_text(message)}", file=sys.stderr, flush=True)
        sys.stdout.flush()
    if "mpi4py.MPI" in sys.modules:
        from mpi4py import MPI

        time.sleep(0.2)  # mpirun forwards the line above before it prints its own about the abort
        if MPI.Is_initialized() and not MPI.Is_finalized() and MPI.COMM_WORLD.size > 1:
            MPI.COMM_WORLD.Abort(status)
    os._exit(status)
