"""The work behind ``mpiconv model``: trace, calculate, print, draw."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict, fields, replace
from pathlib import Path

from torch import nn

from mpiconv.cli.networks import build_model
from mpiconv.data.pictures import read_picture
from mpiconv.errors import UsageError
from mpiconv.files import write_csv
from mpiconv.graph.trace import trace
from mpiconv.models import Info
from mpiconv.partition import make_plan
from mpiconv.study.equations import MpiRow, Row, mpi_rows, rows
from mpiconv.study.figures import figure_3, figure_4, figure_6, figure_7
from mpiconv.text import align, to_json


def show(arguments: argparse.Namespace) -> int:
    """Print the rows as a table or JSON, write CSV, draw a figure."""
    model, info = build_model(arguments)
    if arguments.input:
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", arguments.input):
            raise UsageError(f"--input {arguments.input!r} is not channels x rows x columns, like 3x227x227")
        channels, height, width = (int(part) for part in arguments.input.split("x"))
        info = replace(info, input_shape=(channels, height, width))
    graph = trace(model, info.input_shape).grouped("conv")
    if arguments.figure:
        _draw(arguments, model, info)
        return 0
    devices = arguments.devices or [1, 2, 4, 8]
    paper, exact = rows(graph, devices), mpi_rows(graph, devices)
    if arguments.csv:
        _write_csv(arguments.csv, paper, exact)
    if arguments.json:
        print(to_json([asdict(row) for row in paper]))
    else:
        print(
            f"{graph.model}, input {'x'.join(map(str, info.input_shape))}; one of N equal devices; elements and FLOPs"
        )
        print("\nby the paper's equations (a multicast counts once; flops of the unsplit layer):")
        print("\n".join(_table(Row, paper)))
        print("\nby message passing (exact, the rank that receives most; the last map goes to the root alone):")
        print("\n".join(_table(MpiRow, exact)))
    return 0


def _table(kind: type[Row] | type[MpiRow], found: list[Row] | list[MpiRow]) -> list[str]:
    names = [field.name for field in fields(kind)]
    return align([names, *([f"{getattr(row, n):.10g}" if n != "layer" else row.layer for n in names] for row in found)])


def _write_csv(path: str, paper: list[Row], exact: list[MpiRow]) -> None:
    """One line per layer and number of devices, the exact columns with ``mpi_`` before their names."""
    both = [
        asdict(p) | {f"mpi_{k}": v for k, v in asdict(e).items() if k not in ("layer", "devices")}
        for p, e in zip(paper, exact, strict=True)
    ]
    write_csv(path, both)


def _draw(arguments: argparse.Namespace, model: nn.Module, info: Info) -> None:
    out = Path(arguments.out or f"figure{arguments.figure}.png")
    graph = trace(model, info.input_shape).grouped("conv")
    if arguments.figure == 7:
        if not arguments.image:
            raise UsageError("figure 7 needs a picture: --image FILE")
        picture = read_picture(arguments.image, info)[None]
        ranks = max(arguments.devices or [4])
        figure_7(model, make_plan(model, picture.shape, "kpm", ranks), picture, out)
    else:
        draw = {3: figure_3, 4: figure_4, 6: figure_6}[arguments.figure]
        defaults = {3: [1, 4], 4: [4, 8], 6: list(range(2, 13))}[arguments.figure]
        draw(graph, arguments.devices or defaults, out)
    print(f"figure   {out}")
