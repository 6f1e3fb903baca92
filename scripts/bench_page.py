"""What scripts/bench.py prints and draws of a benchmark: table, figure, docs/performance.md."""

from __future__ import annotations

from pathlib import Path
from textwrap import wrap

import numpy as np

from mpiconv.study.benchmark import (
    AIMS,
    BAR_INCHES,
    COMPUTING,
    EXCHANGING,
    HEADER,
    Benchmark,
    bars,
    rows,
    targets,
)
from mpiconv.study.style import pyplot, save


def table(result: Benchmark) -> str:
    """All of it as text."""
    lines = [f"{result.machine}; {result.created}"]
    for label, times in result.times.items():
        lines += ["", label]
        found = [HEADER, *rows(times)]
        widths = [max(len(row[i]) for row in found) for i in range(len(HEADER))]
        for row in found:
            cells = (c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            lines.append("  ".join(cells))
    lines += ["", *("  ".join(row) for row in targets(result))]
    return "\n".join(lines)


def chart(result: Benchmark, out: Path) -> None:
    """A panel per network, as high as it has contenders."""
    labels = list(result.times)
    pairs = [labels[i : i + 2] for i in range(0, len(labels), 2)]
    heights = [1 + BAR_INCHES * max(len(result.times[label]) for label in pair) for pair in pairs]
    with pyplot() as plt:
        figure, panels = plt.subplots(
            len(pairs), 2, figsize=(11, sum(heights)), squeeze=False, gridspec_kw={"height_ratios": heights}
        )
        for axes, (label, times) in zip(panels.flat, result.times.items(), strict=False):
            bars(axes, times)
            axes.set_title("\n".join(wrap(label, 48)))
        for axes in list(panels.flat)[len(labels) :]:
            axes.set_visible(False)
        save(figure, out)


def page(result: Benchmark, figure: str) -> str:
    """docs/performance.md."""
    lines = [
        "# Performance",
        "",
        "Made by `python scripts/bench.py --page docs/performance.md` from measurements; do not edit.",
        "",
        f"Machine: {result.machine}. All contenders "
        "of a network stay up and take turns, so that what else happens hits all alike: compare the "
        "ratios, not the times with another machine's. One thread a rank unless it says otherwise, batch 1, float32. "
        "The range is from the 5th to the 95th percentile of the turns' medians; the ratio, to ONNX Runtime on one "
        "thread or else to the first row, is the median over the rounds. With `--in-flight 2` the time is per picture, "
        f"not latency. `{COMPUTING[2:]}` is the sum over the units of the slower rank's computing, the time that would "
        f"be left if exchanges took none; `{EXCHANGING[2:]}` what the root spends on exchanges and on waiting in them.",
        "",
        f"![Medians of all contenders]({figure})",
        "",
        "## What was aimed at",
        "",
        f"| {' | '.join(AIMS)} |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in targets(result)),
    ]
    for label, times in result.times.items():
        lines += [
            "",
            f"## {label}",
            "",
            f"Taken {result.taken[label]}.",
            "",
            f"| {' | '.join(HEADER)} |",
            "|---|---:|---:|---:|",
        ]
        lines += [f"| {' | '.join(row)} |" for row in rows(times)]
    lines += ["", *cap(result), ""]
    return "\n".join(lines)


def cap(result: Benchmark) -> list[str]:
    """What the FC layers on the root leave of a whole network's gain."""
    lines = ["## The FC layers cap the whole network's gain", ""]
    lines.append("They run on the root alone, at the rate of its memory; with the conv part n times as fast, at best:")
    lines += ["", "| network | conv part ms | FC layers ms | best on 2 | found on 2 |", "|---|---:|---:|---:|---:|"]
    for name in ("alexnet", "vgg11"):
        part, whole = result.times.get(f"{name}, conv part"), result.times.get(f"{name}, whole")
        if not part or not whole or "mpiconv 1 rank" not in part or "mpiconv 1 rank" not in whole:
            continue
        conv, all_of_it = (1e3 * float(np.median(one["mpiconv 1 rank"])) for one in (part, whole))
        two = [1e3 * float(np.median(v)) for n, v in whole.items() if n.startswith("mpiconv") and n.endswith("2 ranks")]
        head = all_of_it - conv
        best = all_of_it / (conv / 2 + head)
        found = f"{all_of_it / min(two):.2f}" if two else "-"
        lines.append(f"| {name} | {conv:.1f} | {head:.1f} | {best:.2f} | {found} |")
    return lines
