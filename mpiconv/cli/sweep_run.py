"""The work behind ``mpiconv sweep``: which points are left, running them, telling which failed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from mpiconv.errors import MpiconvError
from mpiconv.measure.results import check_writable
from mpiconv.study.sweep import is_done, read_sweep, run_point


def sweep(arguments: argparse.Namespace) -> int:
    """Run the points of this part that have no result file yet, the rest even if one fails.

    Raises MpiconvError at the end, naming the first that failed.
    """
    plan, folder = read_sweep(arguments.file), Path(arguments.out)
    which, parts = arguments.part
    points = plan.points[which - 1 :: parts]
    left = [point for point in points if arguments.again or not is_done(folder / f"{point.name}.h5")]
    if arguments.list:
        for point in points:
            print(f"{'to do' if point in left else 'done '}  {point.name}")
        return 0
    check_writable(folder / "result.h5")
    print(f"{len(points)} points, {len(points) - len(left)} done already, into {folder}", file=sys.stderr)
    failed: dict[str, str] = {}
    bar = tqdm(left, desc="runs", unit="run", disable=not sys.stderr.isatty())
    for point in bar:
        bar.set_postfix_str(point.name)
        reason = run_point(plan, point, folder)
        if reason:
            failed[point.name] = reason
            tqdm.write(f"failed   {point.name}: {reason}", file=sys.stderr)
    print(f"{len(left) - len(failed)} run, {len(failed)} failed, {len(points) - len(failed)} of {len(points)} done")
    if failed:
        name, reason = next(iter(failed.items()))
        raise MpiconvError(
            f"{len(failed)} of {len(left)} runs failed, the first is {name}: {reason}; run the same again to retry"
        )
    return 0
