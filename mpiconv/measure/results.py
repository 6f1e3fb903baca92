"""Result files: one HDF5 file a run, every axis a dimension scale, written whole or not at all."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import mpiconv
from mpiconv.errors import MpiconvError, need
from mpiconv.measure.energy import EnergyProfile
from mpiconv.measure.record import KINDS, Record

SCHEMA_VERSION = 1

Variable = tuple[str, tuple[str, ...], Any, str, str]
"""Name, dimensions, values, units, long_name."""

RANK_UNIT = ("rank", "unit")
TIMES = ("repeat", "rank", "unit")
ON_ROOT = "on the root's clock since the first repeat began"


def check_writable(path: str | Path) -> None:
    """Raise MpiconvError unless a file can be written at ``path``; its folder is made if need be."""
    path = Path(path)
    if path.is_dir():
        raise MpiconvError(f"cannot write {path}: it is a folder, name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise MpiconvError(f"cannot write to the folder {path.parent}: {error.strerror}") from None


def write_results(path: str | Path, record: Record, profile: EnergyProfile, attributes: Mapping[str, Any]) -> None:
    """Write a run's results: to a temporary file in the same folder, then renamed.

    Parameters
    ----------
    path
        The file; one that is there already is replaced.
    record
        What all ranks measured.
    profile
        The energy model; its constants become attributes.
    attributes
        What else describes the run.

    Raises
    ------
    MpiconvError
        The file cannot be written.
    """
    path = Path(path)
    check_writable(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            _fill(file, record, profile, attributes)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise MpiconvError(f"cannot write {path}: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def open_results(path: str | Path) -> Any:
    """Result files as xarray objects, read into memory.

    Parameters
    ----------
    path
        A file, or a pattern such as ``results/*.h5``.

    Returns
    -------
    xarray.Dataset or xarray.DataTree
        The Dataset of a file; for a pattern a DataTree with one node per file, named like it.

    Raises
    ------
    MpiconvError
        A file is missing, broken, foreign or of another schema_version, or xarray is not installed; named.
    """
    xarray = need("xarray", "report")
    need("h5netcdf", "report")
    text = str(path)
    if not has_magic(text) or os.path.exists(text):
        check_results(path)
        with xarray.open_dataset(path, engine="h5netcdf") as data:
            return data.load()
    files = sorted(glob(text, recursive=True))
    if not files:
        raise MpiconvError(f"no file matches {text}")
    names = [
        os.path.splitext(os.path.relpath(file, os.path.dirname(text.split("*", maxsplit=1)[0]) or "."))[0]
        for file in files
    ]
    return xarray.DataTree.from_dict({name: open_results(file) for name, file in zip(names, files, strict=True)})


def check_results(path: str | Path) -> None:
    """Raise MpiconvError unless the file is a result file that this version reads."""
    if not os.path.exists(path):
        raise MpiconvError(f"cannot read {path}: there is no such file")
    try:
        with h5py.File(path) as file:
            version = file.attrs.get("schema_version")
            missing = [
                name for name in ("latency", "compute_time", "exchange_time", "unit", "rank") if name not in file
            ]
    except OSError as error:
        raise MpiconvError(f"{path} is no HDF5 file, or a cut one: {error}") from None
    if version is None or missing:
        raise MpiconvError(f"{path} is no result file of mpiconv: it has no {(missing or ['schema_version'])[0]}")
    if not isinstance(version, int | np.integer) or version != SCHEMA_VERSION:
        older = isinstance(version, int | np.integer) and version < SCHEMA_VERSION
        advice = "run it again" if older else "update mpiconv"
        raise MpiconvError(f"{path} has schema_version {version}, this mpiconv reads {SCHEMA_VERSION}: {advice}")


def ended_early(path: str | Path) -> str:
    """The name of the signal that ended the run of a result file early, empty if it ran to its end.

    Raises MpiconvError as ``check_results`` does.
    """
    check_results(path)
    with h5py.File(path) as file:
        return str(file.attrs.get("ended_early", ""))


def _fill(file: h5py.File, record: Record, profile: EnergyProfile, attributes: Mapping[str, Any]) -> None:
    scales = {
        "repeat": (record.kept_every * np.arange(len(record.latency_s)), "1", "number of the measured inference"),
        "rank": (np.arange(record.ranks), "1", "MPI rank; 0 is the root"),
        "unit": (_strings(record.units), "", "unit of the network, the head last"),
    }
    for name, (values, units, long_name) in scales.items():
        data = file.create_dataset(name, data=values)
        data.make_scale(name)
        _describe(data, units, long_name)
    for name, dims, values, units, long_name in [*_variables(record, profile), *_by_kind(record)]:
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
        file.attrs[key] = value


def _by_kind(record: Record) -> Iterator[Variable]:
    """A variable of bytes and one of messages for every kind of exchange that happened."""
    for i, kind in enumerate(KINDS):
        if record.messages_sent_by_kind[..., i].any():
            sent, messages = record.bytes_sent_by_kind[..., i], record.messages_sent_by_kind[..., i]
            yield f"bytes_sent_{kind}", RANK_UNIT, sent, "B", f"bytes_sent by {kind}"
            yield f"messages_sent_{kind}", RANK_UNIT, messages, "1", f"messages_sent by {kind}"


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
    return np.array(values, object)


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
