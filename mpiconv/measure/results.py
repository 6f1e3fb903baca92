"""Result files: one HDF5 file a run, every axis a dimension scale, written whole or not at all."""

from __future__ import annotations

import os
import subprocess
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from glob import glob, has_magic
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

import mpiconv
from mpiconv.errors import MpiconvError, need
from mpiconv.measure.energy import EnergyProfile
from mpiconv.measure.hdf5 import opened, write_hdf5
from mpiconv.measure.record import KINDS, Record
from mpiconv.measure.schema import RANK_UNIT, TIMES, check_run
from mpiconv.text import safe_text

SCHEMA_VERSION = 1

Variable = tuple[str, tuple[str, ...], Any, str, str]
"""Name, dimensions, values, units, long_name."""

RUN, COMBINED, BENCHMARK = KINDS_OF_FILE = (
    "is the result of a run",
    "holds runs that were combined",
    "is a benchmark of scripts/bench.py",
)
"""What a file of measurements can be."""

ADVICE = {COMBINED: ": mpiconv report --figure 8 or 9 draws it", BENCHMARK: ": mpiconv report shows it"}

STILL_RUNNING = "still running"
"""In place of a signal's name, the attribute ``ended_early`` of a file that was written while the run went on."""

T = TypeVar("T")
AnyPath = TypeVar("AnyPath", bound="str | Path")

ON_ROOT = "on the root's clock since the first repeat began"


def write_results(
    path: str | Path,
    record: Record,
    profile: EnergyProfile,
    attributes: Mapping[str, Any],
    predicted_stamps_s: np.ndarray | None = None,
) -> None:
    """Write a run's results: whole, or not at all.

    Parameters
    ----------
    path
        The file; one that is there already is replaced.
    record
        What all ranks measured.
    profile
        The energy model; its constants become attributes.
    attributes
        What else describes the run; text in it may be of any kind, odd bytes of file names too.
    predicted_stamps_s
        (rank, unit, 3), in s: what was estimated for the plan that ran, as in the record; None where nothing was.

    Raises
    ------
    MpiconvError
        The file cannot be written.
    """
    predicted = [] if predicted_stamps_s is None else _predicted(predicted_stamps_s)
    if predicted_stamps_s is not None:
        attributes = {**attributes, "predicted_latency": float(predicted_stamps_s[0, -1, 2])}
    write_hdf5(path, lambda file: _fill(file, record, profile, attributes, predicted))


def open_results(path: str | Path) -> Any:
    """Result files as xarray objects, read into memory; also files of combined runs and benchmarks.

    Parameters
    ----------
    path
        A file, or a pattern such as ``results/*.h5``.

    Returns
    -------
    xarray.Dataset or xarray.DataTree
        The Dataset of a file; for a pattern a DataTree with one node per file, named like it. A file that cannot be
        read is left out of it with a warning, unless none can.

    Raises
    ------
    MpiconvError
        A file is missing, broken, foreign or of another schema_version, or xarray is not installed; named.

    Examples
    --------
    >>> mpiconv.open_results("results/demo.h5").latency.median()
    """
    text = str(path)
    if not has_magic(text) or os.path.exists(text):
        return read_file(path)
    files = sorted(glob(text, recursive=True))
    if not files:
        raise MpiconvError(f"no file matches {text}")
    start = os.path.dirname(text.split("*", maxsplit=1)[0]) or "."
    found = read_each(files, read_file, lambda why: warnings.warn(why, stacklevel=4))
    nodes = {os.path.splitext(os.path.relpath(file, start))[0]: data for file, data in found}
    return need("xarray", "report").DataTree.from_dict(nodes)


def read_each(
    paths: Iterable[AnyPath], read: Callable[[AnyPath], T], left_out: Callable[[str], object]
) -> list[tuple[AnyPath, T]]:
    """What ``read`` makes of every file; of those that it cannot read ``left_out`` is told which and why.

    Raises MpiconvError if it can read none of them: the first one's.
    """
    found: list[tuple[AnyPath, T]] = []
    problems: list[MpiconvError] = []
    for path in paths:
        try:
            found.append((path, read(path)))
        except MpiconvError as error:  # noqa: PERF203 - reading takes much longer
            problems.append(error)
    if problems and not found:
        raise problems[0]
    for problem in problems:
        left_out(f"left out: {problem}")
    return found


