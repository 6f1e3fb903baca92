"""A plan: for every unit and rank, the box that this rank computes - and all that follows from it by arithmetic."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpiconv.errors import MpiconvError, PlanError, UsageError
from mpiconv.files import write_text
from mpiconv.graph.form import PICTURE, Graph
from mpiconv.graph.grouping import HEADS, Gather, gather_of, grouped, head_units, single_layers
from mpiconv.partition.box import Box, hull, normalised
from mpiconv.partition.differences import other_network
from mpiconv.partition.exchange import Exchange, exchange
from mpiconv.partition.receptive import box_flops, box_weights, unit_needs
from mpiconv.partition.schemes import ROOT, ROOT_ALONE, alone_on, boxes_of
from mpiconv.reading import read_json

if TYPE_CHECKING:
    from torch import nn

FLOAT_BYTES = 4
PLAN_VERSION = 2
READ_VERSIONS = (1, PLAN_VERSION)


@dataclass(frozen=True)
class Plan:
    """Which rank computes which box of every unit's output; the last unit, the head, is the root's, rank 0.

    ``graph`` says by its units after which layers maps are exchanged; ``boxes[u][r]`` is the box of unit ``u`` of
    ``graph.body`` on rank ``r``; ``schemes[u]`` names what made it, or the only rank that computes it; ``batch`` is the
    number of pictures that travel together.
    """

    graph: Graph
    schemes: tuple[str, ...]
    shares: tuple[float, ...]
    batch: int
    boxes: tuple[tuple[Box, ...], ...]

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UsageError(f"a batch of {self.batch} pictures: at least 1 is needed")
        if len(self.boxes) != len(self.graph.body) or len(self.schemes) != len(self.graph.body):
            raise PlanError(f"a plan for {len(self.boxes)} units does not fit a network of {len(self.graph.body)}")
        for unit, boxes in zip(self.graph.body, self.boxes, strict=True):
            if len(boxes) != self.ranks:
                raise PlanError(f"unit {unit.name} has boxes for {len(boxes)} ranks, the plan is for {self.ranks}")
            for rank, box in enumerate(boxes):
                if unit.opaque and box != (Box.whole(unit.out_shape) if rank == ROOT else Box()):
                    raise PlanError(f"unit {unit.name} cannot be split: rank {ROOT} has to compute it all, not {box}")
                if box not in Box.whole(unit.out_shape):
                    raise PlanError(f"the box {box} of rank {rank} leaves the map {unit.out_shape} of {unit.name}")

    @property
    def ranks(self) -> int:
        """How many ranks it is for."""
        return len(self.shares)

    @property
    def scheme(self) -> str:
        """The scheme's name, or ``mixed`` where the units have different ones.

        Fully connected layers, which rows cannot split, count only where there is nothing else.
        """
        units = zip(self.graph.body, self.schemes, strict=True)
        alone = {alone_on(rank) for rank in range(self.ranks)}
        rest = {name for unit, name in units if not unit.fully_connected} - alone
        names = sorted(rest or set(self.schemes) - alone)
        return names[0] if len(names) == 1 else "mixed" if names else "single"

    @cached_property
    def gather(self) -> str:
        """Where units end and maps are exchanged: ``conv``, ``pool``, or ``mixed`` where that differs between them."""
        return gather_of(self.graph)

    @cached_property
    def head(self) -> str:
        """Who computes fully connected layers: ``root``, the number of another rank, or ``split``."""
        names = {self.schemes[unit] for unit in head_units(self.graph)} or {ROOT_ALONE}
        alone = {alone_on(rank): str(rank) if rank != ROOT else "root" for rank in range(self.ranks)}
        return alone.get(names.pop(), "split") if len(names) == 1 else "split"

    def alone(self) -> Plan:
        """The same units, all of them on one rank."""
        boxes = tuple((Box.whole(unit.out_shape),) for unit in self.graph.body)
        schemes = tuple(ROOT_ALONE if unit.opaque else "single" for unit in self.graph.body)
        return Plan(self.graph, schemes, (1.0,), self.batch, boxes)

    def fitted(self, graph: Graph) -> Plan:
        """This plan for a network as it was traced, in any grouping.

        Plans of version 1 know the fully connected layers in the head only as what the root computes: they become
        plans of the units that these are today.

        Raises PlanError where the network is another one; the first difference is named.
        """
        if single_layers(self.graph) == single_layers(graph):
            return self
        for head in HEADS:
            for gather in ("pool", "conv"):
                found = grouped(graph, gather, head)
                if found.body == self.graph.body and self.graph.input_shape == found.input_shape:
                    return replace(self, graph=found)
        gather, head = (self.gather, self.head) if self.gather != "mixed" and self.head in HEADS else ("pool", "root")
        raise PlanError(other_network(self.graph, grouped(graph, gather, head)))

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W) of what the network is called with."""
        return (self.batch, *self.graph.input_shape)

    @cached_property
    def owned(self) -> tuple[tuple[Box, ...], ...]:
        """``owned[u][r]``: what rank r computes of every unit, the head included."""
        head = Box.whole(self.graph.units[-1].out_shape)
        return (*self.boxes, tuple(head if rank == ROOT else Box() for rank in range(self.ranks)))

    @cached_property
    def exchanges(self) -> dict[int, Exchange]:
        """The exchange of every map that is read, by the unit that made it (``PICTURE`` for the picture)."""
        picture = Box.whole(self.graph.input_shape)
        found = {}
        needs = [[unit_needs(unit, box) for box in row] for unit, row in zip(self.graph.units, self.owned, strict=True)]
        for i in range(PICTURE, len(self.graph.body)):
            readers = self.graph.consumers(i)
            if not readers:
                continue
            owned = (
                self.owned[i] if i != PICTURE else [picture if rank == ROOT else Box() for rank in range(self.ranks)]
            )
            needed = [
                hull(
                    need
                    for j in readers
                    for source, need in zip(self.graph.units[j].inputs, needs[j][rank], strict=True)
                    if source == i
                )
                for rank in range(self.ranks)
            ]
            found[i] = exchange(owned, needed, "the picture" if i == PICTURE else f"unit {self.graph.units[i].name}")
        return found

    def incoming(self, unit: int) -> list[int]:
        """The maps that are exchanged just before ``unit``: those that it is the first to read."""
        return [i for i in dict.fromkeys(self.graph.units[unit].inputs) if self.graph.consumers(i)[0] == unit]

    def pattern(self, unit: int) -> str:
        """The MPI patterns of the exchange before ``unit``, joined by ``+``."""
        names = [self.exchanges[i].pattern for i in self.incoming(unit)]
        return "+".join(name for name in names if name != "none") or "none"

    def bytes_received(self, unit: int, rank: int) -> int:
        """Payload in B per inference that the rank needs before the unit and does not hold."""
        return FLOAT_BYTES * self.batch * sum(self.exchanges[i].received(rank) for i in self.incoming(unit))

    def bytes_sent(self, unit: int, rank: int) -> int:
        """Payload in B per inference that the rank sends before the unit, once per receiver."""
        return FLOAT_BYTES * self.batch * sum(self.exchanges[i].sent(rank) for i in self.incoming(unit))

    def multicast_bytes(self, unit: int, rank: int) -> int:
        """Payload in B per inference that the rank sends before the unit, however many receive it counted once."""
        return FLOAT_BYTES * self.batch * sum(self.exchanges[i].multicast(rank) for i in self.incoming(unit))

    def flops(self, unit: int, rank: int) -> int:
        """FLOPs of the rank in the unit per inference (2 x multiply-adds)."""
        return self.batch * box_flops(self.graph.units[unit], self.owned[unit][rank])

    def cuts_channels(self, unit: int) -> bool:
        """Whether some rank computes a part of the channels of a unit of the body."""
        whole = self.graph.units[unit].out_shape[0]
        return any(0 < len(box.channels) < whole for box in self.boxes[unit])

    def weight_bytes(self, unit: int, rank: int) -> int:
        """B of weights that the rank computes the unit with."""
        return FLOAT_BYTES * box_weights(self.graph.units[unit], self.owned[unit][rank])

    @property
    def idle(self) -> dict[int, list[str]]:
        """Ranks that own nothing in some units, and the names of those units."""
        body = self.graph.body
        empty = {r: [u.name for u, row in zip(body, self.boxes, strict=True) if not row[r]] for r in range(self.ranks)}
        return {rank: names for rank, names in empty.items() if names}

    def __str__(self) -> str:
        header = ("unit", "scheme", "exchange", "rank", "channels", "rows", "columns", "bytes in", "FLOPs %")
        rows: list[tuple[str, ...]] = [header]
        for u, unit in enumerate(self.graph.units):
            whole = max(self.batch * unit.flops, 1)
            for rank, box in enumerate(self.owned[u]):
                if u == len(self.boxes) and rank != ROOT:
                    continue
                spans = [str(span) for span in box.spans] if box else ["-"] * 3
                if u == len(self.boxes):
                    spans = ["all"] * 3
                scheme = self.schemes[u] if u < len(self.schemes) else ROOT_ALONE
                labels = (unit.name, scheme, self.pattern(u)) if rank == 0 else ("", "", "")
                percent = f"{100 * self.flops(u, rank) / whole:.1f}"
                rows.append((*labels, str(rank), *spans, f"{self.bytes_received(u, rank)}", percent))
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        title = (
            f"{self.graph.model}, input {'x'.join(map(str, self.input_shape))}, scheme {self.scheme}, "
            f"{self.ranks} ranks, gather {self.gather}, head {self.head}"
        )
        lines = [
            "  ".join(
                cell.ljust(width) if i < 3 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join([title, *lines])

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings that JSON can hold."""
        return {
            "mpiconv_plan": PLAN_VERSION,
            "schemes": list(self.schemes),
            "shares": list(self.shares),
            "batch": self.batch,
            "boxes": [[box.to_list() for box in row] for row in self.boxes],
            "graph": self.graph.to_dict(),
        }

    def to_json(self) -> str:
        """The plan as one line of JSON."""
        return json.dumps(self.to_dict(), separators=(",", ":"))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Rebuild a plan from what ``to_dict`` gave.

        Raises PlanError where the data is no plan, of another version, or fits no network.
        """
        if not isinstance(data, Mapping) or data.get("mpiconv_plan") not in READ_VERSIONS:
            known = " or ".join(map(str, READ_VERSIONS))
            raise PlanError(f"not a plan of version {known} (made by mpiconv plan --save)")
        try:
            shares = tuple(float(share) for share in data["shares"])
            boxes = tuple(tuple(Box.of(box) for box in row) for row in data["boxes"])
            normalised(shares, len(shares))
            schemes = tuple(str(name) for name in data["schemes"])
            plan = cls(Graph.from_dict(data["graph"]), schemes, shares, int(data["batch"]), boxes)
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            raise PlanError(f"a broken plan: {error!r}") from None
        _ = plan.exchanges
        return plan

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON: whole, or not at all.

        Raises MpiconvError, naming the file, where it cannot be written.
        """
        write_text(path, json.dumps(self.to_dict()) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan that ``save`` wrote.

        Raises PlanError, naming the file, where it is missing or no plan.
        """
        try:
            data = read_json(path, "plan")
        except MpiconvError as error:
            raise PlanError(f"{error}; a plan is what mpiconv plan --save writes") from None
        try:
            plan = cls.from_dict(data)
            str(plan)
        except MpiconvError as error:
            raise PlanError(f"{path}: {error}") from None
        except Exception as error:  # whatever the arithmetic makes of a network that none is
            raise PlanError(f"{path}: a broken plan: {error!r}") from None
        return plan


def make_plan(
    model: nn.Module | Graph,
    input_shape: Sequence[int],
    scheme: str = "kpm",
    ranks: int = 1,
    shares: Sequence[float] | None = None,
    gather: Gather | None = None,
    head: str | int | None = None,
) -> Plan:
    """Split a network over ranks by a named scheme.

    Parameters
    ----------
    model
        Any ``nn.Module`` that can be traced, or the Graph of one.
    input_shape
        (N, C, H, W) of the pictures.
    scheme
        ``single``, ``kpm``, ``wpm``, ``grid``, ``fused`` or ``replicated``.
    ranks
        Number of ranks.
    shares
        One number per rank on any positive scale, 0 for a rank that computes nothing; None for equal shares.
    gather
        Where a unit ends and its output is exchanged: ``conv`` (after the convolution, as in the paper) or ``pool``
        (after the activation and pooling that follow it); or one of them for each convolution by its layer's name.
        None: ``pool``.
    head
        Who computes the fully connected layers: ``root``, rank 0 alone; ``split``, every rank some of the features; or
        the number of the rank that computes all of them. None: ``root``. Where both are None, a Graph keeps its units,
        and fully connected ones are split.

    Raises
    ------
    UsageError
        Unknown scheme, gather or head, or shares that do not fit.
    ModelError
        A layer that cannot be split, named.

    Examples
    --------
    >>> model = mpiconv.load_model("vgg11")
    >>> print(mpiconv.make_plan(model, (1, 3, 224, 224), "wpm", ranks=3, shares=(1, 1, 2), head=2))
    """
    if ranks < 1:
        raise UsageError(f"{ranks} ranks: at least 1 is needed")
    batch, *picture = (int(length) for length in input_shape)
    if batch < 1:
        raise UsageError(f"a batch of {batch} pictures: at least 1 is needed")
    if isinstance(model, Graph):
        graph = model
        if list(graph.input_shape) != picture:
            raise UsageError(f"the network was traced for pictures of {graph.input_shape}, not {tuple(picture)}")
    else:
        from mpiconv.graph.trace import trace

        graph = trace(model, picture, batch=batch).layers
    place = None
    if gather is not None or head is not None or not isinstance(model, Graph):
        place = _rank_of(head or "root", ranks) if head != ROOT else ROOT
        graph = grouped(graph, gather or "pool", "root" if place == ROOT else "split")
    parts = normalised([1.0] * ranks if shares is None else shares, ranks)
    schemes, boxes = boxes_of(scheme, graph, parts, place)
    plan = Plan(graph, tuple(schemes), tuple(parts), batch, tuple(tuple(row) for row in boxes))
    _ = plan.exchanges
    return plan


def _rank_of(head: str | int, ranks: int) -> int | None:
    """The rank that computes fully connected layers; None for all. Raises UsageError for a head that is none."""
    if head in HEADS:
        return ROOT if head == "root" else None
    if not str(head).isdecimal():
        raise UsageError(f"unknown head {head!r}: choose from {', '.join(HEADS)}, or the number of a rank")
    if int(head) >= ranks:
        raise UsageError(f"the head is to be on rank {head}, and the ranks are numbered from 0 to {ranks - 1}")
    return int(head)
