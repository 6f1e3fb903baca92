"""``mpiconv probe``: how fast the devices of this job compute and the links between them carry, as a file."""

from __future__ import annotations

import argparse
import os

from mpiconv.cli.options import add_emulation_options, positive, size

EPILOG = """\
Start it like a run, one rank on each device, with nothing else running there:

  mpirun --hostfile FILE -n 4 mpiconv probe --out cluster.toml

What is in the file, for every device: GFLOP/s of a convolution with 1x1, 3x3, 5x5, 7x7 (stride 2) and 11x11 (stride 4)
kernels, of a depthwise 3x3 and of a linear layer, computed as mpiconv run does; B/s of weights of the linear layer;
cores, threads, memory in B. For every ordered pair alpha in s and beta in B/s: n bytes take alpha + n / beta. And
whether a second pair of devices that talks at once slows the first (medium = "shared") or does not ("switch");
this takes four hosts, or three, of which each sends to the next. A pair takes 1 to 2 s at most, a device about 4 s
times its --pace.

With --model NAME also how long the units of that network take on every device, whole and in parts, for mpiconv plan
--cluster to be more precise: up to 5 s more (--quick: 2 s) on the ranks of one machine together, longer on a slow one.
These times are kept on each device in the user's cache folder, for any network with units of the same shape;
--forget empties it.
"""
ROUNDS, QUICK_ROUNDS = 9, 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mpiconv probe``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument(
        "--out", default="cluster.toml", metavar="FILE", help="the file to write (default: %(default)s)"
    )
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="torch threads per rank (default: 1)")
    rounds = parser.add_mutually_exclusive_group()
    rounds.add_argument(
        "--repeats",
        type=positive,
        default=ROUNDS,
        metavar="N",
        help=f"rounds in which everything is measured once; medians of the faster half are kept (default: {ROUNDS})",
    )
    rounds.add_argument(
        "--quick",
        dest="repeats",
        action="store_const",
        const=QUICK_ROUNDS,
        help=f"{QUICK_ROUNDS} rounds: a third of the time, for values that scatter more",
    )
    parser.add_argument("--json", action="store_true", help="print what is in the file as one JSON object")
    parser.set_defaults(wait=os.environ.get("MPICONV_WAIT", "auto"))
    _add_units(parser)
    add_emulation_options(parser)


def _add_units(parser: argparse.ArgumentParser) -> None:
    """Of which network the units are measured as well."""
    units = parser.add_argument_group("units of a network")
    units.add_argument(
        "--model",
        metavar="NAME",
        help="also measure the units of this network: a named model, torchvision:NAME or package.module:callable",
    )
    units.add_argument("--classes", type=positive, metavar="N", help="its outputs (default: 10)")
    units.add_argument(
        "--input-size", type=size, metavar="HxW", help="rows x columns in pixels (default: the model's own)"
    )
    units.add_argument(
        "--batch", type=positive, default=1, metavar="N", help="pictures that travel together (default: 1)"
    )
    units.add_argument(
        "--forget",
        action="store_true",
        help="forget first what was measured of any network's units, on every device, and the plans that runs kept; "
        "without --model that is all",
    )
    parser.set_defaults(weights=None, seed=0, allow_nonfinite=False)


def run(arguments: argparse.Namespace) -> int:
    """Measure, write and print; collective. Exit status 0."""
    from mpiconv.cli.probe_table import measure  # torch and MPI only now, so that --help is quick

    return measure(arguments)
