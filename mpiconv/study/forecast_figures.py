"""Figures of a forecast: latency against the number of devices, and a map of what is fastest where."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpiconv.errors import need
from mpiconv.planner.forecast import AUTO, MULTICAST, SINGLE, Question
from mpiconv.study.combined import Point
from mpiconv.study.forecast_file import sizes_of
from mpiconv.study.series import speed
from mpiconv.study.style import WAITING, colour, pyplot, save

SCHEME_COLOURS = {"kpm": 0, "wpm": 1, "grid": 2, "fused": 3, AUTO: 5, "replicated": 4}
MARKERS = "osD^vP"
MOST_TIMES = 60
"""A latency above this multiple of one device's leaves its panel."""

NEAR = 0.02
"""By how much of itself a measured rate may differ from a panel's."""


def shade(scheme: str) -> str:
    """The colour of a scheme: grey where all is on one device."""
    return WAITING if scheme == SINGLE else colour(SCHEME_COLOURS.get(scheme, 7))


def draw(
    question: Question, latency_s: np.ndarray, device: str, folder: Path, measured: Sequence[Point] = ()
) -> list[Path]:
    """Both figures for every size of pictures, as PNG into a folder; the files.

    ``latency_s`` is over ``DIMENSIONS``. ``measured`` are drawn in the panels of their rates.

    Raises MpiconvError where a file cannot be written.
    """
    written = []
    for size, times in zip(sizes_of(question), latency_s, strict=True):
        about = f"{question.graphs[0].model}, {size}, {device}: estimated, not measured"
        for name, chart in (("latency", _latency), ("map", _map)):
            path = folder / f"{name}-{size}.png"
            with pyplot() as plt:
                save(chart(plt, question, times, about, measured), path)
            written.append(path)
    return written


def _latency(plt: Any, question: Question, times: np.ndarray, about: str, measured: Sequence[Point]) -> Any:
    """Latency against the number of devices: a column per rate, a row per medium, multicast dashed."""
    media = list(dict.fromkeys(medium.removesuffix(MULTICAST) for medium in question.media))
    rates, alike = question.rates_bytes_per_s, of_like_speed(measured, times[0, 0, 0, 0])
    size = (1.2 + 2.9 * len(rates), 1.3 + 2.6 * len(media))
    figure, panels = plt.subplots(len(media), len(rates), figsize=size, sharex=True, sharey=True, squeeze=False)
    for row, medium in zip(panels, media, strict=True):
        for k, (axes, rate) in enumerate(zip(row, rates, strict=True)):
            for name, dashes in ((medium, "-"), (medium + MULTICAST, "--")):
                if name in question.media:
                    _lines(axes, question, times[:, k, question.media.index(name)], dashes, name)
            if medium == "switch":
                at_rate = [point for point in alike if abs(point.rate_mb_per_s * 1e6 / rate - 1) < NEAR]
                _measured(axes, at_rate, question)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(need("matplotlib.ticker", "report").FuncFormatter(lambda y, _: f"{y:g}"))
            axes.set_title(f"{medium}, {rate / 1e6:g} MB/s", fontsize="small")
        row[0].set_ylabel("latency, s")
    shown = [n for n in question.device_counts if n == max(question.device_counts) or n & (n - 1) == 0]
    kept = [n for i, n in enumerate(shown) if i == len(shown) - 1 or (i % 2 == 0 and shown[-1] / n > 2)]
    least = min([np.nanmin(times), *(point.median_s for point in alike)])
    panels[0][0].set_ylim(least / 1.3, min(1.3 * np.nanmax(times), MOST_TIMES * times[0, 0, 0, 0]))
    for axes in panels[-1]:
        axes.set_xticks(kept, [str(n) for n in kept])
        axes.minorticks_off()
        axes.set_xlabel("devices")
    _legend(figure, panels)
    figure.suptitle(about, x=0.01, ha="left", fontsize="medium")
    return figure


def of_like_speed(measured: Sequence[Point], single_s: float) -> list[Point]:
    """The runs on devices that are about as fast as those simulated, by what one of them alone takes."""
    alone: dict[float, float] = {}
    for point in measured:
        if point.ranks == 1:
            pace = round(point.pace, 1)
            alone[pace] = min(point.median_s, alone.get(pace, np.inf))
    if not alone:
        return list(measured)
    nearest = min(alone, key=lambda pace: abs(np.log(alone[pace] / single_s)))
    return [point for point in measured if round(point.pace, 1) == nearest]


