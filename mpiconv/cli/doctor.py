"""``mpiconv doctor``: what each rank is and has, and what disagrees."""

from __future__ import annotations

import argparse

from mpiconv.cli.options import add_emulation_options, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mpiconv doctor``."""
    parser.epilog = (
        "Start it like a run: mpirun -hostfile FILE mpiconv doctor. Before that, and without mpirun, "
        "mpiconv doctor --hostfile FILE tells which hosts it cannot reach. "
        "Exit status 1 if something would break a run."
    )
    parser.add_argument(
        "--hostfile", metavar="FILE", help="only see whether ssh reaches each host of it, within 20 s; without mpirun"
    )
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="torch threads per rank (default: 1)")
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    add_emulation_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Examine and print; collective. Exit status 1 if something would break a run."""
    if arguments.hostfile:
        from mpiconv.cli.doctor_table import call_hosts

        return call_hosts(arguments)
    from mpiconv.cli.doctor_table import diagnose  # torch and MPI only now, so that --help is quick

    return diagnose(arguments)
