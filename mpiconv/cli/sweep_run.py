"""The work behind ``mpiconv sweep``: which points are left, running them, telling which failed."""

from __future__ import annotations

import argparse
import sys
from datetime import timedelta
from pathlib import Path
from time import monotonic

from tqdm import tqdm

from mpiconv.cli.notes import note
from mpiconv.cli.sweep_check import check_points, run_options
from mpiconv.errors import MpiconvError
from mpiconv.files import check_writable
from mpiconv.signals import catch_signals
from mpiconv.study.sweep import Point, is_done, read_sweep, run_point, why_not_done

NAMED = 5


def progress(number: int, count: int, name: str, elapsed_s: float) -> str:
    """The line for a log: how many runs are done, the last one's name, and how long the rest will take at this pace."""
    so_far, to_go = (timedelta(seconds=round(s)) for s in (elapsed_s, elapsed_s / number * (count - number)))
    return f"run      {number} of {count}, {name}; {so_far} so far, {to_go} to go"


def sweep(arguments: argparse.Namespace) -> int:
    """Run the points of this part that have no result file yet, the rest even if one fails.

    A signal ends the point that is running early, and no other is started.

    Raises MpiconvError at the end, naming the first that failed or what a signal left.
    """
    caught = catch_signals()
    plan, folder = read_sweep(arguments.file, run_options()), Path(arguments.out)
    which, parts = arguments.part
    points = plan.points[which - 1 :: parts]
    if arguments.count:
        print(len(points))
        return 0
    left = [point for point in points if arguments.again or not is_done(folder / f"{point.name}.h5")]
    if arguments.list:
        for point in points:
            print(f"{'to do' if point in left else 'done '}  {point.name}")
        return 0
    check_points(arguments.file, left)
    check_writable(folder / "result.h5")
    for point in left:
        output = folder / f"{point.name}.h5"
        if output.exists() and not arguments.again:
            note(f"{point.name} is run again: {why_not_done(output)}")
    print(f"{len(points)} points, {len(points) - len(left)} done already, into {folder}", file=sys.stderr)
    failed: dict[str, str] = {}
    done: list[Point] = []
    terminal = sys.stderr.isatty()
    bar = tqdm(left, desc="runs", unit="run", disable=not terminal)
    began = monotonic()
    for number, point in enumerate(bar, 1):
        if caught.number:
            break
        bar.set_postfix_str(point.name)
        reason = run_point(plan, point, folder, caught)
        if not reason:
            done.append(point)
        elif not caught.number:
            failed[point.name] = reason
            tqdm.write(f"failed   {point.name}: {reason}", file=sys.stderr)
        if not terminal:
            print(progress(number, len(left), point.name, monotonic() - began), file=sys.stderr, flush=True)
    whole = len(points) - len(left) + len(done)
    print(f"{len(done)} run, {len(failed)} failed, {whole} of {len(points)} done", flush=True)
    unfinished = [point.name for point in left if point not in done and point.name not in failed]
    if unfinished:
        names = ", ".join(unfinished[:NAMED]) + (", ..." if len(unfinished) > NAMED else "")
        raise MpiconvError(
            f"ended by {caught.name} with {len(unfinished)} of {len(points)} runs left ({names}); "
            "run the same again to go on"
        )
    if failed:
        name, reason = next(iter(failed.items()))
        raise MpiconvError(
            f"{len(failed)} of {len(left)} runs failed, the first is {name}: {reason}; run the same again to retry"
        )
    return 0
