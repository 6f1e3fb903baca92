"""One self-contained page about runs, with its tables as CSV and its figures as SVG and PNG beside it."""

from __future__ import annotations

import base64
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpiconv.errors import need
from mpiconv.files import check_writable, write_csv, write_text
from mpiconv.measure.results import read_each
from mpiconv.study.benchmark import AIMS, HEADER, Benchmark, contenders, is_benchmark, rows, targets
from mpiconv.study.charts import OF_A_RUN, OF_SEVERAL
from mpiconv.study.runs import (
    Run,
    baseline,
    by_network,
    distinct,
    load_run,
    over_hosts,
    summary_rows,
    trace_events,
    unit_rows,
)
from mpiconv.study.style import pyplot, save
from mpiconv.text import to_json

FACTS = (
    "command_line", "weights", "scheme", "shares", "gather", "head", "batch", "repeats", "warmup", "created", "creator",
    "git_commit", "mpi_library", "torch_version",
)  # fmt: skip
HIGH_POWER_W = 100.0


@dataclass(frozen=True)
class Drawn:
    """A figure in the page: its heading, what it shows in words, and the SVG as a data address."""

    title: str
    text: str
    source: str


def write_report(
    paths: Sequence[str | Path],
    out: str | Path,
    title: str | None = None,
    left_out: Callable[[str], object] = warnings.warn,
) -> Path:
    """Write the page and what stands beside it; returns the folder with the CSV, SVG and PNG files.

    Parameters
    ----------
    paths
        Result files and benchmarks of scripts/bench.py. Runs of different models are kept apart.
    out
        The page, ``report.html`` say; the other files go to ``report_files``.
    title
        Heading of the page; by default the models' names.
    left_out
        Is told which files cannot be read or shown, and why.

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
    groups: list[dict[str, Any]] = []
    for number, (network, group) in enumerate(by_network(runs).items(), 1):
        reference = baseline(group)
        groups.append(
            {
                "network": " ".join(network),
                "rows": summary_rows(group),
                "compared_with": reference.name if reference else "",
                "device": "host" if over_hosts(group) else "rank",
                "figures": [
                    _draw(beside, f"{number}-{key}", heading, chart, group)
                    for key, heading, chart in OF_SEVERAL
                    if reference or key != "speed-up"
                ],
                "runs": [_about(run, beside, f"{number}-{i}") for i, run in enumerate(group, 1)],
            }
        )
    timed = [one for one in found if isinstance(one, Benchmark)]
    benchmarks = [_about_benchmark(one, beside, f"benchmark-{i}") for i, one in enumerate(timed, 1)]
    if runs:
        write_csv(beside / "summary.csv", [row for group in groups for row in group["rows"]])
        write_csv(beside / "units.csv", [row for run in runs for row in unit_rows(run)])
    environment = jinja2.Environment(loader=jinja2.PackageLoader("mpiconv.study"), autoescape=True, trim_blocks=True)
    models = ", ".join(sorted({run.attribute("model") for run in runs}))
    heading = f"{models}: {len(runs)} run{'s' if len(runs) > 1 else ''}" if runs else "Benchmark"
    page = environment.get_template("report.html").render(
        title=title or heading, groups=groups, benchmarks=benchmarks, beside=beside.name
    )
    write_text(out, page)
    return beside


def write_trace(path: str | Path, out: str | Path) -> None:
    """Write a run's Chrome trace as JSON.

    Raises MpiconvError where a file cannot be read or written.
    """
    write_text(out, to_json(trace_events(load_run(path))))


def _read(path: str | Path) -> Run | Benchmark:
    return Benchmark.load(path) if is_benchmark(path) else load_run(path)


def _about(run: Run, beside: Path, key: str) -> dict[str, Any]:
    """What the page says of one run."""
    power = float(run.data.attrs.get("energy_compute_power_w", 0))
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
        "figures": [_draw(beside, f"{key}-{name}", heading, chart, run) for name, heading, chart in OF_A_RUN],
        "units": unit_rows(run),
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
