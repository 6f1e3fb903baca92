"""One self-contained page about runs, with its tables as CSV and its figures as SVG and PNG beside it."""

from __future__ import annotations

import base64
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpiconv.errors import need
from mpiconv.files import check_writable, write_csv, write_text
from mpiconv.measure.results import read_each
from mpiconv.study.benchmark import AIMS, HEADER, Benchmark, contenders, is_benchmark, rows, targets
from mpiconv.study.charts import ESTIMATED, HAPPENED, OF_A_RUN, OF_SEVERAL, SPEED_UP
from mpiconv.study.runs import (
    Run,
    baseline,
    by_network,
    distinct,
    estimated_rows,
    event_rows,
    load_run,
    summary_rows,
    trace_events,
    tried_rows,
    unit_rows,
)
from mpiconv.study.style import pyplot, save
from mpiconv.study.verdict import NO_SINGLE, verdicts
from mpiconv.text import to_json

FACTS = (
    "command_line", "weights", "scheme", "shares", "gather", "head", "batch", "repeats", "warmup", "created", "creator",
    "git_commit", "mpi_library", "torch_version",
)  # fmt: skip
HIGH_POWER_W = 100.0
CSV_ONLY = "hosts", "min ms"
"""Columns of the summary that the page has no room for: hosts stand with each run, the least latency in its figure."""


@dataclass(frozen=True)
class Drawn:
    """A figure in the page: its heading, what it shows in words, and the SVG as a data address."""

    title: str
    text: str
    source: str


@dataclass(frozen=True)
class Report:
    """What was written: the folder with the CSV, SVG and PNG files, and the sentences that the page opens with."""

    beside: Path
    verdicts: list[str]


def write_report(
    paths: Sequence[str | Path],
    out: str | Path,
    title: str | None = None,
    left_out: Callable[[str], object] = warnings.warn,
) -> Report:
    """Write the page and what stands beside it.

    Parameters
    ----------
    paths
        Result files and benchmarks of scripts/bench.py. Runs of different models, input shapes or batches are kept
        apart.
    out
        The page, ``report.html`` say; the other files go to ``report_files``.
    title
        Heading of the page; by default the models' names.
    left_out
        Is told which files cannot be read or shown, and why.

    Returns
    -------
    Report
        The folder beside the page and the sentences that it opens with.

    Raises
    ------
    MpiconvError
        No file can be read, the page cannot be written, or an extra is not installed.
    """
    jinja2 = need("jinja2", "report")
    out = Path(out)
    check_writable(out)
    found = [one for _, one in read_each(paths, _read, left_out)]
    runs = distinct([one for one in found if isinstance(one, Run)])
    beside = out.with_name(out.stem + "_files")
    comparable = list(by_network(runs).values())
    sentences = verdicts(comparable)
    groups = [_about_group(group, beside, number) for number, group in enumerate(comparable, 1)]
    timed = [one for one in found if isinstance(one, Benchmark)]
    benchmarks = [_about_benchmark(one, beside, f"benchmark-{i}") for i, one in enumerate(timed, 1)]
    if runs:
        write_csv(beside / "summary.csv", [row for group in groups for row in group["all_rows"]])
        write_csv(beside / "units.csv", [row for run in runs for row in unit_rows(run)])
    environment = jinja2.Environment(loader=jinja2.PackageLoader("mpiconv.study"), autoescape=True, trim_blocks=True)
    models = ", ".join(sorted({run.attribute("model") for run in runs}))
    heading = f"{models}: {len(runs)} run{'s' if len(runs) > 1 else ''}" if runs else "Benchmark"
    page = environment.get_template("report.html").render(
        title=title or heading,
        verdicts=sentences,
        groups=groups,
        benchmarks=benchmarks,
        beside=beside.name,
        no_single=f"{NO_SINGLE[0].upper()}{NO_SINGLE[1:]}.",
    )
    write_text(out, page)
    return Report(beside, sentences)


