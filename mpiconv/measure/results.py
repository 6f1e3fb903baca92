"""Result files: one HDF5 file a run, every axis a dimension scale, written whole or not at all."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import mpiconv
from mpiconv.errors import MpiconvError
from mpiconv.measure.energy import EnergyProfile
from mpiconv.measure.record import Record

SCHEMA_VERSION = 1

RANK_UNIT = ("rank", "unit")
TIMES = ("repeat", "rank", "unit")


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
        os.replace(temporary, path)
    except OSError as error:
        raise MpiconvError(f"cannot write {path}: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _fill(file: h5py.File, record: Record, profile: EnergyProfile, attributes: Mapping[str, Any]) -> None:
    scales = {
        "repeat": (np.arange(len(record.latency_s)), "1", "number of the measured inference"),
        "rank": (np.arange(record.ranks), "1", "MPI rank; 0 is the root"),
        "unit": (_strings(record.units), "", "unit of the network, the head last"),
    }
    for name, (values, units, long_name) in scales.items():
        data = file.create_dataset(name, data=values)
        data.make_scale(name)
        _describe(data, units, long_name)
    for name, dims, values, units, long_name in _variables(record, profile):
        data = file.create_dataset(name, data=values)
        for axis, dim in enumerate(dims):
            data.dims[axis].attach_scale(file[dim])
        _describe(data, units, long_name)
    constants = {f"energy_{key}": value for key, value in asdict(profile).items() if key != "link_bytes_per_s"}
    provenance = {
        "schema_version": SCHEMA_VERSION,
        "creator": f"mpiconv {mpiconv.__version__}",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "energy_method": "model",
        "link_bytes_per_s": profile.link_bytes_per_s,
        "link_parameters": "link_bytes_per_s is assumed by the energy model, not measured",
    }
    for key, value in {**provenance, **constants, **attributes}.items():
        file.attrs[key] = value


def _variables(record: Record, profile: EnergyProfile) -> list[tuple[str, tuple[str, ...], Any, str, str]]:
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
        ("compute_energy", ("rank",), profile.compute_joules(record), "J", "energy of computing per inference, model"),
        (
            "transfer_energy",
            ("rank",),
            profile.transfer_joules(record),
            "J",
            "energy of transfers per inference, model",
        ),
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
