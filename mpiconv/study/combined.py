"""Many runs in one small file, and read back as points of a figure: totals per rank and the raw latencies."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

import mpiconv
from mpiconv.errors import MpiconvError, need
from mpiconv.files import replaced
from mpiconv.measure.results import COMBINED, RUN, read_each, read_file

COMBINED_VERSION = 1
PER_RANK = {
    "compute_time": ("s", "time computing all units, median of the repeats"),
    "exchange_time": ("s", "time in all exchanges, waiting included, median of the repeats"),
    "head_time": ("s", "time computing the head, median of the repeats"),
    "bytes_sent": ("B", "payload sent per inference, once per receiver"),
    "bytes_received": ("B", "payload needed per inference and not held"),
    "multicast_bytes": ("B", "payload sent per inference, once for all its receivers"),
    "messages_sent": ("1", "messages sent per inference, one per receiver"),
    "picture_bytes": ("B", "payload received per inference before the first unit: of the picture"),
    "flops": ("1", "floating-point operations per inference, 2 x multiply-adds"),
    "weight_bytes": ("B", "weights that the rank computes with"),
    "peak_rss": ("B", "most memory resident in the process"),
    "pace": ("1", "how many times slower than its core the rank was made to compute, dilation included"),
    "pace_overrun": ("1", "part of the units in which that pace could not be kept"),
    "compute_energy": ("J", "energy of computing per inference, model"),
    "transfer_energy": ("J", "energy of transfers per inference, model"),
}
TEXTS = {
    "name": "name of the run",
    "model": "network",
    "scheme": "how the network is split",
    "gather": "where a unit ends and the exchange happens: after the convolution or after its pooling",
    "host": "host of rank 0",
    "emulated": "whether the devices were emulated on one machine",
    "created": "when the run ended, ISO 8601, UTC",
    "git_commit": "commit of the program that ran",
}
NUMBERS = {
    "ranks": ("1", "ranks, one per device"),
    "offload": ("1", "share of the last rank where there are two, else NaN"),
    "link_rate": ("B/s", "link rate that the lab was set to and the energy model assumes"),
    "dilation": ("1", "how many times slower than told everything ran; all times are divided by it"),
}
SHARED = ("mpi_library", "torch_version", "energy_name", "energy_compute_power_w", "energy_transfer_power_w",
          "energy_traffic", "energy_source", "energy_k", "energy_frequency_hz")  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One run: what it was, its latencies in s, and arrays over its ranks, named and in units as in ``PER_RANK``."""

    model: str
    scheme: str
    gather: str
    host: str
    emulated: bool
    dilation: float
    rate_mb_per_s: float
    ranks: int
    offload: float
    latency_s: np.ndarray
    per_rank: Mapping[str, np.ndarray]
    git_commit: str = ""

    @property
    def median_s(self) -> float:
        """Median latency in s."""
        return float(np.median(self.latency_s))

    @property
    def pace(self) -> float:
        """How many times slower than the emulating core the device of rank 0 is."""
        return float(self.per_rank["pace"][0]) / self.dilation

    @property
    def device_joules(self) -> float:
        """Mean energy of a device per inference by the model, computing and transferring, in J."""
        return float((self.per_rank["compute_energy"] + self.per_rank["transfer_energy"]).mean())


def combine(paths: Iterable[str | Path], left_out: Callable[[str], object] = warnings.warn) -> Any:
    """Result files, and files combined before, as one ``xarray.Dataset`` with the dimensions run, repeat and rank.

    Parameters
    ----------
    paths
        The files.
    left_out
        Is told which files cannot be read, and why.

    Raises
    ------
    MpiconvError
        No file can be read: what is wrong with the first one.
    """
    xarray = need("xarray", "report")
    parts = [data for _, data in read_each(paths, _part, left_out)]
    if not parts:
        raise MpiconvError("there are no result files to combine")
    data = xarray.concat(parts, "run", data_vars="all", join="outer", combine_attrs="drop_conflicts")
    texts = [name for name in data.data_vars if data[name].dtype.kind in "OUT"]
    for name in texts:
        data[name] = data[name].astype(object).fillna("").assign_attrs(data[name].attrs)
    return data


def write_combined(data: Any, path: str | Path) -> None:
    """Write combined runs as HDF5 (netCDF4): whole, or not at all.

    Raises MpiconvError, naming the file, where it cannot be written.
    """
    numbers = [name for name in data.data_vars if data[name].dtype.kind in "if"]
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    data = data.assign_attrs(
        combined_version=COMBINED_VERSION, combined_by=f"mpiconv {mpiconv.__version__}", combined=now
    )
    encoding = {name: {"zlib": True, "complevel": 9} for name in numbers}
    image = io.BytesIO()
    stores = need("xarray.backends", "report")
    with need("h5netcdf", "report").File(image, "w") as file:
        data.dump_to_store(stores.H5NetCDFStore(file), encoding=encoding)
    with replaced(path) as target:
        target.write(image.getbuffer())


