"""The figures of a report: each is one function from runs to a matplotlib figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpiconv.study.runs import PREDICTED, Run, gains
from mpiconv.study.style import WAITING, colour, shortened

WIDTH_IN = 6.4

Chart = Callable[[Any, Run], Any]
Comparison = Callable[[Any, Sequence[Run]], Any]


LEGEND_COLUMNS, LEGEND_ROW_IN = 5, 0.19


def _lengthy(count: int, least: float = 2.2, each: float = 0.32, legend: int = 0) -> tuple[float, float]:
    """The size in inches of a chart with this number of bars below each other, and a legend below them."""
    rows = max(0, -(-legend // LEGEND_COLUMNS) - 2)
    return WIDTH_IN, max(least, 1.3 + each * count) + LEGEND_ROW_IN * rows


def time_per_rank(plt: Any, run: Run) -> Any:
    """Stacked bars: what each rank computed, unit by unit, and how long it was exchanging or waiting."""
    compute, exchange = 1e3 * run.typical_s("compute_time"), 1e3 * run.typical_s("exchange_time")
    figure, axes = plt.subplots(figsize=_lengthy(run.ranks, 2.6, legend=1 + len(run.units)))
    ranks, left = np.arange(run.ranks), np.zeros(run.ranks)
    for u, unit in enumerate(run.units):
        axes.barh(ranks, compute[:, u], 0.7, left, label=unit, color=colour(u), edgecolor="white", linewidth=0.3)
        left += compute[:, u]
    axes.barh(
        ranks, exchange.sum(axis=1), 0.7, left, label="exchange, waiting", color=WAITING, hatch="///", edgecolor="white"
    )
    _ranks_down(axes, run)
    axes.set_xlabel("ms per inference, mean of the repeats nearest the median latency")
    figure.legend(loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize="small")
    return figure


def timeline(plt: Any, run: Run) -> Any:
    """Who waited for whom: every rank's units in the repeat of median latency, on the root's clock."""
    latency = run.array("latency")
    repeat = int(np.argsort(latency)[len(latency) // 2])
    exchange, compute = run.array("exchange_start")[repeat], run.array("compute_start")[repeat]
    waited, busy = run.array("exchange_time")[repeat], run.array("compute_time")[repeat]
    begin = exchange[0, 0]
    figure, axes = plt.subplots(figsize=_lengthy(run.ranks, 2.6, legend=1 + len(run.units)))
    for rank in range(run.ranks):
        spans = [
            (1e3 * (max(s, begin) - begin), 1e3 * (d - max(begin - s, 0)))
            for s, d in zip(exchange[rank], waited[rank], strict=True)
        ]
        axes.broken_barh(spans, (rank - 0.35, 0.7), color=WAITING, label="exchange, waiting" if rank == 0 else None)
        for u, unit in enumerate(run.units):
            span = (1e3 * (compute[rank, u] - begin), 1e3 * busy[rank, u])
            axes.broken_barh([span], (rank - 0.35, 0.7), color=colour(u), label=unit if rank == 0 else None)
    _ranks_down(axes, run)
    axes.set_xlabel(f"ms since the picture was there (repeat {repeat}, of median latency)")
    figure.legend(loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize="small")
    return figure


def estimated(plt: Any, run: Run) -> Any:
    """What was estimated before the run and what was measured, unit by unit, on the rank that computes longest."""
    figure, axes = plt.subplots(figsize=(WIDTH_IN, 3.0))
    units, width = np.arange(len(run.units)), 0.4
    measured = [run.typical_s(name)[run.slowest] for name in ("compute_time", "exchange_time")]
    both = ("estimated", [run.array(name)[run.slowest] for name in PREDICTED], -1), ("measured", measured, 1)
    for word, (compute, exchange), side in both:
        places, hatch = units + side * width / 2, "///" if word == "estimated" else None
        style = {"hatch": hatch, "edgecolor": "white", "linewidth": 0.3}
        axes.bar(places, 1e3 * compute, width, color=colour(0), label=f"computing, {word}", **style)
        axes.bar(places, 1e3 * exchange, width, 1e3 * compute, color=WAITING, label=f"exchanging, {word}", **style)
    _units_below(axes, run)
    axes.set_ylabel(f"ms on rank {run.slowest}")
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    return figure


def bytes_per_unit(plt: Any, run: Run) -> Any:
    """Payload that each rank received before each unit."""
    received = run.array("bytes_received") / 1e6
    figure, axes = plt.subplots(figsize=(WIDTH_IN, 2.8))
    units, width = np.arange(len(run.units)), 0.8 / run.ranks
    for rank in range(run.ranks):
        places = units + (rank - (run.ranks - 1) / 2) * width
        axes.bar(places, received[rank], width, color=colour(rank), label=f"rank {rank}")
    _units_below(axes, run)
    axes.set_ylabel("MB received per inference")
    axes.set_ylim(0, max(1.05 * received.max(), 1e-3))
    if run.ranks <= 8:
        axes.legend(fontsize="small", ncols=2)
    return figure


def memory(plt: Any, run: Run) -> Any:
    """Weights and peak memory of every rank."""
    figure, axes = plt.subplots(figsize=_lengthy(run.ranks))
    ranks = np.arange(run.ranks)
    axes.barh(ranks - 0.2, run.array("peak_rss") / 1e6, 0.4, color=colour(4), label="peak RSS of the process")
    axes.barh(ranks + 0.2, run.array("weight_bytes") / 1e6, 0.4, color=colour(0), label="weights it computes with")
    _ranks_down(axes, run)
    axes.set_xlabel("MB")
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    return figure


def energy(plt: Any, run: Run) -> Any:
    """Energy of every rank by the model, and of its host where it was metered."""
    figure, axes = plt.subplots(figsize=_lengthy(run.ranks))
    ranks, compute = np.arange(run.ranks), run.array("compute_energy")
    axes.barh(ranks, compute, 0.6, color=colour(1), label="computing (model)")
    axes.barh(ranks, run.array("transfer_energy"), 0.6, compute, color=colour(2), label="transferring (model)")
    metered = run.array("measured_energy")
    if np.isfinite(metered).any():
        method = str(run.data["measured_energy"].attrs.get("method", ""))
        axes.plot(metered, ranks, "D", color="black", label=f"whole host, measured ({method})")
    _ranks_down(axes, run)
    axes.set_xlabel("J per inference")
    axes.margins(x=0.05)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    return figure


def latencies(plt: Any, group: Sequence[Run]) -> Any:
    """The distribution of every run's latency: each repeat a dot, the median a line."""
    figure, axes = plt.subplots(figsize=_lengthy(len(group)))
    for i, run in enumerate(group):
        times = 1e3 * run.array("latency")
        spread = np.linspace(-0.25, 0.25, len(times)) if len(times) > 1 else np.zeros(1)
        axes.plot(times, i + spread, ".", color=colour(i), markersize=4, alpha=0.6)
        axes.plot([np.median(times)] * 2, [i - 0.35, i + 0.35], color="black", linewidth=1.5)
    _names_down(axes, group)
    axes.set_xlabel("latency, ms (dots: repeats, line: median)")
    axes.set_xlim(left=0)
    return figure


