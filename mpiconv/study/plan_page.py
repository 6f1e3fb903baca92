"""What ``mpiconv plan --cluster`` found as a self-contained page: the answer, the plans, and the frame it expects."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpiconv.errors import need
from mpiconv.files import check_writable, write_text
from mpiconv.study.style import WAITING, colour, pyplot

LEGEND_COLUMNS = 6


def write_plan_page(
    out: str | Path,
    title: str,
    words: Sequence[str],
    plans: Sequence[Mapping[str, str]],
    units: Sequence[Mapping[str, str]],
    stamps_s: np.ndarray,
    names: Sequence[str],
    devices: Sequence[str],
    pareto: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write the page.

    Parameters
    ----------
    out
        The page's file.
    title, words
        Its heading, and what to say first, a paragraph each.
    plans, units
        The table of the plans, and that of the units under the best of them: a mapping from column to text for each.
    stamps_s
        (device, unit, 3): when the exchange before the unit began, when its computing began and when it ended.
    names, devices
        Names of the units and of the devices.
    pareto
        The table of the plans that are best in something, if there is to be one.

    Raises
    ------
    MpiconvError
        The page cannot be written, or an extra is not installed.
    """
    jinja2 = need("jinja2", "report")
    check_writable(Path(out))
    environment = jinja2.Environment(loader=jinja2.PackageLoader("mpiconv.study"), autoescape=True, trim_blocks=True)
    with pyplot() as plt:
        drawing = io.BytesIO()
        draw_frame(plt, stamps_s, names, devices).savefig(drawing, format="svg", metadata={"Date": None})
    source = "data:image/svg+xml;base64," + base64.b64encode(drawing.getvalue()).decode()
    page = environment.get_template("plan.html").render(
        title=title, words=words, plans=plans, units=units, timeline=source, pareto=pareto
    )
    write_text(Path(out), page)


def draw_frame(plt: Any, stamps_s: np.ndarray, names: Sequence[str], devices: Sequence[str]) -> Any:
    """A matplotlib figure of which device computes which unit when, and when it waits; the arguments as above."""
    rows = -(-(len(names) + 1) // LEGEND_COLUMNS)
    figure, axes = plt.subplots(figsize=(9.0, max(2.4, 1.2 + 0.34 * len(devices)) + 0.19 * rows))
    ms = 1e3 * stamps_s
    for rank in range(len(devices)):
        waits = [(begin, start - begin) for begin, start, _ in ms[rank]]
        axes.broken_barh(waits, (rank - 0.35, 0.7), color=WAITING, label="exchange, waiting" if rank == 0 else None)
        for unit, name in enumerate(names):
            _, start, end = ms[rank, unit]
            label = name if rank == 0 else None
            axes.broken_barh([(start, end - start)], (rank - 0.35, 0.7), color=colour(unit), label=label)
    axes.set_yticks(range(len(devices)), devices)
    axes.invert_yaxis()
    axes.set_xlabel("ms since the picture was there, estimated")
    figure.legend(loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize="small")
    return figure