def points(data: Any) -> list[Point]:
    """The runs of a combined dataset."""
    return [_point(data.isel(run=i)) for i in range(data.sizes["run"])]


def _point(run: Any) -> Point:
    ranks = int(run["ranks"])
    latency = np.asarray(run["latency"].values)
    return Point(
        **{name: str(run[name].values) for name in ("model", "scheme", "gather", "host", "git_commit")},
        emulated=str(run["emulated"].values) == "yes",
        dilation=float(run["dilation"]),
        rate_mb_per_s=float(run["link_rate"]) / 1e6,
        ranks=ranks,
        offload=float(run["offload"]),
        latency_s=latency[np.isfinite(latency)],
        per_rank={name: np.asarray(run[name].values[:ranks]) for name in PER_RANK},
    )


def _part(path: str | Path) -> Any:
    """A result file, or a file combined before, as a dataset of one run or several."""
    xarray = need("xarray", "report")
    data = read_file(path, (RUN, COMBINED))
    try:
        if "combined_version" in data.attrs:
            return _checked(data)
        shared = {key: data.attrs[key] for key in SHARED if key in data.attrs}
        return xarray.Dataset(_variables(data), _coordinates(data), shared)
    except MpiconvError as error:
        raise MpiconvError(f"{path} {error}") from None
    except Exception as error:  # whatever xarray makes of a damaged one
        raise MpiconvError(f"{path} lacks what a figure needs: {' '.join(str(error).split())}") from None


def _checked(data: Any) -> Any:
    """Combined runs that can be worked with. Raises MpiconvError, without the file's name, for others."""
    version = data.attrs["combined_version"]
    if not isinstance(version, int | np.integer) or version != COMBINED_VERSION:
        raise MpiconvError(f"has combined_version {version}, this mpiconv reads {COMBINED_VERSION}")
    dims = {
        "latency": ("run", "repeat"),
        **dict.fromkeys(PER_RANK, ("run", "rank")),
        **dict.fromkeys(NUMBERS, ("run",)),
    }
    for name in (*dims, *TEXTS):
        if name not in data:
            raise MpiconvError(f"holds combined runs, but has no {name}: combine them again")
        if name in dims and (data[name].dims != dims[name] or data[name].dtype.kind not in "iuf"):
            raise MpiconvError(f"is damaged: {name} is no number along {', '.join(dims[name])}")
        if name in TEXTS and (data[name].dims != ("run",) or not all(isinstance(t, str) for t in data[name].values)):
            raise MpiconvError(f"is damaged: {name} is no text along run")
    if not data.sizes["run"] or not (np.nanmax(data["ranks"].values) <= data.sizes["rank"]):
        raise MpiconvError("is damaged: it has no runs, or runs on more ranks than it knows of")
    return data


def _coordinates(data: Any) -> dict[str, Any]:
    about = {"repeat": "number of the measured inference", "rank": "MPI rank; 0 is the root"}
    return {
        name: (name, np.arange(data.sizes[name]), {"units": "1", "long_name": text}) for name, text in about.items()
    }


def _variables(data: Any) -> dict[str, Any]:
    attributes = data.attrs
    shares = np.atleast_1d(attributes["shares"]).astype(float)
    numbers = {
        "ranks": data.sizes["rank"],
        "offload": shares[1] / sum(shares) if len(shares) == 2 else np.nan,
        "link_rate": attributes["link_bytes_per_s"],
        "dilation": attributes["dilation"],
    }
    texts = {"host": str(data.hostname.values[0])}
    arrays = {
        "compute_time": data.compute_time.sum("unit").median("repeat"),
        "exchange_time": data.exchange_time.sum("unit").median("repeat"),
        "head_time": data.compute_time.isel(unit=-1).median("repeat"),
        "picture_bytes": data.bytes_received.isel(unit=0),
    }
    for name in PER_RANK:
        if name not in arrays:
            arrays[name] = data[name].sum("unit") if "unit" in data[name].dims else data[name]
    found: dict[str, Any] = {
        "latency": (
            ("run", "repeat"),
            data.latency.values[None],
            {"units": "s", "long_name": "time from the picture on the root to the answer there"},
        )
    }
    for name, (units, long_name) in PER_RANK.items():
        values = np.asarray(arrays[name].values, float)[None]
        found[name] = (("run", "rank"), values, {"units": units, "long_name": long_name})
    for name, (units, long_name) in NUMBERS.items():
        found[name] = ("run", np.array([numbers[name]], float), {"units": units, "long_name": long_name})
    for name, long_name in TEXTS.items():
        text = np.array([texts.get(name) or str(attributes.get(name, ""))], object)
        found[name] = ("run", text, {"units": "", "long_name": long_name})
    return found