def read_file(path: str | Path, kinds: Sequence[str] = KINDS_OF_FILE) -> Any:
    """A file as an ``xarray.Dataset`` in memory, if it is of one of these kinds.

    Raises MpiconvError, naming the file, if it is not, or cannot be read.
    """
    xarray = need("xarray", "report")
    need("h5netcdf", "report")
    with opened(path) as file:
        kind = _kind_of(file)
        if kind not in kinds:
            raise MpiconvError(f"{kind}, not the result of one run{ADVICE[kind]}")
        # by a file of ours, for xarray leaves open what it cannot read
        with open(path, "rb") as raw, xarray.open_dataset(raw, engine="h5netcdf") as data:
            found = data.load()
        if kind == RUN:
            check_run(found)
        return found


def _kind_of(file: h5py.File) -> str:
    """Which of ``KINDS_OF_FILE`` it is. Raises MpiconvError where it is none, or of another version."""
    if "combined_version" in file.attrs:
        return COMBINED
    if file.attrs.get("kind") == "benchmark":
        return BENCHMARK
    version = file.attrs.get("schema_version")
    missing = [name for name in ("latency", "compute_time", "exchange_time", "unit", "rank") if name not in file]
    if version is None or missing:
        raise MpiconvError(f"is no result file of mpiconv: it has no {(missing or ['schema_version'])[0]}")
    if not isinstance(version, int | np.integer) or version != SCHEMA_VERSION:
        older = isinstance(version, int | np.integer) and version < SCHEMA_VERSION
        advice = "run it again" if older else "update mpiconv"
        raise MpiconvError(f"has schema_version {version}, this mpiconv reads {SCHEMA_VERSION}: {advice}")
    return RUN


def ended_early(path: str | Path) -> str:
    """What ended the run of a result file early, empty if it ran to its end.

    A signal's name, or ``STILL_RUNNING`` in a file that was written by --save-every.

    Raises MpiconvError as ``read_file`` does.
    """
    with opened(path) as file:
        kind = _kind_of(file)
        if kind != RUN:
            raise MpiconvError(f"{kind}, not the result of one run")
        return str(file.attrs.get("ended_early", ""))


def _fill(
    file: h5py.File,
    record: Record,
    profile: EnergyProfile,
    attributes: Mapping[str, Any],
    predicted: Sequence[Variable],
) -> None:
    scales = {
        "repeat": (record.kept_every * np.arange(len(record.latency_s)), "1", "number of the measured inference"),
        "rank": (np.arange(record.ranks), "1", "MPI rank; 0 is the root"),
        "unit": (_strings(record.units), "", "unit of the network, the head last"),
    }
    for name, (values, units, long_name) in scales.items():
        data = file.create_dataset(name, data=values)
        data.make_scale(name)
        _describe(data, units, long_name)
    for name, dims, values, units, long_name in [*_variables(record, profile), *_by_kind(record), *predicted]:
        data = file.create_dataset(name, data=values)
        for axis, dim in enumerate(dims):
            data.dims[axis].attach_scale(file[dim])
        _describe(data, units, long_name)
        if name in ("compute_energy", "transfer_energy"):
            data.attrs["method"] = "model"
        elif name == "measured_energy":
            data.attrs["method"] = next((meter for meter in record.meters if meter), "none")
    constants = {f"energy_{key}": value for key, value in asdict(profile).items() if key != "link_bytes_per_s"}
    provenance = {
        "schema_version": SCHEMA_VERSION,
        "creator": f"mpiconv {mpiconv.__version__}",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "repeats_kept_every": record.kept_every,
        "link_bytes_per_s": profile.link_bytes_per_s,
        "link_parameters": "link_bytes_per_s is assumed by the energy model, not measured",
    }
    for key, value in {**provenance, **constants, **attributes}.items():
        file.attrs[key] = safe_text(value) if isinstance(value, str) else value


def _by_kind(record: Record) -> Iterator[Variable]:
    """A variable of bytes and one of messages for every kind of exchange that happened."""
    for i, kind in enumerate(KINDS):
        if record.messages_sent_by_kind[..., i].any():
            sent, messages = record.bytes_sent_by_kind[..., i], record.messages_sent_by_kind[..., i]
            yield f"bytes_sent_{kind}", RANK_UNIT, sent, "B", f"bytes_sent by {kind}"
            yield f"messages_sent_{kind}", RANK_UNIT, messages, "1", f"messages_sent by {kind}"