def _lines(axes: Any, question: Question, times: np.ndarray, dashes: str, medium: str) -> None:
    for n, scheme in enumerate(question.all_schemes):
        label = "all on one device" if scheme == SINGLE else scheme
        label += ", multicast (simulated only)" if medium.endswith(MULTICAST) and scheme != SINGLE else ""
        style = ":" if scheme == SINGLE else dashes
        single = {"color": "black", "linewidth": 1.0} if scheme == SINGLE else {"color": shade(scheme)}
        axes.plot(question.device_counts, times[:, n], style, marker="o", markersize=2.5, label=label, **single)


def _measured(axes: Any, points: Sequence[Point], question: Question) -> None:
    """Points of runs by schemes that are shown, a marker for every speed of devices and place of the exchange."""
    kinds = list(dict.fromkeys((round(p.pace, 1), p.gather) for p in points))
    for point in points:
        if point.scheme in question.all_schemes and point.ranks <= max(question.device_counts):
            kind = round(point.pace, 1), point.gather
            label = f"measured, {point.scheme}, gather {point.gather}: {speed(point.pace)}"
            axes.plot(
                [point.ranks],
                [point.median_s],
                MARKERS[kinds.index(kind) % len(MARKERS)],
                markersize=6,
                markerfacecolor="none",
                color="black" if point.scheme == SINGLE else shade(point.scheme),
                label=label,
            )


def _map(plt: Any, question: Question, times: np.ndarray, about: str, _: Sequence[Point]) -> Any:
    """What is fastest for every number of devices and rate, a panel per medium."""
    best = fastest(times)
    media, schemes = question.media, question.all_schemes
    columns = min(2, len(media))
    rows = -(-len(media) // columns)
    wide, high = 1.0 + 0.5 * len(question.device_counts), 1.1 + 0.42 * len(question.rates_bytes_per_s)
    figure, panels = plt.subplots(
        rows, columns, figsize=(max(6.4, columns * wide), 0.9 + rows * high), squeeze=False, sharex=True, sharey=True
    )
    colours = need("matplotlib.colors", "report").ListedColormap([shade(scheme) for scheme in schemes])
    for m, axes in enumerate(panels.flat):
        if m >= len(media):
            axes.set_visible(False)
            continue
        shown = best[:, :, m].T
        axes.pcolormesh(shown, cmap=colours, vmin=-0.5, vmax=len(schemes) - 0.5, edgecolor="white", linewidth=0.5)
        _write_gains(axes, shown, times[:, :, m], schemes)
        axes.set_xticks(np.arange(len(question.device_counts)) + 0.5, [str(n) for n in question.device_counts])
        axes.set_yticks(
            np.arange(len(question.rates_bytes_per_s)) + 0.5, [f"{rate / 1e6:g}" for rate in question.rates_bytes_per_s]
        )
        axes.grid(visible=False)
        axes.set_title(media[m] + (" (simulated only)" if media[m].endswith(MULTICAST) else ""), fontsize="small")
        axes.set_xlabel("devices" if m // columns == rows - 1 else "")
        axes.set_ylabel("MB/s" if m % columns == 0 else "")
    patch = need("matplotlib.patches", "report").Patch
    used = sorted(set(best.flat))
    names = {n: "one device" if schemes[n] == SINGLE else schemes[n] for n in used}
    figure.legend(
        handles=[patch(color=shade(schemes[n]), label=names[n]) for n in used],
        loc="outside lower center",
        ncols=len(used),
        fontsize="small",
    )
    title = f"{about}\nfastest scheme, and how many times faster than one device"
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium")
    return figure


def _write_gains(axes: Any, shown: np.ndarray, times: np.ndarray, schemes: Sequence[str]) -> None:
    """Into every cell where a split is fastest, how many times faster than one device; ``shown`` is (rate, count)."""
    for (k, j), scheme in np.ndenumerate(shown):
        if scheme:
            shade_of_text = "black" if schemes[scheme] in ("wpm", "fused", "replicated") else "white"
            gain = f"{times[j, k, 0] / times[j, k, scheme]:.1f}"
            axes.text(j + 0.5, k + 0.5, gain, ha="center", va="center", fontsize="x-small", color=shade_of_text)


def fastest(times: np.ndarray) -> np.ndarray:
    """(..., ): number of the fastest scheme, the last axis; of equal ones the first."""
    return np.asarray(np.nanargmin(times, axis=-1))


def _legend(figure: Any, panels: np.ndarray) -> None:
    found: dict[str, Any] = {}
    for axes in panels.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=3, fontsize="small")
