"""Figures 8 and 9 of [KPM22], from measured runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpiconv.errors import MpiconvError, need
from mpiconv.study.combined import Point
from mpiconv.study.series import EXCHANGED, MODELS, NAMES, Curve, device_curves, offload_curves
from mpiconv.study.style import colour, pyplot, save

RATES = (0, 1, 5, 2, 3, 4)
"""Which colours the rates get, the fastest first."""

SCHEMES = {"kpm": 0, "wpm": 1}


def figure_8(points: Sequence[Point], out: Path) -> None:
    """Latency against the offloaded share, a panel per device and model: [KPM22] Fig. 8.

    Raises MpiconvError where no run is one of two devices by kernels, or the file cannot be written.
    """
    curves = [curve for curve in offload_curves(points) if len(curve.points) > 1]
    if not curves:
        raise MpiconvError("figure 8 needs runs over two devices with --scheme kpm and several --offload shares")
    hosts, models = _unique(c.what for c in curves), _unique(c.model for c in curves)
    rates = _unique(c.rate_mb_per_s for c in curves)
    with pyplot() as plt:
        size = (4.6 * len(models), 0.9 + 3.1 * len(hosts))
        figure, panels = plt.subplots(len(hosts), len(models), figsize=size, sharex=True, squeeze=False)
        for row, host in zip(panels, hosts, strict=True):
            for axes, model in zip(row, models, strict=True):
                mine = [c for c in curves if c.what == host and c.model == model]
                for curve in mine:
                    number = RATES[rates.index(curve.rate_mb_per_s) % len(RATES)]
                    label = f"{curve.rate_mb_per_s:g} MB/s, {EXCHANGED[curve.gather]}"
                    _line(axes, curve, 1.0, colour(number), "-" if curve.gather == "conv" else "--", label)
                    _mark_best(axes, curve, number)
                _finish_panel(axes, mine)
                axes.set_title(f"{MODELS.get(model, model)} on the {NAMES.get(host, host)}")
                _as_percent(axes, mine)
            row[0].set_ylabel("latency, s")
        for axes in panels[-1]:
            axes.set_xlabel("share of every layer's kernels on the helper")
        _legend(figure, panels, 2)
        figure.suptitle(f"Offloading to a laptop,\n{_measured(points)}", x=0.01, ha="left", fontsize="medium")
        save(figure, out)


def figure_9(points: Sequence[Point], out: Path) -> None:
    """Latency and mean device energy against the number of equal devices, a column per speed and rate: [KPM22] Fig. 9.

    Raises MpiconvError where the runs are of one number of devices only, or the file cannot be written.
    """
    curves = [curve for curve in device_curves(points) if len(curve.points) > 1]
    if not curves:
        raise MpiconvError("figure 9 needs runs over several numbers of equal devices")
    groups = _unique((c.model, c.what, c.rate_mb_per_s) for c in curves)
    with pyplot() as plt:
        figure, panels = plt.subplots(
            2, len(groups), figsize=(0.4 + 3.5 * len(groups), 6.4), sharex=True, squeeze=False
        )
        for (upper, lower), group in zip(panels.T, groups, strict=True):
            mine = [c for c in curves if (c.model, c.what, c.rate_mb_per_s) == group]
            for curve in mine:
                number, dashes = SCHEMES.get(curve.scheme, 2), "-" if curve.gather == "conv" else "--"
                label = f"{curve.scheme.upper()}, {EXCHANGED[curve.gather]}"
                _line(upper, curve, 1e3, colour(number), dashes, label)
                x, heights = list(curve.points), [p.device_joules for p in curve.points.values()]
                lower.plot(x, heights, dashes, marker="o", markersize=3.5, color=colour(number))
            model, what, rate = group
            upper.set_title(f"{MODELS.get(model, model)}, {rate:g} MB/s,\n{what}", fontsize="small")
            _finish_panel(upper, mine)
            lower.set_ylim(bottom=0)
            lower.set_xticks([x for x in sorted({x for c in mine for x in c.points}) if x != 3])
            lower.set_xlabel("devices")
        panels[0][0].set_ylabel("latency, ms")
        panels[1][0].set_ylabel("mean energy of a device, J (model)")
        _legend(figure, panels, 2)
        figure.suptitle(f"Equal devices,\n{_measured(points)}", x=0.01, ha="left", fontsize="medium")
        save(figure, out)


def _line(axes: Any, curve: Curve, scale: float, shade: str, dashes: str, label: str) -> None:
    """Medians as a line, the range of the repeats as a band."""
    x, found = list(curve.points), curve.points.values()
    axes.plot(x, [scale * p.median_s for p in found], dashes, marker="o", markersize=3.5, color=shade, label=label)
    low, high = [scale * p.latency_s.min() for p in found], [scale * p.latency_s.max() for p in found]
    axes.fill_between(x, low, high, color=shade, alpha=0.15, linewidth=0)


def _mark_best(axes: Any, curve: Curve, number: int) -> None:
    """A ring around the best share."""
    x, point = curve.best
    axes.plot([x], [point.median_s], "o", markersize=9, markerfacecolor="none", color=colour(number))


def _finish_panel(axes: Any, curves: Sequence[Curve]) -> None:
    axes.set_ylim(bottom=0)
    local = next((curve.local for curve in curves if curve.local), None)
    if local is not None:
        height = local.median_s * (1.0 if curves[0].local and 0.0 in curves[0].points else 1e3)
        axes.axhline(height, color="black", linewidth=0.8, linestyle=":", label="no split")


def _as_percent(axes: Any, curves: Sequence[Curve]) -> None:
    """A second axis on the right: percent of the latency without a split."""
    local = next((curve.local.median_s for curve in curves if curve.local), None)
    if local is not None:
        factor = 100 / local
        second = axes.secondary_yaxis("right", functions=(lambda y: y * factor, lambda y: y / factor))
        second.set_ylabel("% of local", fontsize="small")
        second.yaxis.set_major_locator(need("matplotlib.ticker", "report").MaxNLocator(5))


def _measured(points: Sequence[Point]) -> str:
    """How it was measured, for the title."""
    if not all(point.emulated for point in points):
        return "measured" if not any(point.emulated for point in points) else "measured, in part on emulated devices"
    dilations = " and ".join(f"{d:g}" for d in sorted({point.dilation for point in points}))
    return f"measured on emulated devices (dilation {dilations})"


def _legend(figure: Any, panels: np.ndarray, columns: int) -> None:
    """One legend for all panels, each label once."""
    found: dict[str, Any] = {}
    for axes in panels.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=columns, fontsize="small")


def _unique(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))