def write_trace(path: str | Path, out: str | Path) -> None:
    """Write a run's Chrome trace as JSON.

    Raises MpiconvError where a file cannot be read or written.
    """
    write_text(out, to_json(trace_events(load_run(path))))


def _read(path: str | Path) -> Run | Benchmark:
    return Benchmark.load(path) if is_benchmark(path) else load_run(path)


def _about_group(group: Sequence[Run], beside: Path, number: int) -> dict[str, Any]:
    """What the page says of runs that may be compared."""
    reference, rows = baseline(group), summary_rows(group)
    return {
        "network": str(group[0].network),
        "all_rows": rows,
        "rows": _known([{key: text for key, text in row.items() if key not in CSV_ONLY} for row in rows]),
        "compared_with": reference.name if reference else "",
        "figures": [
            _draw(beside, f"{number}-{key}", heading, chart, group)
            for key, heading, chart in OF_SEVERAL
            if reference or key != SPEED_UP
        ],
        "runs": [_about(run, beside, f"{number}-{i}") for i, run in enumerate(group, 1)],
    }


def _known(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The rows of a table without the columns that say nothing."""
    kept = [key for key in (rows[0] if rows else {}) if any(row[key] != "-" for row in rows)]
    return [{key: row[key] for key in kept} for row in rows]


def _about(run: Run, beside: Path, key: str) -> dict[str, Any]:
    """What the page says of one run."""
    power, predicted = float(run.data.attrs.get("energy_compute_power_w", 0)), run.predicted_s
    return {
        "name": run.name,
        "file": os.path.basename(run.path),
        "facts": [(name, run.attribute(name)) for name in FACTS if name in run.data.attrs],
        "hosts": [str(host) for host in run.array("hostname")],
        "imbalance": f"{run.imbalance:.1%}",
        "explained": f"{run.explained:.1%}",
        "profile": run.attribute("energy_name"),
        "power": f"{power:g}",
        "unlikely": power > HIGH_POWER_W,
        "check": f"{float(run.data.attrs['check_max_rel_error']):.2g}"
        if "check_max_rel_error" in run.data.attrs
        else "",
        "equal": bool(run.data.attrs.get("check_equal", False)),
        "latency": f"{1e3 * run.latency_s:.2f}",
        "predicted": "" if predicted is None else f"{1e3 * predicted:.2f}",
        "of_predicted": f"{run.latency_s / predicted:.2f}" if predicted else "",
        "slowest": run.slowest,
        "estimated": estimated_rows(run),
        "tried": _known(tried_rows(run)),
        "events": _known(event_rows(run)),
        "figures": [
            _draw(beside, f"{key}-{name}", heading, chart, run)
            for name, heading, chart in OF_A_RUN
            if (predicted is not None or name != ESTIMATED) and (run.events or name != HAPPENED)
        ],
        "units": _known([{name: text for name, text in row.items() if name != "run"} for row in unit_rows(run)]),
    }


def _about_benchmark(result: Benchmark, beside: Path, key: str) -> dict[str, Any]:
    """What the page says of one benchmark."""
    networks = []
    for number, (label, times) in enumerate(result.times.items(), 1):
        table = [dict(zip(HEADER, row, strict=True)) for row in rows(times)]
        write_csv(beside / f"{key}-{number}.csv", table)
        networks.append({"figure": _draw(beside, f"{key}-{number}", label, contenders, times), "rows": table})
    return {
        "about": f"{result.machine}; {result.created}",
        "aims": [dict(zip(AIMS, row, strict=True)) for row in targets(result)],
        "networks": networks,
    }


def _draw(beside: Path, key: str, title: str, chart: Callable[..., Any], what: Any) -> Drawn:
    with pyplot() as plt:
        figure = chart(plt, what)
        save(figure, beside / f"{key}.png")
        save(figure, beside / f"{key}.svg")
    source = base64.b64encode((beside / f"{key}.svg").read_bytes()).decode()
    return Drawn(title, (chart.__doc__ or "").strip(), f"data:image/svg+xml;base64,{source}")
