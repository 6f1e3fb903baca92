"""The schemes: each is one function from a network and the ranks' shares to the box that every rank computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from mpiconv.errors import UsageError
from mpiconv.graph.form import MOVERS, PICTURE, Graph, Unit
from mpiconv.graph.grouping import head_units
from mpiconv.partition.box import Box, Span, hull, split
from mpiconv.partition.receptive import needs_of
from mpiconv.words import did_you_mean

Boxes = list[list[Box]]
Scheme = Callable[[Graph, Sequence[float]], Boxes]

PIECES_EACH = 4

FEATURES = 16
"""Cut at multiples of this, a matrix product of few pictures is bit for bit that of the whole (MKL sums in fours)."""

SCHEMES: dict[str, Scheme] = {}

BY_ROWS = ("wpm", "columns", "tiles", "fused", "grid")
"""Schemes that cut rows or columns. A fully connected layer's map has one of each, so there they cut its features."""

NO_SPLIT = ("single", "replicated")
"""Schemes in which some rank computes everything."""

MIXED, FUSES = ("kpm", "wpm", "columns", "grid", "tiles", "replicated"), ("wpm", "columns", "tiles")
"""Schemes between which a planner changes from unit to unit: ranks compute parts that do not overlap, or all the same.
Those that cut so that the units before can be fused with what needs them."""


def scheme(function: Scheme) -> Scheme:
    """Register a scheme under its function's name."""
    SCHEMES[function.__name__] = function
    return function


def check_scheme(name: str, others: Iterable[str] = ()) -> None:
    """Raise UsageError for a scheme that does not exist; ``others`` may stand in place of one where this is asked."""
    known = [*SCHEMES, *others]
    if name not in known:
        raise UsageError(f"unknown scheme {name!r}: choose from {', '.join(known)}{did_you_mean(name, known)}")


ROOT = 0
ROOT_ALONE = "root"
"""In place of a scheme's name for a unit that the root computes whole, since it cannot be split or was told to."""


def boxes_of(name: str, graph: Graph, shares: Sequence[float], head: int | None = None) -> tuple[list[str], Boxes]:
    """What each unit in ``graph.body`` is split by, and its boxes ``[unit][rank]``, under a named scheme.

    ``head`` is the rank that computes fully connected layers whole, None to split them too.

    Raises UsageError for a scheme that does not exist.
    """
    check_scheme(name)
    classifier = head_units(graph) if head is not None else ()
    names, boxes = [], SCHEMES[name](graph, shares)
    for index, (unit, row) in enumerate(zip(graph.body, boxes, strict=True)):
        alone = ROOT if unit.opaque else head if index in classifier else None
        if alone is not None:
            row[:] = [Box.whole(unit.out_shape) if rank == alone else Box() for rank in range(len(shares))]
            names.append(alone_on(alone))
        elif unit.fully_connected and name in BY_ROWS:
            row[:] = by_channels(unit, shares)
            names.append("kpm")
        else:
            names.append(name)
    return names, boxes


def alone_on(rank: int) -> str:
    """What stands in place of a scheme's name for a unit that one rank computes."""
    return ROOT_ALONE if rank == ROOT else f"rank{rank}"


