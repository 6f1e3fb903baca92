"""Runs read back from result files, and what can be said of one or compared between several."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mpiconv.errors import MpiconvError
from mpiconv.measure.record import typical
from mpiconv.measure.results import RUN, read_each, read_file
from mpiconv.text import safe_text

NEEDED = ("exchange_start", "compute_start", "bytes_sent", "bytes_received", "messages_sent", "flops", "weight_bytes",
          "peak_rss", "compute_energy", "transfer_energy", "hostname", "exchange_pattern")  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One result file as arrays; its name is for people and may hold any text."""

    name: str
    path: str
    data: Any

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return int(self.data.sizes["rank"])

    @property
    def units(self) -> list[str]:
        """The units' labels, the head last."""
        return [str(unit) for unit in self.data.unit.values]

    def attribute(self, name: str, default: str = "unknown") -> str:
        """An attribute of the file as text."""
        return str(self.data.attrs.get(name, default))

    def array(self, name: str) -> np.ndarray:
        """A variable's values."""
        return np.asarray(self.data[name].values)

    @property
    def network(self) -> tuple[str, str]:
        """Model and input shape: only runs with the same are compared."""
        shape = "x".join(str(int(n)) for n in np.atleast_1d(self.data.attrs.get("input_shape", [])))
        return self.attribute("model"), shape

    @property
    def workers(self) -> list[int]:
        """The ranks that compute, send or receive anything; the root, which has the pictures, is always one."""
        shares = sum(self.array(name).sum(axis=1) > 0 for name in ("flops", "bytes_sent", "bytes_received"))
        return sorted({0, *np.flatnonzero(shares).tolist()})

    @property
    def hosts(self) -> set[str]:
        """The hosts of its workers."""
        return set(self.array("hostname")[self.workers].tolist())

    @property
    def latency_s(self) -> float:
        """Median latency in s."""
        return float(np.median(self.array("latency")))

    def busy_s(self, name: str) -> np.ndarray:
        """(rank, unit): median of ``compute_time`` or ``exchange_time`` over the repeats, in s."""
        return np.asarray(np.median(self.array(name), axis=0))

    def typical_s(self, name: str) -> np.ndarray:
        """(rank, unit): mean of a time over the repeats near the median latency, in s; they add up to it."""
        return np.asarray(self.array(name)[typical(self.array("latency"))].mean(axis=0))

    @property
    def imbalance(self) -> float:
        """(max - mean) / mean of the ranks' computing time in the units that are split, the head left out."""
        return imbalance(self.busy_s("compute_time")[:, :-1].sum(axis=1))

    @property
    def explained(self) -> float:
        """How much of the latency the root's computing and exchanging adds up to."""
        parts = self.array("compute_time")[:, 0].sum(axis=1) + self.array("exchange_time")[:, 0].sum(axis=1)
        return float(np.median(parts / self.array("latency")))


def imbalance(busy: np.ndarray) -> float:
    """(max - mean) / mean, 0 where nobody was busy."""
    mean = float(busy.mean()) if busy.size else 0.0
    return float(busy.max() / mean - 1) if mean else 0.0


def load_runs(paths: Sequence[str | Path], left_out: Callable[[str], object] = warnings.warn) -> list[Run]:
    """Read result files; runs of one name get their file's name added.

    Of files that cannot be read ``left_out`` is told which and why; if none can, that is raised as an MpiconvError.
    """
    return distinct([run for _, run in read_each(paths, load_run, left_out)])


def load_run(path: str | Path) -> Run:
    """Read a result file. Raises MpiconvError, naming the file, if it cannot be read or lacks what a report needs."""
    data = read_file(path, (RUN,))
    missing = [name for name in NEEDED if name not in data]
    if missing:
        raise MpiconvError(f"{path} lacks what a report needs: {missing[0]}")
    run = Run("", safe_text(str(path)), data)
    name = run.attribute("name", "") or f"{run.attribute('model')} {run.attribute('scheme')} x{run.ranks}"
    return replace(run, name=name)


def distinct(runs: Sequence[Run]) -> list[Run]:
    """The runs, with their files' names added where several are called alike."""
    names = [run.name for run in runs]
    return [
        replace(run, name=f"{run.name} ({Path(run.path).stem})") if names.count(run.name) > 1 else run for run in runs
    ]


