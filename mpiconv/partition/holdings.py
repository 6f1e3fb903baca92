"""Which rows of which weights every rank has, and what has to travel where a plan wants others. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from mpiconv.graph.form import Param, Unit
from mpiconv.partition.box import Box, Span
from mpiconv.partition.exchange import Exchange, exchange
from mpiconv.partition.plan import FLOAT_BYTES, plans_of
from mpiconv.partition.receptive import layer_boxes
from mpiconv.partition.schemes import ROOT
from mpiconv.partition.turns import AnyPlan

Holdings = Mapping[Param, tuple[Span, ...]]
"""Of every tensor, named by ``tensor_of``, the rows that each rank has: output channels, one span a rank.

What is not in it no rank has but the root, rank 0, which has all tensors whole and always.
"""


def tensor_of(param: Param) -> Param:
    """A tensor apart from its role in a layer: several layers may compute with the same one."""
    return replace(param, role="")


def rows_needed(unit: Unit, box: Box) -> Iterator[tuple[int, Param, Span]]:
    """Which rows of which tensors ``box`` of a unit needs, as (number of the layer, tensor, rows)."""
    for number, (layer, part) in enumerate(zip(unit.layers, layer_boxes(unit, box), strict=True)):
        for param in () if layer.opaque else layer.params:
            yield number, param, part.channels


def holdings(plan: AnyPlan) -> dict[Param, tuple[Span, ...]]:
    """The rows that the ranks need for a plan, or for several in turn, those of the largest units first.

    Of a tensor that several units or plans compute with it is one span around the rows for each. What the root runs
    with the model's own modules is not among them.

    Examples
    --------
    >>> plan = mpiconv.make_plan(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3)), (1, 3, 9, 9), "kpm", 2, (3, 1))
    >>> {param.key: [str(span) for span in spans] for param, spans in holdings(plan).items()}
    {'0.weight': ['0:6', '6:8'], '0.bias': ['0:6', '6:8']}
    """
    found: dict[Param, list[Span]] = {}
    sizes = [sum(param.size for param in unit.params) for unit in plan.graph.body]
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        for rank, box in ((rank, box) for each in plans_of(plan) for rank, box in enumerate(each.boxes[index])):
            for _, param, rows in rows_needed(plan.graph.body[index], box):
                spans = found.setdefault(tensor_of(param), [Span()] * plan.ranks)
                spans[rank] = spans[rank].hull(rows)
    return {param: tuple(spans) for param, spans in found.items()}


def travels(had: Holdings, wanted: Holdings) -> dict[Param, Exchange]:
    """Who sends which rows of each tensor to whom; a tensor is exchanged like a map of shape (rows, 1, row length).

    A rank keeps what it has of what it wants; the rest comes from the nearest rank that has it.
    """
    found = {}
    for param, spans in wanted.items():
        whole = whole_of(param)
        owned = [_box(whole, span) for span in had.get(param, (Span(),) * len(spans))]
        owned[ROOT] = whole
        found[param] = exchange(owned, [_box(whole, span) for span in spans], f"weights {param.key}")
    return found


def bytes_moved(had: Holdings, wanted: Holdings, readers: Collection[int] = ()) -> int:
    """B of weights that travel between ranks that have some rows and want others, once per receiver.

    Nothing travels to ``readers``, which have them on their own disks.
    """
    moved = (t for spread in travels(had, wanted).values() for t in spread.transfers if t.target not in readers)
    return FLOAT_BYTES * sum(t.box.size for t in moved)


def extra_bytes(had: Holdings, more: Holdings) -> list[int]:
    """B of weights that each rank holds more."""
    ranks = len(next(iter(more.values()), ()))
    found = [0] * ranks
    for param, spans in more.items():
        row = FLOAT_BYTES * math.prod(param.shape[1:])
        before = had.get(param, (Span(),) * ranks)
        found = [total + row * (len(b) - len(a)) for total, a, b in zip(found, before, spans, strict=True)]
    return found


def whole_of(param: Param) -> Box:
    """A tensor as the map that is exchanged: (rows, 1, numbers of a row)."""
    return Box.whole((param.shape[0], 1, math.prod(param.shape[1:])))


def _box(whole: Box, rows: Span) -> Box:
    return Box(rows, whole.rows, whole.columns)
