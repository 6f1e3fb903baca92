"""Look at every value of a sweep before its first run, so that none fails hours later for a slip."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from typing import NoReturn

from mpiconv.cli import Parser, run
from mpiconv.cli.options import AUTO, pace_of, shares_for
from mpiconv.data.datasets import is_labelled
from mpiconv.errors import MpiconvError, UsageError
from mpiconv.measure.energy import load_profile
from mpiconv.models.registry import check_name
from mpiconv.partition.box import normalised
from mpiconv.partition.schemes import check_scheme
from mpiconv.partition.turns import TURNS
from mpiconv.planner.baselines import BASELINES
from mpiconv.study.sweep import Point


class _Parser(Parser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


OWN = (
    *("help", "name", "output", "quiet", "json", "answers", "save_every", "fsync_every", "resume", "keep_going"),
    *("ranks", "hostfile", "launcher", "max_restarts", "restarted"),
)
"""Options of ``mpiconv run`` that a sweep sets itself, or that would have all points write to one file."""


def run_options() -> tuple[str, ...]:
    """The options of ``mpiconv run`` that a sweep can set, ``-`` written as ``_``."""
    parser = _Parser("mpiconv run")
    run.add_arguments(parser)
    return tuple(action.dest for action in parser._actions if action.dest not in OWN)  # noqa: SLF001


def check_points(path: str, points: Iterable[Point]) -> None:
    """Raise UsageError for the first value that ``mpiconv run`` would not take; file, option and value are named."""
    parser = _Parser("mpiconv run")
    run.add_arguments(parser)
    point = None
    try:
        for point in points:
            _check(parser.parse_args(point.words), point.ranks)
    except MpiconvError as error:
        raise UsageError(f"{path}, {point.name if point else ''}: {error}") from None


def _check(arguments: argparse.Namespace, ranks: int) -> None:
    """Raise MpiconvError for a value that does not fit: a wrong name, as many numbers as no ranks, a missing file."""
    check_name(arguments.model)
    if arguments.scheme is not None:
        check_scheme(arguments.scheme, (*BASELINES, AUTO, TURNS))
    load_profile(arguments.energy)
    pace_of(arguments, 0, ranks)
    shares = shares_for(arguments, ranks)
    if shares is not None:
        normalised(shares, ranks)
    files = [arguments.weights, *(arguments.image or ())]
    if arguments.data and not is_labelled(arguments.data):
        files.append(arguments.data)
    for file in filter(None, files):
        if not os.path.exists(file):
            raise UsageError(f"there is no {file}")
