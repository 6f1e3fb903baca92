"""``mpiconv run``: the main job, inference split over the ranks, measured."""

from __future__ import annotations

import argparse

from mpiconv.cli.keep_going import add_answers, add_keep_going, add_readiness, check_launch, keep_going
from mpiconv.cli.memory_limit import add_memory_limit
from mpiconv.cli.objectives import add_energy_limit, add_objective, settle_in_flight
from mpiconv.cli.options import (
    Every,
    above_zero_to_one,
    add_emulation_options,
    add_engine_options,
    add_model_options,
    add_rank_timeout,
    add_split_options,
    add_weights_from,
    named,
    positive,
    rate,
    whole,
)
from mpiconv.cli.wire_options import add_wire_error
from mpiconv.job import openmpi
from mpiconv.job.processes import starting
from mpiconv.signals import catch_signals


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``mpiconv run``."""
    parser.epilog = "Start it on several ranks: mpirun -n 2 mpiconv run ..., or mpirun -hostfile FILE mpiconv run ... "
    parser.epilog += "SIGUSR1, to mpirun or any rank, ends the run after the current repeat with its results written."
    source = parser.add_argument_group("pictures (default: --random)").add_mutually_exclusive_group()
    source.add_argument("--image", nargs="+", metavar="FILE", help="picture files")
    source.add_argument(
        "--data",
        metavar="DATA",
        help="a folder of pictures, searched to its bottom; or the held-out part of a data set with answers, to find "
        "the accuracy: cifar10:DIR, folder:DIR (a folder per class) or digits",
    )
    source.add_argument("--random", action="store_true", help="noise; picture i depends on the seed and i alone")
    parser.add_argument(
        "--held-out",
        type=above_zero_to_one,
        metavar="F",
        help="with folder:DIR without train and val: the part of every class that is held out, 1: all (default: 0.2)",
    )
    add_model_options(parser)
    add_split_options(parser, usual="auto on several ranks unless one of the options below says how to split; else kpm")
    add_weights_from(parser)
    parser.add_argument("--plan", metavar="FILE", help="a plan saved by mpiconv plan, instead of --scheme and --shares")
    _add_planning(parser)
    _add_measuring(parser)
    add_engine_options(parser)
    add_rank_timeout(parser)
    parser.add_argument(
        "--root",
        metavar="HOST",
        help="the host, or the number of a rank, that has the model and the pictures and gets the answers; all files "
        "are read and written there. It becomes rank 0, the others follow in their order: --shares, --plan and all "
        "others but --pace count them so (default: the rank that mpirun starts first)",
    )
    add_emulation_options(parser, inject=True)
    _add_output(parser)
    add_keep_going(parser)
    add_readiness(parser)
    parser.set_defaults(known=tuple(parser._option_string_actions))  # noqa: SLF001


def _add_planning(parser: argparse.ArgumentParser) -> None:
    """How --scheme auto finds its plan."""
    planning = parser.add_argument_group(
        "planning (--scheme auto: never slower than one device, as measured; the best split otherwise)"
    )
    planning.add_argument(
        "--cluster",
        metavar="FILE.toml",
        help="plan for these devices and links, as mpiconv probe wrote them, also with a baseline as --scheme "
        "(default: a quick probe at the start); with a named scheme or --plan: predict for them, to compare with what "
        "is measured",
    )
    planning.add_argument(
        "--plan-by",
        choices=("estimate", "measure"),
        help="take the plan that is fastest by the estimate; or run the best three, and one device alone, for a few "
        "pictures each, whose answers count but not their times, and keep the fastest (default: measure, estimate with "
        "fewer than 20 repeats)",
    )
    add_objective(planning, "latency; throughput with --in-flight 2 or more")
    add_memory_limit(planning)
    add_energy_limit(planning)
    add_wire_error(
        planning, how="as measured on some of the pictures; by the formats' usual errors with --plan-by estimate"
    )
    planning.add_argument(
        "--rebalance",
        action="store_true",
        help="watch what the ranks take, and run by a better plan from the next picture on once a device or a link has "
        "become slower or faster and that pays for the rest of the run; with any scheme or plan. What is reported and "
        "written is of the pictures since then",
    )


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    """How often, on how many threads, against what; the energy model."""
    measure = parser.add_argument_group("measuring")
    measure.add_argument(
        "--repeats",
        type=positive,
        metavar="N",
        help="measured inferences, every picture at least once (default: 100; one pass over a data set with answers)",
    )
    measure.add_argument(
        "--warmup", type=whole, default=3, metavar="N", help="inferences before (default: %(default)s)"
    )
    measure.add_argument("--threads", type=positive, default=1, metavar="N", help="torch threads per rank (default: 1)")
    measure.add_argument(
        "--check", action="store_true", help="compare with the unsplit model; exit status 1 if they differ"
    )
    measure.add_argument(
        "--compare-single",
        type=whole,
        default=0,
        metavar="N",
        help="also run the model N times on rank 0 alone and say what the split gains (with --check it is said anyway)",
    )
    measure.add_argument(
        "--link-rate",
        type=rate,
        default=100e6,
        metavar="MB/s",
        help="link rate that the energy model assumes (default: 100)",
    )
    measure.add_argument(
        "--energy",
        default="paper",
        metavar="PROFILE",
        help="paper, pi4, xavier-nx, laptop or FILE.toml:NAME (default: paper)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    """What is printed and written."""
    output = parser.add_argument_group("output")
    output.add_argument(
        "--name", metavar="TEXT", help="what to call this run in reports (default: model, scheme, ranks)"
    )
    output.add_argument(
        "--output", type=named(".h5", ".hdf5"), metavar="FILE.h5", help="write all measurements to this HDF5 file"
    )
    output.add_argument(
        "--save-every",
        type=Every.of,
        metavar="N|Ns",
        help="also write what was measured so far, after every N inferences (100) or seconds (30s); the pauses for it "
        "count in none of the times",
    )
    add_answers(output)
    output.add_argument("--json", action="store_true", help="print one JSON object on stdout, and nothing else there")
    output.add_argument("--quiet", action="store_true", help="no progress, notes or tables; only answers and errors")


def run(arguments: argparse.Namespace) -> int:
    """Infer, measure, check, write, print; collective. Exit status 0, or 1 if the check fails."""
    settle_in_flight(arguments)
    check_launch(arguments)
    if arguments.keep_going:
        return keep_going(arguments, arguments.known)
    caught = catch_signals(at_once=True)  # before the seconds that the imports take
    if openmpi.survives():
        starting.begin()
    from mpiconv.cli.inference import infer  # torch and MPI only now, so that --help is quick

    return infer(arguments, caught)