def _predicted(stamps_s: np.ndarray) -> list[Variable]:
    """What was estimated for each rank and unit."""
    compute, exchange = stamps_s[..., 2] - stamps_s[..., 1], stamps_s[..., 1] - stamps_s[..., 0]
    alone = "estimated before the run for one batch alone"
    return [
        ("predicted_compute_time", RANK_UNIT, compute, "s", f"time computing the unit, {alone}"),
        (
            "predicted_exchange_time",
            RANK_UNIT,
            exchange,
            "s",
            f"time in the exchange before the unit, waiting included, {alone}",
        ),
    ]


def _variables(record: Record, profile: EnergyProfile) -> list[Variable]:
    return [
        ("latency", ("repeat",), record.latency_s, "s", "time from the picture on the root to the answer there"),
        ("compute_time", TIMES, record.compute_time_s, "s", "time computing the unit"),
        ("exchange_time", TIMES, record.exchange_time_s, "s", "time in the exchange before the unit, waiting included"),
        ("bytes_sent", RANK_UNIT, record.bytes_sent, "B", "payload sent before the unit, once per receiver"),
        ("bytes_received", RANK_UNIT, record.bytes_received, "B", "payload needed before the unit and not held"),
        ("messages_sent", RANK_UNIT, record.messages_sent, "1", "messages sent before the unit, one per receiver"),
        ("multicast_bytes", RANK_UNIT, record.multicast_bytes, "B", "payload sent, once for all its receivers"),
        ("flops", RANK_UNIT, record.flops, "1", "floating-point operations, 2 x multiply-adds"),
        ("weight_bytes", ("rank",), record.weight_bytes, "B", "weights that the rank computes with"),
        (
            "peak_rss",
            ("rank",),
            record.peak_rss_bytes,
            "B",
            "most memory resident in the process up to the last repeat",
        ),
        ("threads", ("rank",), record.threads, "1", "threads that torch computes with"),
        ("pace", ("rank",), record.pace, "1", "how many times slower than its core the rank was made to compute"),
        ("pace_overrun", ("rank",), record.pace_overrun, "1", "part of the units in which that pace could not be kept"),
        ("compute_energy", ("rank",), profile.compute_joules(record), "J", "energy of computing per inference, model"),
        (
            "transfer_energy",
            ("rank",),
            profile.transfer_joules(record),
            "J",
            "energy of transfers per inference, model",
        ),
        (
            "measured_energy",
            ("rank",),
            record.measured_joules,
            "J",
            "energy of the rank's whole host per inference, metered",
        ),
        ("energy_meter", ("rank",), _strings(record.meters), "", "what metered it: rapl or ina; empty if nothing did"),
        ("exchange_start", TIMES, record.stamps_s[..., 0], "s", f"when the exchange before the unit began, {ON_ROOT}"),
        ("compute_start", TIMES, record.stamps_s[..., 1], "s", f"when computing the unit began, {ON_ROOT}"),
        (
            "clock_offset",
            ("rank",),
            record.clock_offset_s,
            "s",
            "the rank's clock minus the root's, before the repeats",
        ),
        ("clock_drift", ("rank",), record.clock_drift, "1", "how much faster the rank's clock ran than the root's"),
        ("clock_error", ("rank",), record.clock_error_s, "s", "the most that clock_offset can be wrong by"),
        ("exchange_pattern", ("unit",), _strings(record.patterns), "", "MPI pattern of the exchange before the unit"),
        ("hostname", ("rank",), _strings(record.hostnames), "", "host that the rank ran on"),
    ]


def _strings(values: Sequence[str]) -> np.ndarray:
    return np.array([safe_text(value) for value in values], object)


def _describe(data: h5py.Dataset, units: str, long_name: str) -> None:
    data.attrs["units"] = units
    data.attrs["long_name"] = long_name


def git_commit() -> str:
    """The commit of the checkout that the package runs from, empty where it is none."""
    folder = Path(mpiconv.__file__).parent
    if not (folder.parent / ".git").exists():
        return ""
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
