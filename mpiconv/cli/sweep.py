"""``mpiconv sweep``: a grid of runs, each its own job, into one folder of results."""

from __future__ import annotations

import argparse
import re

EXAMPLE = """\
A sweep file, with the options of mpiconv run (- written as _) and ranks:

  launcher = "mpirun -n {ranks}"        # or "python scripts/testbed.py run -n {ranks} --"
  [fixed]
  model = "alexnet"
  repeats = 20
  [grid]
  scheme = ["kpm", "wpm"]
  ranks = [1, 2, 3]

SIGUSR1 or SIGTERM ends the point that is running early and starts no other; the same command later goes on.
On a cluster: scripts/slurm/sweep.sbatch, one array task for every point or for every N-th.
"""


def part(text: str) -> tuple[int, int]:
    """``2/4`` as (2, 4)."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N")
    return int(match[1]), int(match[2])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mpiconv sweep``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    parser.add_argument("file", metavar="SWEEP.toml", help="what to run")
    parser.add_argument(
        "--out", default="results/sweep", metavar="DIR", help="folder of the results (default: %(default)s)"
    )
    parser.add_argument(
        "--part", type=part, default=(1, 1), metavar="I/N", help="only every N-th point, for job arrays"
    )
    parser.add_argument("--again", action="store_true", help="run finished points again as well")
    parser.add_argument("--count", action="store_true", help="print how many points there are, run nothing")
    parser.add_argument("--list", action="store_true", help="print the points and which are done, run nothing")


def run(arguments: argparse.Namespace) -> int:
    """Run what is not done yet; exit status 1 if a point failed or a signal left some."""
    from mpiconv.cli.sweep_run import sweep  # not before: --help needs no h5py

    return sweep(arguments)
