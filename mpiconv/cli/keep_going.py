"""The options of ``mpiconv run`` that keep it going, and of its answers file; starting it under a supervisor."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from mpiconv.cli.options import positive, seconds, whole
from mpiconv.errors import MpiconvError, UsageError
from mpiconv.signals import catch_signals

RESTARTS, TAKE_IN_S = 10, 60.0
UNDER = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""In the environment of what mpirun started."""


def add_answers(group: argparse._ArgumentGroup) -> None:
    """The file of answers: which, how safe, and whether to go on with it."""
    group.add_argument(
        "--answers",
        metavar="FILE.jsonl",
        help="write a line per picture as it is done: index, label, score; FILE.jsonl.run tells what they are of",
    )
    group.add_argument(
        "--fsync-every",
        type=positive,
        metavar="K",
        help="bring the answers to the disk after every K of them: a loss of power takes K at most (default: 1)",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on after the last whole line of the answers file, if it is there and of this model, these weights and "
        "pictures; what is measured is of the pictures since then",
    )


def add_keep_going(parser: argparse.ArgumentParser) -> None:
    """Starting mpirun, and starting it again."""
    group = parser.add_argument_group(
        "keep going (without mpirun in front: it is started, and again where it ends with pictures unanswered)"
    )
    group.add_argument(
        "--keep-going",
        action="store_true",
        help="start mpirun; should a rank or a host die, start it again on the hosts that answer, with the "
        "pictures that are left",
    )
    group.add_argument("-n", "--ranks", type=positive, metavar="N", help="ranks (default: as mpirun finds)")
    group.add_argument(
        "--hostfile",
        metavar="FILE",
        help="hosts to start ranks on, which ssh reaches without a password (default: this host; those of the "
        "allocation inside sbatch)",
    )
    group.add_argument(
        "--launcher",
        metavar="WORDS",
        help="mpirun with options of your own, in quotes (default: mpirun, --with-ft ulfm where it is Open MPI from "
        "5.0 on, so that those who are left go on when a rank dies)",
    )
    group.add_argument(
        "--max-restarts",
        type=whole,
        metavar="N",
        help=f"give up when it would have to be started again more often (default: {RESTARTS})",
    )
    group.add_argument(
        "--take-in-after",
        type=seconds,
        metavar="S",
        help="start again with a host that answers again, S s after it was lost at the earliest, and twice as long "
        f"after each time (default: {TAKE_IN_S:g})",
    )
    group.add_argument("--restarted", type=whole, help=argparse.SUPPRESS)


def add_readiness(parser: argparse.ArgumentParser) -> None:
    """What to have ready for the loss of ranks."""
    group = parser.add_argument_group(
        "losing ranks (under mpirun --with-ft ulfm, Open MPI from 5.0 on: those who are left go on)"
    )
    group.add_argument(
        "--spares",
        type=whole,
        default=0,
        metavar="K",
        help="the last K ranks do and hold nothing until another one is lost, and then what that did and held "
        "(default: 0)",
    )
    group.add_argument(
        "--resilience",
        action="store_true",
        help="each rank holds the weights, too, that it needs after the loss of any one other, where memory allows: "
        "then none travel",
    )
    group.add_argument(
        "--verify-every",
        type=positive,
        metavar="K",
        help="after every K pictures have what one rank computes of one layer computed again by another; of three "
        "ranks the one that is wrong counts as lost, with two the run ends",
    )


def check_launch(arguments: argparse.Namespace) -> None:
    """Raise UsageError where mpirun is to be started and is there already, or is not to be and is described."""
    if arguments.keep_going:
        if any(name in os.environ for name in UNDER):
            raise UsageError("--keep-going starts mpirun itself: leave out the mpirun in front, and say -n N")
        return
    for option in ("ranks", "hostfile", "launcher", "max_restarts", "take_in_after"):
        if getattr(arguments, option) is not None:
            name = option.replace("_", "-")
            raise UsageError(f"--{name} is for --keep-going; without that tell mpirun: mpirun -n 2 mpiconv run")


def keep_going(arguments: argparse.Namespace, known: tuple[str, ...]) -> int:
    """Start the run under a supervisor. Exit status and stdout are those of a run that nothing happened to.

    ``known`` are all options of ``mpiconv run``.

    Raises
    ------
    MpiconvError
        It failed in a way that another start does not mend, or was started too often.
    """
    from mpiconv.probe.preflight import SRUN, SSH, ask_hosts
    from mpiconv.supervise.command import OWN, agent_of, outlives_ranks, without
    from mpiconv.supervise.hosts import of_hostfile, of_slurm
    from mpiconv.supervise.supervisor import Order, Supervisor

    caught = catch_signals()
    if arguments.resume and not arguments.answers:
        raise UsageError("--resume wants the file it is about: --answers FILE.jsonl")
    try:
        launcher = shlex.split(arguments.launcher or "mpirun")
    except ValueError as error:
        raise UsageError(f"--launcher {arguments.launcher!r}: {str(error).lower()}") from None
    if not launcher:
        raise UsageError("--launcher has no words: mpirun, say")
    agent = agent_of(launcher, os.environ)
    if not arguments.launcher and outlives_ranks(_version(launcher[0])):
        launcher += ["--with-ft", "ulfm"]
    slurm = not arguments.hostfile and "SLURM_JOB_ID" in os.environ
    with TemporaryDirectory(prefix="mpiconv-answers-") as folder:
        order = Order(
            words=without(arguments.words, OWN, known),
            known=known,
            launcher=launcher,
            ranks=arguments.ranks,
            places=of_hostfile(arguments.hostfile) if arguments.hostfile else of_slurm(os.environ) if slurm else (),
            hostfile=arguments.hostfile,
            answers=arguments.answers or str(Path(folder) / "answers.jsonl"),
            resume=arguments.resume,
            most=RESTARTS if arguments.max_restarts is None else arguments.max_restarts,
            take_in_s=arguments.take_in_after or TAKE_IN_S,
        )
        ask = SRUN if slurm else agent or SSH
        out, step = Supervisor(order, lambda hosts: ask_hosts(hosts, ask), caught).run()
    sys.stdout.buffer.write(out)
    sys.stdout.flush()
    if step.why:
        failure = UsageError(step.why) if step.status == UsageError.exit_status else MpiconvError(step.why)
        raise failure
    return step.status


def _version(program: str) -> str:
    """What a program says of its version; empty if there is none."""
    try:
        return subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
