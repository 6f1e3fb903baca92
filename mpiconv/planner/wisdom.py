"""What was measured of units before, as FFTW calls it wisdom: seconds by unit shape and box, kept in a file. Pure.

There is a file for every processor, number of threads, version of torch and way to compute. Any network that has units
of the same shape uses it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mpiconv.errors import MpiconvError
from mpiconv.files import write_text
from mpiconv.graph.form import Graph, Unit
from mpiconv.partition.box import Box, Span
from mpiconv.partition.plan import FLOAT_BYTES
from mpiconv.partition.receptive import box_flops, box_weights
from mpiconv.planner.unit_times import Point, points_of
from mpiconv.reading import read_json

WISDOM_VERSION = 1

CUTS = (4, 8, 2)
"""Into how many parts a unit is cut, by channels and by rows, to measure one part; in this order after the whole."""

MOST_WEIGHT_BYTES = 2**26
"""A box with more weights than that is not measured: what is known of a smaller one is scaled up."""

Times = dict[str, tuple[Point, ...]]
"""What was measured of each unit, by its ``shape_key``; sorted."""


@dataclass(frozen=True)
class Basis:
    """What measured times hold for.

    Attributes
    ----------
    processor
        Its model, as the system calls it.
    threads
        Torch threads.
    torch
        Its version.
    compute
        The local engine, as ``--compute`` names it.
    caches
        ``cold``, as a unit finds them after all others; or ``warm``, as an emulated device's time is taken.
    """

    processor: str
    threads: int
    torch: str
    compute: str = "auto"
    caches: str = "cold"

    def path(self, folder: Path) -> Path:
        """The file for it in a folder."""
        name = blake2b(json.dumps(asdict(self), sort_keys=True).encode(), digest_size=8).hexdigest()
        return folder / f"{name}.json"


def load(folder: Path, basis: Basis) -> tuple[Times, str]:
    """What was measured on this basis, and a note where there is a file that is of no use; nothing of it is used then.

    Nothing and no note where there is no file.
    """
    path = basis.path(folder)
    if not path.exists():
        return {}, ""
    try:
        data = read_json(path, "file of measured times")
        if not isinstance(data, Mapping) or data.get("mpiconv_wisdom") != WISDOM_VERSION:
            found = data.get("mpiconv_wisdom") if isinstance(data, Mapping) else None
            raise MpiconvError(f"{path}: mpiconv_wisdom is {found!r}, {WISDOM_VERSION} is wanted")
        if data.get("basis") != asdict(basis):
            raise MpiconvError(f"{path}: its times were measured with something else than its name says")
        try:
            return times_of(data.get("units")), ""
        except MpiconvError as error:
            raise MpiconvError(f"{path}: {error}") from None
    except MpiconvError as error:
        return {}, f"{error}: ignored, what is needed is measured again"


def save(folder: Path, basis: Basis, times: Times) -> str:
    """Write what was measured, with what the file has already; returns a note where it cannot be written."""
    path = basis.path(folder)
    both = merged(load(folder, basis)[0], times)
    units = ",\n".join(f"{json.dumps(key)}: {json.dumps(points)}" for key, points in sorted(both.items()))
    head = json.dumps({"mpiconv_wisdom": WISDOM_VERSION, "basis": asdict(basis)})[:-1]
    try:
        write_text(path, f'{head}, "units": {{\n{units}\n}}}}\n')
    except MpiconvError as error:
        return f"measured times of units are not kept: {error}"
    return ""


def forget(folder: Path) -> int:
    """Remove all files of measured times, and of plans kept there, from a folder; how many there were.

    Raises MpiconvError where one cannot be removed.
    """
    found = 0
    try:
        for path in folder.glob("*.json"):
            with suppress(FileNotFoundError):  # another rank of this machine was first
                path.unlink()
                found += 1
    except OSError as error:
        raise MpiconvError(f"cannot remove what is in {folder}: {error.strerror}") from None
    return found


def times_of(units: Any) -> Times:
    """Measured times from plain data, as a file holds them.

    Raises MpiconvError, naming the unit, unless it is a table of lists of [channels, rows, columns, batch, seconds].
    """
    if not isinstance(units, Mapping):
        raise MpiconvError("a table of measured times by unit is wanted")
    return {key: points_of(key, points) for key, points in units.items()}


def merged(old: Times, new: Times) -> Times:
    """All points of both; of one box the new one."""
    found = {}
    for key in {**old, **new}:
        points = {point[:4]: point for point in (*old.get(key, ()), *new.get(key, ()))}
        found[key] = tuple(sorted(points.values()))
    return found


def scaled(times: Times, factor: float) -> Times:
    """The same for a device that takes ``factor`` times as long, to four digits."""
    return {
        key: tuple((*point[:4], float(f"{factor * point[4]:.4g}")) for point in points) for key, points in times.items()
    }


@dataclass(frozen=True)
class Case:
    """A box of a unit that is to be measured; the lower the ``level``, the sooner."""

    unit: Unit
    box: Box
    level: int


def missing(graph: Graph, times: Times, batch: int) -> list[Case]:
    """What of a network's units has yet to be measured: all whole units first, then parts; of each the costly first.

    Units of the same shape are measured once. What only the root computes, with the model's own modules, is left out.
    """
    units = {unit.shape_key: unit for unit in graph.body if not unit.opaque}
    cases = [case for unit in units.values() for case in cases_of(unit)]
    had = {(key, point[:4]) for key, points in times.items() for point in points}
    wanted = [case for case in cases if (case.unit.shape_key, (*case.box.shape, batch)) not in had]
    return sorted(wanted, key=lambda case: (case.level, -box_flops(case.unit, case.box), -case.box.size))


def cases_of(unit: Unit) -> list[Case]:
    """The whole of a unit, and a part of each number of ``CUTS`` by channels and by rows; each size once.

    Boxes with more than ``MOST_WEIGHT_BYTES`` are not among them: the largest that has less is the first then.
    """
    whole = Box.whole(unit.out_shape)
    boxes = {whole.shape: whole}
    for parts in CUTS:
        for axis in (0, 1):
            length = unit.out_shape[axis]
            if length >= parts:
                spans = list(whole.spans)
                spans[axis] = _part(length, parts)
                box = Box(*spans)
                boxes.setdefault(box.shape, box)
    small = [box for box in boxes.values() if FLOAT_BYTES * box_weights(unit, box) <= MOST_WEIGHT_BYTES]
    largest = max(small, key=lambda box: box.size, default=None)
    cuts = [box for box in small if box is not largest]
    return [Case(unit, box, 0) for box in small if box is largest] + [
        Case(unit, box, level) for level, box in enumerate(cuts, 1)
    ]


def _part(length: int, parts: int) -> Span:
    """The second part of a cut: if there are more than two it has neighbours on both sides, as most have."""
    size = -(-length // parts)
    low = min(size, length - size)
    return Span(low, low + size)


def of_network(times: Times, units: Iterable[Unit]) -> Times:
    """The part that a network's units use."""
    keys = {unit.shape_key for unit in units}
    return {key: points for key, points in times.items() if key in keys}