def speed_ups(plt: Any, group: Sequence[Run]) -> Any:
    """Speed-up and efficiency of every run against the fastest single-device run."""
    figure, panels = plt.subplots(1, 2, figsize=_lengthy(len(group)), sharey=True)
    values = zip(*gains(group), strict=True)
    for axes, heights, label in zip(panels, values, ("speed-up", "efficiency (per rank that computes)"), strict=True):
        axes.barh(range(len(group)), heights, 0.6, color=[colour(i) for i in range(len(group))])
        axes.axvline(1, color="black", linewidth=0.8)
        for i, height in enumerate(heights):
            axes.annotate(f" {height:.2f}", (height, i), va="center", fontsize="small")
        axes.set_xlabel(label)
        axes.margins(x=0.18)
    _names_down(panels[0], group)
    return figure


def _ranks_down(axes: Any, run: Run) -> None:
    """Ranks from top to bottom, with their hosts where there are several."""
    hosts = run.array("hostname")
    several = len(set(hosts.tolist())) > 1
    axes.set_yticks(range(run.ranks), [f"rank {r}" + (f", {hosts[r]}" if several else "") for r in range(run.ranks)])
    axes.invert_yaxis()


def _units_below(axes: Any, run: Run) -> None:
    """The units' labels, turned where there are many."""
    count = len(run.units)
    rotation = 0 if count <= 7 else 45 if count <= 16 else 90
    axes.set_xticks(range(count), run.units, rotation=rotation, fontsize="medium" if rotation < 90 else "x-small")


def _names_down(axes: Any, group: Sequence[Run]) -> None:
    axes.set_yticks(range(len(group)), shortened([run.name for run in group]))
    axes.invert_yaxis()


def happened(plt: Any, run: Run) -> Any:
    """When ranks were lost or another plan was adopted, and how long pictures waited for it."""
    figure, axes = plt.subplots(figsize=(8.0, 0.9 + 0.35 * len(run.events)))
    for row, event in enumerate(run.events):
        axes.barh(row, event["seconds"], left=event["time_s"] - event["seconds"], height=0.5, color=colour(row))
        axes.plot(event["time_s"], row, "|", color="black")
    ranks = [", ".join(f"rank {rank}" for rank in event["ranks"]) for event in run.events]
    axes.set_yticks(
        range(len(ranks)),
        [f"{event['kind']}: {names}" for event, names in zip(run.events, ranks, strict=True)],
        fontsize="small",
    )
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("s since the run began")
    return figure


HAPPENED = "happened"
"""The figure that only a run has in which something became of the plan."""

ESTIMATED = "estimated"
"""The figure that only a run has for which something was estimated."""

SPEED_UP = "speed-up"
"""The figure that only runs have with a single-device run among them."""

OF_A_RUN: tuple[tuple[str, str, Chart], ...] = (
    ("time-per-rank", "Time per rank and unit", time_per_rank),
    (HAPPENED, "Timeline: what became of the plan", happened),
    ("timeline", "Timeline: who waited for whom", timeline),
    (ESTIMATED, "Estimated and measured", estimated),
    ("bytes", "Bytes received", bytes_per_unit),
    ("memory", "Memory", memory),
    ("energy", "Energy", energy),
)
OF_SEVERAL: tuple[tuple[str, str, Comparison], ...] = (
    ("latency", "Latency", latencies),
    (SPEED_UP, "Speed-up and efficiency", speed_ups),
)
