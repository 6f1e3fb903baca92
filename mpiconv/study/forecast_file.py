"""A forecast as an HDF5 file that opens in xarray: every axis a dimension scale, ``estimated`` = 1."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

import h5py
import numpy as np

import mpiconv
from mpiconv.measure.hdf5 import write_hdf5
from mpiconv.measure.results import git_commit
from mpiconv.planner.forecast import DIMENSIONS, QUANTITIES, Question
from mpiconv.text import safe_text

FORECAST_VERSION = 1


def write_forecast(path: str | Path, question: Question, found: Mapping[str, np.ndarray], device: str) -> None:
    """Write what ``forecast`` found; ``device`` says what devices were taken.

    Raises MpiconvError where the file cannot be written.
    """
    write_hdf5(path, lambda file: _fill(file, question, found, device))


def _fill(file: h5py.File, question: Question, found: Mapping[str, np.ndarray], device: str) -> None:
    rates = np.array(question.rates_bytes_per_s)
    scales = {
        "input_size": (_texts(sizes_of(question)), "", "rows x columns of a picture"),
        "device_count": (np.array(question.device_counts), "1", "number of devices"),
        "rate": (rates, "B/s", "rate of every link and direction, or of the shared medium"),
        "medium": (_texts(question.media), "", "what carries messages; +multicast is simulated only"),
        "scheme": (_texts(question.all_schemes), "", "how the network is split; single: all on one device"),
    }
    for name, (values, units, long_name) in scales.items():
        data = file.create_dataset(name, data=values)
        data.make_scale(name)
        data.attrs["units"], data.attrs["long_name"] = units, long_name
    for name, (units, long_name) in QUANTITIES.items():
        data = file.create_dataset(name, data=found[name])
        for axis, dimension in enumerate(DIMENSIONS):
            data.dims[axis].attach_scale(file[dimension])
        data.attrs["units"], data.attrs["long_name"], data.attrs["method"] = units, long_name, "simulation"
    about = {
        "kind": "forecast",
        "forecast_version": FORECAST_VERSION,
        "estimated": 1,
        "creator": f"mpiconv {mpiconv.__version__}",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "model": question.graphs[0].model,
        "batch": question.batch,
        "head": question.head,
        "gather": str(question.gather),
        "device": device,
        "link_alpha_s": question.alpha_s,
    }
    for key, value in about.items():
        file.attrs[key] = safe_text(value) if isinstance(value, str) else value


def sizes_of(question: Question) -> list[str]:
    """The sizes of the pictures, as ``224x224``."""
    return ["x".join(map(str, graph.input_shape[1:])) for graph in question.graphs]


def _texts(values: object) -> np.ndarray:
    return np.array([safe_text(str(value)) for value in values], object)  # type: ignore[attr-defined]
