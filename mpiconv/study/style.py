"""How figures look: one place for colours and sizes, readable on paper, on a phone and for the colour-blind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from colorsys import hls_to_rgb
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mpiconv.errors import MpiconvError, need
from mpiconv.files import replaced

# Okabe and Ito's palette
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
WAITING = "#B8BEC6"
GOLDEN = 0.618034
"""Steps of this part of the colour circle come back to no hue that was there before."""
LONGEST_NAME = 28
SETTINGS = {
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "font.size": 10,
    "grid.color": "#E3E6EA",
    "legend.frameon": False,
    "savefig.dpi": 150,
    "svg.fonttype": "none",
    "svg.hashsalt": "mpiconv",
    "text.parse_math": False,
}


def colour(index: int) -> str:
    """The colour of rank, run or unit number ``index``: first the palette's, then others, no two alike."""
    if index < len(COLOURS):
        return COLOURS[index]
    lightness = (0.42, 0.68, 0.28)[index % 3]
    return "#{:02X}{:02X}{:02X}".format(*(round(255 * c) for c in hls_to_rgb(index * GOLDEN % 1, lightness, 0.62)))


def shortened(names: Sequence[str], length: int = LONGEST_NAME) -> list[str]:
    """Shorten names to a maximum length: cut the middle out of longer ones, and number those that would look alike."""
    head = length // 2 - 1
    short = [n if len(n) <= length else f"{n[:head]}\N{HORIZONTAL ELLIPSIS}{n[head + 1 - length :]}" for n in names]
    return [f"{i}: {n[: length - 4]}" if short.count(n) > 1 else n for i, n in enumerate(short, 1)]


@contextmanager
def pyplot() -> Iterator[Any]:
    """Matplotlib's pyplot with the project's style and no window; its figures are closed at the end."""
    need("matplotlib", "report").use("Agg")
    plt = need("matplotlib.pyplot", "report")
    with plt.rc_context(SETTINGS):
        try:
            yield plt
        finally:
            plt.close("all")


def save(figure: Any, path: Path) -> None:
    """Write a figure; the ending of the path says the format.

    Raises MpiconvError, naming the file, where it cannot be written or its format is unknown.
    """
    kind = path.suffix.removeprefix(".") or "png"
    try:
        with replaced(path) as file:
            figure.savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else None)
    except ValueError:
        raise MpiconvError(f"cannot write {path}: choose a name ending in .png, .svg or .pdf") from None
