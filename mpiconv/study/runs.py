"""Runs read back from result files, and what can be said of one or compared between several."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mpiconv.errors import MpiconvError
from mpiconv.measure.record import typical
from mpiconv.measure.results import RUN, read_each, read_file
from mpiconv.measure.schema import events_of, plans_tried
from mpiconv.text import safe_text

NEEDED = ("exchange_start", "compute_start", "bytes_sent", "bytes_received", "messages_sent", "flops", "weight_bytes",
          "peak_rss", "compute_energy", "transfer_energy", "hostname", "exchange_pattern")  # fmt: skip


LARGE = 1000.0
PREDICTED = "predicted_compute_time", "predicted_exchange_time"


class Network(NamedTuple):
    """What runs must have in common to be compared."""

    model: str
    input_shape: str
    batch: int

    def __str__(self) -> str:
        batch = "" if self.batch == 1 or self.input_shape.startswith(f"{self.batch}x") else f", batch {self.batch}"
        return f"{self.model} {self.input_shape}{batch}"


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
    def network(self) -> Network:
        """Model, input shape and batch: only runs with the same are compared."""
        shape = "x".join(str(int(n)) for n in np.atleast_1d(self.data.attrs.get("input_shape", [])))
        return Network(self.attribute("model"), shape, self.batch)

    @property
    def batch(self) -> int:
        """How many pictures travelled together."""
        return int(self.data.attrs.get("batch", 1))

    @property
    def computing(self) -> list[int]:
        """The ranks that compute something; the root alone where there is nothing to compute."""
        return [int(rank) for rank in np.flatnonzero(self.array("flops").sum(axis=1) > 0)] or [0]

    @property
    def slowest(self) -> int:
        """The rank that computes the longest."""
        return int(self.typical_s("compute_time").sum(axis=1).argmax())

    @property
    def latency_s(self) -> float:
        """Median latency in s."""
        return float(np.median(self.array("latency")))

    @property
    def middle_half_s(self) -> tuple[float, float]:
        """The latencies in s between which half of the repeats lie: the quartiles."""
        low, high = np.percentile(self.array("latency"), [25, 75])
        return float(low), float(high)

    @property
    def predicted_s(self) -> float | None:
        """The latency in s that was estimated for the plan that ran; None where nothing was."""
        there = "predicted_latency" in self.data.attrs and all(name in self.data for name in PREDICTED)
        return float(self.data.attrs["predicted_latency"]) if there else None

    @property
    def tried(self) -> list[dict[str, Any]]:
        """The plans that were tried in turn, as ``measure.schema.plans_tried`` gives them."""
        return plans_tried(self.data)

    @property
    def events(self) -> list[dict[str, Any]]:
        """What became of the plan meanwhile, as ``measure.schema.events_of`` gives it."""
        return events_of(self.data)

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


def by_network(runs: Sequence[Run]) -> dict[Network, list[Run]]:
    """Runs that may be compared, by their model, input shape and batch."""
    groups: dict[Network, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.network, []).append(run)
    return groups


def baseline(group: Sequence[Run]) -> Run | None:
    """What the others are compared with: the fastest run of which one rank computes everything; None without one.

    The root may have sent it the pictures; other ranks of the job have nothing to compute.
    """
    return min((run for run in group if len(run.computing) == 1), key=lambda run: run.latency_s, default=None)


def gains(group: Sequence[Run]) -> list[tuple[float, float]]:
    """Speed-up and efficiency (per rank that computes) of every run; NaN without a baseline."""
    reference = baseline(group)
    speed_ups = [reference.latency_s / run.latency_s if reference else float("nan") for run in group]
    return [(speed_up, speed_up / len(run.computing)) for speed_up, run in zip(speed_ups, group, strict=True)]


def summary_rows(group: Sequence[Run]) -> list[dict[str, str]]:
    """A row per run: what it was, how long it took, what it moved, and how that compares."""
    found = []
    for run, (speed_up, efficiency) in zip(group, gains(group), strict=True):
        times = 1e3 * run.array("latency")
        found.append(
            {
                "run": run.name,
                "scheme": run.attribute("scheme"),
                "ranks": str(run.ranks),
                "hosts": str(len(set(run.array("hostname").tolist()))),
                "latency median ms": _number(1e3 * run.latency_s),
                "middle half ms": " to ".join(_number(1e3 * each) for each in run.middle_half_s),
                "p95 ms": _number(float(np.percentile(times, 95))),
                "min ms": _number(float(times.min())),
                "pictures/s": f"{1e3 * run.batch / times.mean():.1f}",
                "estimated ms": _number(float("nan") if run.predicted_s is None else 1e3 * run.predicted_s),
                "speed-up": _number(speed_up),
                "efficiency": _number(efficiency),
                "rank 0 alone ms": _number(1e3 * float(run.data.attrs.get("gain_single_latency_s", "nan"))),
                "imbalance": f"{run.imbalance:.1%}",
                "moved MB": f"{run.array('bytes_received').sum() / 1e6:.2f}",
                "largest weights MB": f"{run.array('weight_bytes').max() / 1e6:.1f}",
                "peak RSS MB": f"{run.array('peak_rss').max() / 1e6:.0f}",
                "energy J (model)": f"{(run.array('compute_energy') + run.array('transfer_energy')).sum():.3g}",
            }
        )
    return found


def estimated_rows(run: Run) -> list[dict[str, str]]:
    """A row per unit of the slowest rank: what was estimated and what was measured, and their sums; none without.

    The measured ones are means over the repeats nearest the median latency, so that they add up.
    """
    if run.predicted_s is None:
        return []
    measured = [run.typical_s(name)[run.slowest] for name in ("compute_time", "exchange_time")]
    estimated = [run.array(name)[run.slowest] for name in PREDICTED]
    columns = {
        "computing, estimated ms": estimated[0],
        "computing, measured ms": measured[0],
        "exchanging, estimated ms": estimated[1],
        "exchanging, measured ms": measured[1],
    }
    return [
        {"unit": unit} | {name: _number(1e3 * value) for name, value in zip(columns, values, strict=True)}
        for unit, *values in zip(
            [*run.units, "all"], *([*column, column.sum()] for column in columns.values()), strict=True
        )
    ]


def tried_rows(run: Run) -> list[dict[str, str]]:
    """A row per plan that ``--scheme auto`` tried: what it took as measured and as estimated."""
    return [
        {
            "plan tried": each["name"],
            "measured ms": _number(float("nan") if each["measured_s"] is None else 1e3 * each["measured_s"]),
            "estimated ms": _number(1e3 * each["estimated_s"]),
            "why not run": each["why"] or "-",
        }
        for each in run.tried
    ]


def event_rows(run: Run) -> list[dict[str, str]]:
    """A row per rank that was lost or plan that was adopted."""
    return [
        {
            "at s": _number(event["time_s"]),
            "after pictures": str(event["picture"]),
            "what": event["kind"],
            "ranks": ", ".join(map(str, event["ranks"])) or "-",
            "then": event["plan"],
            "waited ms": _number(1e3 * event["seconds"]),
            "weights moved MB": _number(event["bytes_moved"] / 1e6),
        }
        for event in run.events
    ]


def _number(value: float, digits: int = 2) -> str:
    """A number with digits behind the point, without them from a thousand on; ``-`` for NaN."""
    return "-" if np.isnan(value) else f"{value:.{digits if value < LARGE else 0}f}"


def unit_rows(run: Run) -> list[dict[str, str]]:
    """A row per rank and unit: times as measured and as estimated, bytes, FLOPs."""
    compute, exchange = 1e3 * run.busy_s("compute_time"), 1e3 * run.busy_s("exchange_time")
    unknown = np.full(compute.shape, np.nan)
    estimated = [unknown if run.predicted_s is None else 1e3 * run.array(name) for name in PREDICTED]
    patterns = run.array("exchange_pattern")
    return [
        {
            "run": run.name,
            "rank": str(r),
            "unit": unit,
            "exchange": str(patterns[u]),
            "compute median ms": _number(compute[r, u], 3),
            "exchange median ms": _number(exchange[r, u], 3),
            "compute estimated ms": _number(estimated[0][r, u], 3),
            "exchange estimated ms": _number(estimated[1][r, u], 3),
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
    last_s = max((event["time_s"] for event in run.events), default=0.0)
    for event in run.events:  # what is measured begins after the last of them
        about = {"ph": "i", "s": "g", "pid": 0, "tid": 0, "cat": "event", "args": event}
        events.append({**about, "name": f"{event['kind']}: {event['plan']}", "ts": 1e6 * (event["time_s"] - last_s)})
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "distributedInfo": {"backend": "mpi", "rank": 0, "world_size": run.ranks},
        "otherData": {"model": run.attribute("model"), "scheme": run.attribute("scheme"), "run": run.name},
    }
