"""The page of the reproduction: every claim of [KPM22] with what came out, from the equations and the result files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpiconv.errors import need
from mpiconv.files import write_text
from mpiconv.graph.trace import trace
from mpiconv.models import load_model
from mpiconv.study import claims_calculated as calculated
from mpiconv.study import claims_measured as runs_say
from mpiconv.study.claims import Claim
from mpiconv.study.combined import Point, combine, points
from mpiconv.study.figures import SHOWN_MAPS
from mpiconv.study.robustness import Lost
from mpiconv.study.series import MODELS

INPUT = (3, 227, 227)
BLOCK = 8
TOO_BUSY = 0.1
FIGURE_8, FIGURE_9 = "figure8.h5", "figure9.h5"


@dataclass(frozen=True)
class Runs:
    """The runs of a combined file and what they share; empty where the file is not there."""

    name: str
    there: bool
    points: Sequence[Point]
    attributes: dict[str, Any]
    created: Sequence[str]


def read_runs(path: Path) -> Runs:
    """Read a combined file if it is there.

    Raises MpiconvError for one that is there and cannot be read.
    """
    if not path.exists():
        return Runs(path.name, False, (), {}, ())
    data = combine([path])
    return Runs(path.name, True, points(data), dict(data.attrs), [str(text) for text in data["created"].values])


def write_page(
    results: Path,
    figures: Path,
    out: Path,
    picture: torch.Tensor | None = None,
    option: str = "",
    lost: Lost | None = None,
) -> None:
    """Write the page as Markdown.

    Parameters
    ----------
    results
        Folder with figure8.h5 and figure9.h5, either of which may be missing.
    figures
        Folder with the figures as PNG; those that are there are shown.
    out
        The page.
    picture
        A normalised picture (1, 3, H, W) for the claim about Figure 7.
    option
        The form of scripts/figures.sh that made it, with a blank before.
    lost
        What became of answers without a device's part, for the claim about robustness.

    Raises
    ------
    MpiconvError
        A file cannot be read or written, or an extra is not installed.
    """
    jinja2 = need("jinja2", "report")
    eight, nine = read_runs(results / FIGURE_8), read_runs(results / FIGURE_9)
    parts = _sections(eight, nine, picture, lost)
    sections = [(title, _link(figures, name, out), text, claims) for title, name, text, claims in parts]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mpiconv.study"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("reproduction.md").render(
        option=option,
        files={eight.name: eight.there, nine.name: nine.there},
        sections=sections,
        claims=[claim for _, _, _, claims in parts for claim in claims],
        **_about(eight, nine),
    )
    write_text(out, page.strip() + "\n")


def _sections(
    eight: Runs, nine: Runs, picture: torch.Tensor | None, lost: Lost | None
) -> list[tuple[str, str, str, list[Claim]]]:
    """Title, figure, text and claims of every section."""
    model = load_model("alexnet")
    graph, pooled = (trace(model, INPUT).grouped(gather) for gather in ("conv", "pool"))
    runs, file = nine.points, nine.name
    memory = calculated.figure_4(graph, runs, file)
    words = runs_say.section_3(runs, file, lost)
    likeness = None if picture is None else map_likeness(picture)
    emulated = "Emulated devices, see above."
    return [
        ("The two schemes", "", "", [memory[-1], words[0], calculated.most_devices(graph, pooled)]),
        ("Figure 3: computation", "figure3.png", "", calculated.figure_3(graph, runs, file)),
        ("Figure 4: memory", "figure4.png", "", memory[:-1]),
        ("Figure 6: communication", "figure6.png", "", calculated.figure_6(graph, runs, file)),
        ("Figure 7: what a slice of the kernels sees", "figure7.jpg", "", [calculated.figure_7(likeness)]),
        ("Figure 8: offloading", "figure8.png", emulated, runs_say.figure_8(eight.points, eight.name)),
        ("Figure 9: equal devices", "figure9.png", emulated, runs_say.figure_9(runs, file)),
        (
            "Energy",
            "",
            "",
            [runs_say.constants(nine.attributes or eight.attributes, (nine if nine.there else eight).name)],
        ),
        ("Section 3: in words only", "", "", words[1:]),
    ]


def _about(eight: Runs, nine: Runs) -> dict[str, Any]:
    """What was measured, for the head of the page."""
    found = [*eight.points, *nine.points]
    days = sorted({text[:10] for text in (*eight.created, *nine.created) if text})
    commits = sorted({point.git_commit[:12] for point in found if point.git_commit})
    repeats = sorted({len(point.latency_s) for point in found})
    usual, worst = runs_say.overrun(found)
    return {
        "runs": len(found),
        "dates": f" ({days[0]}{f' to {days[-1]}' if len(days) > 1 else ''})" if days else "",
        "repeats": " to ".join(str(n) for n in dict.fromkeys((repeats[0], repeats[-1]))) if repeats else "",
        "dilations": " or ".join(f"{d:g}" for d in sorted({point.dilation for point in found})),
        "overrun": f"{usual:.0%}",
        "worst_overrun": f"{worst:.0%}",
        "too_busy": usual > TOO_BUSY,
        "models": " and ".join(MODELS.get(name, name) for name in sorted({point.model for point in found})),
        "commits": f"{'s' if len(commits) > 1 else ''} {', '.join(commits)}" if commits else " unknown",
        "cores": os.cpu_count(),
    }


def _link(figures: Path, name: str, out: Path) -> str:
    """The figure's path from the page, empty where there is none."""
    return os.path.relpath(figures / name, out.parent) if name and (figures / name).exists() else ""


def map_likeness(picture: torch.Tensor) -> list[float]:
    """For nine maps of VGG11's first convolution, whether they have detail where the picture (1, 3, H, W) has.

    The correlation of the standard deviations in blocks of 8 x 8 pixels, after the activation.
    """
    first = next(layer for layer in load_model("vgg11").modules() if isinstance(layer, torch.nn.Conv2d))
    with torch.inference_mode():
        maps = first(picture)[0].relu()
        detail = _detail(picture.mean(1)[0])
        channels = [round(i * (len(maps) - 1) / (SHOWN_MAPS - 1)) for i in range(SHOWN_MAPS)]
        return [float(np.corrcoef(_detail(maps[channel]), detail)[0, 1]) for channel in channels]


def _detail(image: torch.Tensor) -> np.ndarray:
    blocks = image.unfold(0, BLOCK, BLOCK).unfold(1, BLOCK, BLOCK)
    return np.asarray(blocks.std(dim=(2, 3)).flatten().numpy())