def by_network(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """Runs that may be compared, by their model and input shape."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault(run.network, []).append(run)
    return groups


def over_hosts(group: Sequence[Run]) -> bool:
    """Whether a device is a host in this group, as it is once any of its runs needs several; else it is a rank."""
    return any(len(run.hosts) > 1 for run in group)


def baseline(group: Sequence[Run]) -> Run | None:
    """What the others are compared with: the fastest run of which one device does all; None where there is none.

    A run whose root only passes the work on to a faster host needs both, so it is none.
    """
    several = over_hosts(group)
    whole = [run for run in group if len(run.hosts if several else run.workers) == 1]
    return min(whole, key=lambda run: run.latency_s, default=None)


def gains(group: Sequence[Run]) -> list[tuple[float, float]]:
    """Speed-up and efficiency (per device) of every run; NaN without a baseline."""
    reference, several = baseline(group), over_hosts(group)
    speed_ups = [reference.latency_s / run.latency_s if reference else float("nan") for run in group]
    devices = [len(set(run.array("hostname").tolist())) if several else run.ranks for run in group]
    return [(speed_up, speed_up / count) for speed_up, count in zip(speed_ups, devices, strict=True)]


def summary_rows(group: Sequence[Run]) -> list[dict[str, str]]:
    """A row per run: what it was, how long it took, what it moved, and how that compares."""
    found = []
    for run, (speed_up, efficiency) in zip(group, gains(group), strict=True):
        times = 1e3 * run.array("latency")
        batch = int(run.data.attrs.get("batch", 1))
        found.append(
            {
                "run": run.name,
                "scheme": run.attribute("scheme"),
                "ranks": str(run.ranks),
                "hosts": str(len(set(run.array("hostname").tolist()))),
                "latency median ms": f"{np.median(times):.2f}",
                "p95 ms": f"{np.percentile(times, 95):.2f}",
                "min ms": f"{times.min():.2f}",
                "pictures/s": f"{1e3 * batch / times.mean():.1f}",
                "speed-up": _number(speed_up),
                "efficiency": _number(efficiency),
                "x rank 0 alone": _number(float(run.data.attrs.get("gain_factor", "nan"))),
                "imbalance": f"{run.imbalance:.1%}",
                "moved MB": f"{run.array('bytes_received').sum() / 1e6:.2f}",
                "largest weights MB": f"{run.array('weight_bytes').max() / 1e6:.1f}",
                "peak RSS MB": f"{run.array('peak_rss').max() / 1e6:.0f}",
                "energy J (model)": f"{(run.array('compute_energy') + run.array('transfer_energy')).sum():.3g}",
            }
        )
    return found


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}"


def unit_rows(run: Run) -> list[dict[str, str]]:
    """A row per rank and unit: times, bytes, FLOPs."""
    compute, exchange = 1e3 * run.busy_s("compute_time"), 1e3 * run.busy_s("exchange_time")
    patterns = run.array("exchange_pattern")
    return [
        {
            "run": run.name,
            "rank": str(r),
            "unit": unit,
            "exchange": str(patterns[u]),
            "compute median ms": f"{compute[r, u]:.3f}",
            "exchange median ms": f"{exchange[r, u]:.3f}",
            "bytes sent": str(run.array("bytes_sent")[r, u]),
            "bytes received": str(run.array("bytes_received")[r, u]),
            "messages sent": str(run.array("messages_sent")[r, u]),
            "FLOPs": str(run.array("flops")[r, u]),
        }
        for r in range(run.ranks)
        for u, unit in enumerate(run.units)
    ]


def trace_events(run: Run) -> dict[str, Any]:
    """The run as a Chrome trace (chrome://tracing, Perfetto): a process per rank, times in us on the root's clock."""
    events: list[dict[str, Any]] = []
    hosts, patterns = run.array("hostname"), run.array("exchange_pattern")
    for rank in range(run.ranks):
        events.append({"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"rank {rank}, {hosts[rank]}"}})
        events.append({"ph": "M", "name": "process_sort_index", "pid": rank, "args": {"sort_index": rank}})
    exchange_start, compute_start = run.array("exchange_start"), run.array("compute_start")
    exchange_time, compute_time = run.array("exchange_time"), run.array("compute_time")
    received, flops = run.array("bytes_received"), run.array("flops")
    for (repeat, rank, u), begin in np.ndenumerate(exchange_start):
        common = {"ph": "X", "pid": rank, "tid": 0}
        unit, arguments = run.units[u], {"repeat": repeat, "unit": run.units[u]}
        if patterns[u] != "none":
            detail = {**arguments, "bytes received": int(received[rank, u])}
            span = {"name": f"{patterns[u]} {unit}", "cat": "exchange", "args": detail}
            events.append({**common, **span, "ts": 1e6 * begin, "dur": 1e6 * exchange_time[repeat, rank, u]})
        if flops[rank, u] or compute_time[repeat, rank, u] > 1e-4:
            span = {"name": unit, "cat": "compute", "args": {**arguments, "FLOPs": int(flops[rank, u])}}
            start, length = compute_start[repeat, rank, u], compute_time[repeat, rank, u]
            events.append({**common, **span, "ts": 1e6 * start, "dur": 1e6 * length})
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "distributedInfo": {"backend": "mpi", "rank": 0, "world_size": run.ranks},
        "otherData": {"model": run.attribute("model"), "scheme": run.attribute("scheme"), "run": run.name},
    }
