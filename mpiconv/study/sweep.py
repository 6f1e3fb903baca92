"""Sweeps: a grid of runs from a TOML file, each its own job, resumable by the result files that are there."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any

from mpiconv.errors import MpiconvError, UsageError
from mpiconv.measure.results import STILL_RUNNING, ended_early
from mpiconv.reading import read_toml
from mpiconv.signals import Caught

GRACE_S = 10
LONGEST_S = 1e7
LONGEST_NAME = 180
MOST_POINTS = 100_000
LAUNCHER = "mpirun -n {ranks}"
TABLES = ("launcher", "timeout_s", "fixed", "grid")


@dataclass(frozen=True)
class Point:
    """One run: what it is called, its ranks, and its options as words of a command line."""

    name: str
    ranks: int
    words: tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """All points, and how each is started; ``launcher`` has ``{ranks}`` in it."""

    points: tuple[Point, ...]
    launcher: str
    timeout_s: float

    def command(self, point: Point, output: Path) -> list[str]:
        """The command line of a point that writes its results to ``output``."""
        launch = shlex.split(self.launcher.replace("{ranks}", str(point.ranks)))
        run = [sys.executable, "-m", "mpiconv", "run", *point.words]
        return [*launch, *run, "--name", point.name, "--output", str(output), "--quiet"]


def read_sweep(path: str | Path, options: Sequence[str]) -> Sweep:
    """Read a sweep: ``[grid]`` has a list for every option that varies, ``[fixed]`` a value for the others.

    Parameters
    ----------
    path
        A TOML file.
    options
        The options that a run takes, ``-`` written as ``_``; ``ranks`` is one too.

    Raises
    ------
    MpiconvError
        The file cannot be read.
    UsageError
        A key is unknown (the nearest right one is named) or a value is of the wrong kind.
    """
    data = read_toml(path, "sweep")
    _check_keys(path, data, TABLES)
    fixed, grid = data.get("fixed", {}), data.get("grid", {})
    if not isinstance(fixed, Mapping) or not isinstance(grid, Mapping) or not grid:
        raise UsageError(f"{path}: a table [grid] with at least one option is wanted, and [fixed] is a table")
    for table in (fixed, grid):
        _check_keys(path, table, ("ranks", *options))
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"{path}: {key} in [grid] is {values!r}: a list of values is wanted")
        if key in fixed:
            raise UsageError(f"{path}: {key} is both in [fixed] and in [grid]")
    launcher, timeout_s = data.get("launcher", LAUNCHER), data.get("timeout_s", 3600)
    if not isinstance(launcher, str) or "{ranks}" not in launcher:
        raise UsageError(
            f"{path}: launcher is {launcher!r}: a command with {{ranks}} in it is wanted, like {LAUNCHER!r}"
        )
    try:
        shlex.split(launcher)
    except ValueError as error:
        raise UsageError(f"{path}: launcher is {launcher!r}: {error}") from None
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s < LONGEST_S:
        raise UsageError(f"{path}: timeout_s is {timeout_s!r}: a number of seconds is wanted")
    count = math.prod(map(len, grid.values()))
    if count > MOST_POINTS:
        raise UsageError(f"{path}: [grid] has {count} points, {MOST_POINTS} is the most for a sweep")
    points = tuple(_points(path, fixed, grid))
    if len({point.name for point in points}) < len(points):
        raise UsageError(f"{path}: a value stands twice in [grid]")
    return Sweep(points, launcher, timeout_s)


def _check_keys(path: str | Path, table: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in table:
        if key not in known:
            close = get_close_matches(key, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"
            raise UsageError(f"{path} has the unknown key {key!r}{hint}")


def _points(path: str | Path, fixed: Mapping[str, Any], grid: Mapping[str, list[Any]]) -> Iterator[Point]:
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        name = "_".join(f"{key}-{_text(value)}" for key, value in chosen.items())
        options = {**fixed, **chosen}
        ranks = options.pop("ranks", 1)
        if isinstance(ranks, bool) or not isinstance(ranks, int) or ranks < 1:
            raise UsageError(f"{path}: ranks is {ranks!r}: a whole number from 1 up is wanted")
        words = tuple(_words(options))
        if any("\0" in word for word in words):
            raise UsageError(f"{path}: an option of {name!r} has the character NUL in it, which no command takes")
        yield Point(_file_name(name), ranks, words)


def _file_name(name: str) -> str:
    """The name of a point as one of a file; of a long one its beginning and a hash of it all."""
    safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in name)
    if len(safe.encode()) <= LONGEST_NAME:
        return safe
    return f"{safe.encode()[:LONGEST_NAME].decode(errors='ignore')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _words(options: Mapping[str, Any]) -> Iterator[str]:
    """Options as words: a true switch alone, a false one not at all, a list of files as several words."""
    for key, value in options.items():
        if value is False:
            continue
        yield f"--{key.replace('_', '-')}"
        if key == "image":
            yield from (map(str, value) if isinstance(value, list) else [str(value)])
        elif value is not True:
            yield _text(value)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def why_not_done(output: Path) -> str:
    """What a point's result file lacks, empty if it is whole: it is broken or not there, or the run ended early."""
    try:
        signal_name = ended_early(output)
    except MpiconvError as error:
        return str(error)
    if signal_name == STILL_RUNNING:
        return "was still running when it was written last"
    return f"ended early by {signal_name}" if signal_name else ""


def is_done(output: Path) -> bool:
    """Whether a point's result file is there and whole, of a run that came to its end."""
    return not why_not_done(output)


def run_point(sweep: Sweep, point: Point, folder: Path, caught: Caught) -> str:
    """Run a point as a job of its own; why it failed in one line, or nothing. Its log stands beside the result file.

    A signal that is caught meanwhile is passed on to the job, which then ends early with what it measured so far.
    """
    output, log = folder / f"{point.name}.h5", folder / f"{point.name}.log"
    command = sweep.command(point, output)
    try:
        with log.open("w", encoding="utf-8") as file:
            print(shlex.join(command), file=file, flush=True)
            status = _finish(command, file, sweep.timeout_s, caught)
    except OSError as error:
        return f"cannot start {command[0]}: {error.strerror}"
    if status is None:
        return f"did not end within {sweep.timeout_s:g} s"
    missing = why_not_done(output)
    if status == 0 and not missing:
        return ""
    said = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    other = missing if status == 0 else f"exit status {status}, see {log}"
    reason = next((line for line in said if line.startswith("mpiconv: error:")), other)
    return reason.removeprefix("mpiconv: error: ")


def _finish(command: list[str], log: IO[str], timeout_s: float, caught: Caught) -> int | None:
    """The exit status of a job; None for one that was ended, with all its ranks, because it took too long."""
    with subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
    ) as job:
        # SIGUSR1 whatever was caught: mpirun hands it to all ranks, while at SIGTERM it kills them within half a second
        caught.tell(lambda: job.send_signal(signal.SIGUSR1))
        try:
            status = job.wait(timeout_s)
            if status == -signal.SIGUSR1:  # a launcher that did not pass it on and left its ranks behind
                _end_group(job.pid, signal.SIGTERM)
            return status
        except subprocess.TimeoutExpired:
            _end_group(job.pid, signal.SIGTERM)
            return None
        except BaseException:
            _end_group(job.pid, signal.SIGTERM)
            raise
        finally:
            caught.tell(None)
            try:
                job.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                _end_group(job.pid, signal.SIGKILL)


def _end_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)
