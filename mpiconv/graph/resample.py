"""Tables of which rows (columns, channels) each row of the output is made of: for upsampling, slicing, shuffling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - its usual name

from mpiconv.graph.form import Shape

Table = dict[str, list[list[Any]]]
"""For every output row the input rows (``index``, -1 for none) and how much of each (``weight``); as plain lists."""


def picked(rows: Sequence[int]) -> Table | None:
    """The table of an axis whose row i is row ``rows[i]`` of the input; -1 makes a row of zeros."""
    return {"index": [[int(row)] for row in rows], "weight": [[float(row >= 0)] for row in rows]}


def interpolated(length: int, settings: dict[str, Any]) -> Table:
    """The table of one axis of ``F.interpolate``, found by interpolating the unit vectors.

    ``settings`` are its arguments with ``size`` and ``scale_factor`` of this axis alone. The vectors are the columns of
    one map: of a map with a single column torch may compute an antialiased interpolation wrongly.
    """
    size, factor = settings["size"], settings["scale_factor"]
    along = {
        **settings,
        "size": None if size is None else (size, length),
        "scale_factor": None if factor is None else (factor, 1.0),
    }
    matrix = F.interpolate(torch.eye(length)[None, None], **along)[0, 0]
    index, weight = [], []
    for row in matrix:
        taps = row.nonzero().flatten().tolist() or [0]
        index.append(taps)
        weight.append(row[taps].tolist())
    most = max(map(len, index))
    for taps, parts in zip(index, weight, strict=True):
        missing = most - len(taps)
        taps.extend([taps[0]] * missing)
        parts.extend([0.0] * missing)
    return {"index": index, "weight": weight}


def numbered(shape: Shape, batch: int) -> torch.Tensor:
    """A map (N, C, H, W) whose elements are their own numbers: what is done to it shows where each element goes."""
    return torch.arange(batch * shape[0] * shape[1] * shape[2]).view(batch, *shape)


def selection(moved: torch.Tensor, shape: Shape, batch: int) -> tuple[Table | None, Table | None, Table | None] | None:
    """How a moved ``numbered(shape)`` picks channels, rows and columns; None per axis that is as it was.

    None altogether, where it is no map made of whole channels, rows and columns of the one of that shape, for each of
    ``batch`` pictures.
    """
    channels, rows, columns = shape
    if moved.dim() != 4 or moved.shape[0] != batch or not moved.numel() or moved.is_floating_point():
        return None
    first = moved[0]
    picks = (first[:, 0, 0] // (rows * columns), first[0, :, 0] // columns % rows, first[0, 0] % columns)
    c, r, w = picks
    same = (c[:, None, None] * rows + r[None, :, None]) * columns + w == first
    pictures = torch.arange(batch).view(-1, 1, 1, 1) * (channels * rows * columns)
    if not same.all() or not torch.equal(first + pictures, moved):
        return None
    tables = [
        None if torch.equal(pick, torch.arange(length)) else picked(pick.tolist())
        for pick, length in zip(picks, shape, strict=True)
    ]
    return tables[0], tables[1], tables[2]