def by_channels(unit: Unit, shares: Sequence[float], within: Box | None = None, pieces: int = 0) -> list[Box]:
    """A slice of the unit's channels for every rank, of all or of a box, cut at borders of ``pieces`` equal parts.

    ``pieces`` of 0: cut anywhere. A fully connected layer's are always cut at multiples of ``FEATURES``.
    """
    whole, count = within or Box.whole(unit.out_shape), unit.out_shape[0]
    width = FEATURES if unit.fully_connected else count // pieces if pieces else 1
    parts = split(-(-count // width), shares)
    return [Box(Span(part.lo * width, min(part.hi * width, count)), whole.rows, whole.columns) for part in parts]


def lined_up(graph: Graph, shares: Sequence[float]) -> list[int]:
    """In how many equal pieces to cut each unit's channels, so that grouped layers find their groups where they are.

    Units between which channel groups stay what they are (a depthwise or grouped convolution and what feeds it, an
    addition and its branches) are cut alike; not where that leaves a rank fewer than ``PIECES_EACH`` pieces on average.
    """
    body = graph.body
    parent = list(range(len(body)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    pieces = [unit.out_shape[0] for unit in body]
    for i, unit in enumerate(body):
        groups = math.gcd(*(layer.groups for layer in unit.layers[:-1]), unit.layers[-1].groups)
        if groups == 1 or any(layer.kind in MOVERS for layer in unit.layers):
            continue
        for source in unit.inputs:
            if source != PICTURE and not body[source].opaque and graph.shape_of(source)[0] % groups == 0:
                a, b = root(source), root(i)
                pieces[a] = math.gcd(pieces[a], pieces[b], groups)
                parent[b] = a
    enough = PIECES_EACH * sum(share > 0 for share in shares)
    return [pieces[root(i)] if pieces[root(i)] >= enough else 0 for i in range(len(body))]


def by_rows(unit: Unit, shares: Sequence[float]) -> list[Box]:
    """A band of the unit's rows for every rank."""
    whole = Box.whole(unit.out_shape)
    return [Box(whole.channels, part, whole.columns) for part in split(unit.out_shape[1], shares)]


def by_columns(unit: Unit, shares: Sequence[float], within: Box | None = None) -> list[Box]:
    """A band of the unit's columns for every rank, of all rows or of those of a box."""
    whole = within or Box.whole(unit.out_shape)
    return [Box(whole.channels, whole.rows, part) for part in split(unit.out_shape[2], shares)]


def in_teams(shares: Sequence[float]) -> list[list[float]]:
    """The ranks' shares as a grid: teams of as many ranks each, as square as the number of ranks allows."""
    across = max(d for d in range(1, math.isqrt(len(shares)) + 1) if len(shares) % d == 0)
    return [list(shares[i : i + across]) for i in range(0, len(shares), across)]


def by_tiles(
    unit: Unit, shares: Sequence[float], cut: Callable[[Unit, Sequence[float], Box], list[Box]] = by_columns
) -> list[Box]:
    """A tile of the unit's map for every rank: each team has a band of the rows, which its ranks ``cut`` by columns."""
    teams = in_teams(shares)
    bands = by_rows(unit, [sum(team) for team in teams])
    return [
        box
        for band, team in zip(bands, teams, strict=True)
        for box in (cut(unit, team, band) if band else [band] * len(team))
    ]


@scheme
def single(graph: Graph, shares: Sequence[float]) -> Boxes:
    """Rank 0 computes everything."""
    return [[Box.whole(unit.out_shape), *(Box() for _ in shares[1:])] for unit in graph.body]


@scheme
def kpm(graph: Graph, shares: Sequence[float]) -> Boxes:
    """Kernel partition [KPM22]: each rank computes its slice of every unit's output channels."""
    pairs = zip(graph.body, lined_up(graph, shares), strict=True)
    return [by_channels(unit, shares, pieces=pieces) for unit, pieces in pairs]


@scheme
def wpm(graph: Graph, shares: Sequence[float]) -> Boxes:
    """Workload partition [KPM22]: each rank computes its band of every unit's output rows."""
    return [by_rows(unit, shares) for unit in graph.body]


@scheme
def columns(graph: Graph, shares: Sequence[float]) -> Boxes:
    """Each rank computes its band of every unit's output columns: ``wpm``, turned."""
    return [by_columns(unit, shares) for unit in graph.body]


@scheme
def tiles(graph: Graph, shares: Sequence[float]) -> Boxes:
    """The ranks form a grid: each computes a tile, a part of the columns of a band of the rows."""
    return [by_tiles(unit, shares) for unit in graph.body]


@scheme
def replicated(graph: Graph, shares: Sequence[float]) -> Boxes:
    """Every rank with a share computes everything; only the picture is sent."""
    return [[Box.whole(unit.out_shape) if share else Box() for share in shares] for unit in graph.body]


@scheme
def grid(graph: Graph, shares: Sequence[float]) -> Boxes:
    """The ranks form a grid: each computes a slice of the channels of a band of the rows."""
    return [by_tiles(unit, shares, by_channels) for unit in graph.body]


@scheme
def fused(graph: Graph, shares: Sequence[float]) -> Boxes:
    """Bands of the last units' rows, and all that they need before: more to compute, nothing to exchange between.

    What needs a whole map (the head, a fully connected layer, a global pooling) gets it by an exchange, behind which
    it goes on so.
    """
    body = graph.body
    boxes: Boxes = [[Box()] * len(shares) for _ in body]
    for i in reversed(range(len(body))):
        readers = graph.consumers(i)
        barriers = [j for j in readers if needs_all(graph.units[j])]
        last = by_rows(body[i], shares) if barriers else boxes[i]
        needs = [
            [need for j in readers if j not in barriers for need in needs_of(graph.units[j], boxes[j][rank], i)]
            for rank in range(len(shares))
        ]
        boxes[i] = [hull([own, *rest]) for own, rest in zip(last, needs, strict=True)]
    return boxes


def needs_all(unit: Unit) -> bool:
    """Whether any part of the unit's output needs all rows of what it reads."""
    return unit.opaque or unit.fully_connected or unit.layers[0].spans_map
