"""The paper's figures from its equations (3, 4 and 6), and feature maps coloured by who made them (7)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from mpiconv.errors import need
from mpiconv.graph.form import Graph
from mpiconv.partition import Plan
from mpiconv.study.equations import MpiRow, Row, mpi_rows, rows
from mpiconv.study.style import colour, pyplot, save

SHOWN_MAPS = 9


def figure_3(graph: Graph, devices: Sequence[int], out: Path) -> None:
    """FLOPs of every convolution, unsplit and on one of several equal devices: [KPM22] Fig. 3, eq. (5)."""
    whole = rows(graph, [1])
    with pyplot() as plt:
        figure, axes = plt.subplots(figsize=(7, 4))
        counts = sorted({1, *devices})
        width = 0.8 / len(counts)
        for i, n in enumerate(counts):
            heights = [row.flops / n / 1e6 for row in whole]
            places = [j + (i - (len(counts) - 1) / 2) * width for j in range(len(whole))]
            label = "unsplit" if n == 1 else f"{n} devices"
            axes.bar(places, heights, width, label=label, color=colour(i))
        axes.set_xticks(range(len(whole)), [row.layer for row in whole])
        axes.set_ylabel("MFLOPs of one device")
        axes.set_title(f"{graph.model}: computation per layer (KPM and WPM alike), calculated")
        axes.legend()
        save(figure, out)


def figure_4(graph: Graph, devices: Sequence[int], out: Path) -> None:
    """Memory of every convolution on one of several devices, relative to unsplit: [KPM22] Fig. 4, eq. (11), (12)."""
    counts = [n for n in devices if n > 1] or [4, 8]
    with pyplot() as plt:
        figure, panels = plt.subplots(1, len(counts), figsize=(4 * len(counts), 4), sharey=True, squeeze=False)
        for axes, n in zip(panels[0], counts, strict=True):
            found = rows(graph, [n])
            for i, (scheme, values) in enumerate(
                [("KPM", [r.memory_kpm for r in found]), ("WPM", [r.memory_wpm for r in found])]
            ):
                heights = [value / row.memory_single for value, row in zip(values, found, strict=True)]
                axes.bar([j + (i - 0.5) * 0.4 for j in range(len(found))], heights, 0.4, label=scheme, color=colour(i))
            axes.axhline(1, color="black", linewidth=0.8)
            axes.set_xticks(range(len(found)), [row.layer for row in found])
            axes.set_title(f"{n} devices")
        panels[0][0].set_ylabel("elements held, relative to unsplit")
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        figure.suptitle(f"{graph.model}: memory per layer on one device, calculated", x=0.01, ha="left")
        save(figure, out)


def figure_6(graph: Graph, devices: Sequence[int], out: Path) -> None:
    """Elements that a device communicates per layer, against the number of devices: [KPM22] Fig. 6, section 2.3.

    Beside the paper's count, in which a multicast counts once, the elements that a rank receives in messages.
    """
    counts = sorted({n for n in devices if n > 1}) or list(range(2, 13))
    paper, exact = rows(graph, counts), mpi_rows(graph, counts)
    names = list(dict.fromkeys(row.layer for row in paper))
    with pyplot() as plt:
        figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
        series: list[tuple[str, list[Row] | list[MpiRow], tuple[str, str]]] = [
            ("the paper's count, multicast once", paper, ("communicated_kpm", "communicated_wpm")),
            ("received by the rank that receives most", exact, ("received_kpm", "received_wpm")),
        ]
        for axes, (title, found, keys) in zip(panels, series, strict=True):
            for i, name in enumerate(names):
                mine = [row for row in found if row.layer == name]
                for key, dashes in zip(keys, ("-", "--"), strict=True):
                    values = [getattr(row, key) for row in mine]
                    scheme = "KPM" if key.endswith("kpm") else "WPM"
                    label = f"{scheme} {name}"
                    axes.plot(counts, values, dashes, marker="o", markersize=3, color=colour(i), label=label)
            axes.set_xlabel("devices")
            axes.set_title(title)
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(need("matplotlib.ticker", "report").EngFormatter())
        panels[0].set_ylabel("elements per device")
        panels[1].legend(fontsize="small", ncols=2, loc="center left", bbox_to_anchor=(1, 0.5))
        figure.suptitle(f"{graph.model}: communication per layer, calculated", x=0.01, ha="left")
        save(figure, out)


def figure_7(model: nn.Module, plan: Plan, picture: torch.Tensor, out: Path) -> None:
    """Nine feature maps after the first unit, framed in the colour of the rank that made them: [KPM22] Fig. 7."""
    unit = plan.graph.body[0]
    made: list[torch.Tensor] = []
    hook = model.get_submodule(unit.layers[0].name).register_forward_hook(lambda _m, _i, out: made.append(out.clone()))
    with torch.inference_mode():
        model(picture)
    hook.remove()
    maps = made[0][0].relu()
    channels = [round(i * (len(maps) - 1) / (SHOWN_MAPS - 1)) for i in range(SHOWN_MAPS)]
    with pyplot() as plt:
        figure, panels = plt.subplots(3, 3, figsize=(6, 6.6))
        for axes, channel in zip(panels.flat, channels, strict=True):
            rank = next(
                r for r, box in enumerate(plan.boxes[0]) if box and box.channels.lo <= channel < box.channels.hi
            )
            axes.imshow(maps[channel].numpy(), cmap="gray")
            axes.grid(visible=False)
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"kernel {channel}, rank {rank}", fontsize="small", color=colour(rank))
            for spine in axes.spines.values():
                spine.set(visible=True, color=colour(rank), linewidth=3)
        title = f"{plan.graph.model}: maps after {unit.name}, {plan.scheme} over {plan.ranks} ranks"
        figure.suptitle(title, x=0.01, ha="left")
        save(figure, out)
