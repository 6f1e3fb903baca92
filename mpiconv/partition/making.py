"""Plans by named schemes, and plans for a network as it was traced anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mpiconv.errors import PlanError, UsageError
from mpiconv.graph.form import Graph
from mpiconv.graph.grouping import HEADS, Gather, grouped, single_layers
from mpiconv.partition.box import Box, normalised
from mpiconv.partition.differences import other_network
from mpiconv.partition.plan import Plan
from mpiconv.partition.schemes import ROOT, ROOT_ALONE, alone_on, boxes_of
from mpiconv.partition.wire import FLOAT32

if TYPE_CHECKING:
    from torch import nn

    from mpiconv.partition.turns import AnyPlan


def make_plan(
    model: nn.Module | Graph,
    input_shape: Sequence[int],
    scheme: str = "kpm",
    ranks: int = 1,
    shares: Sequence[float] | None = None,
    gather: Gather | None = None,
    head: str | int | None = None,
    wire: str = FLOAT32.name,
) -> Plan:
    """Split a network over ranks by a named scheme.

    Parameters
    ----------
    model
        Any ``nn.Module`` that can be traced, or the Graph of one.
    input_shape
        (N, C, H, W) of the pictures.
    scheme
        ``single``, ``kpm``, ``wpm``, ``columns``, ``tiles``, ``grid``, ``fused`` or ``replicated``.
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

    wire
        Number format of maps in messages: ``float32``, or ``float16``, ``bfloat16``, ``int8`` for fewer bytes.

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
    (graph, batch), place = graph_of(model, input_shape, ranks), None
    if gather is not None or head is not None or not isinstance(model, Graph):
        place = _rank_of(head or "root", ranks) if head != ROOT else ROOT
        graph = grouped(graph, gather or "pool", "root" if place == ROOT else "split")
    parts = normalised([1.0] * ranks if shares is None else shares, ranks)
    schemes, boxes = boxes_of(scheme, graph, parts, place)
    plan = Plan(graph, tuple(schemes), tuple(parts), batch, tuple(tuple(row) for row in boxes), wire=wire)
    _ = plan.exchanges
    return plan


def graph_of(model: nn.Module | Graph, input_shape: Sequence[int], ranks: int) -> tuple[Graph, int]:
    """The graph of a network, and the batch; raises UsageError where there are no ranks or no pictures."""
    if ranks < 1:
        raise UsageError(f"{ranks} ranks: at least 1 is needed")
    batch, *picture = (int(length) for length in input_shape)
    return _traced(model, picture, batch), batch


def _traced(model: nn.Module | Graph, picture: list[int], batch: int) -> Graph:
    """The graph of a network, for pictures (C, H, W); raises UsageError for one that was traced for others."""
    if batch < 1:
        raise UsageError(f"a batch of {batch} pictures: at least 1 is needed")
    if not isinstance(model, Graph):
        from mpiconv.graph.trace import trace

        return trace(model, picture, batch=batch).layers
    if list(model.input_shape) != picture:
        raise UsageError(f"the network was traced for pictures of {model.input_shape}, not {tuple(picture)}")
    return model


def _rank_of(head: str | int, ranks: int) -> int | None:
    """The rank that computes fully connected layers; None for all. Raises UsageError for a head that is none."""
    if head in HEADS:
        return ROOT if head == "root" else None
    if not str(head).isdecimal():
        raise UsageError(f"unknown head {head!r}: choose from {', '.join(HEADS)}, or the number of a rank")
    if int(head) >= ranks:
        raise UsageError(f"the head is to be on rank {head}, and the ranks are numbered from 0 to {ranks - 1}")
    return int(head)


def fitted(plan: Plan, graph: Graph) -> Plan:
    """A plan for a network as it was traced, in any grouping.

    Plans of version 1 know the fully connected layers in the head only as what the root computes: they become
    plans of the units that these are today.

    Raises PlanError where the network is another one; the first difference is named.
    """
    if single_layers(plan.graph) == single_layers(graph):
        return plan
    for head in HEADS:
        for gather in ("pool", "conv"):
            found = grouped(graph, gather, head)
            if found.body == plan.graph.body and plan.graph.input_shape == found.input_shape:
                return replace(plan, graph=found)
    gather, head = (plan.gather, plan.head) if plan.gather != "mixed" and plan.head in HEADS else ("pool", "root")
    raise PlanError(other_network(plan.graph, grouped(graph, gather, head)))


def on_rank(graph: Graph, rank: int, ranks: int, batch: int) -> Plan:
    """All on one of several ranks, but for what cannot be split, which stays on the root."""
    owners = [ROOT if unit.opaque else rank for unit in graph.body]
    boxes = tuple(
        tuple(Box.whole(unit.out_shape) if each == owner else Box() for each in range(ranks))
        for unit, owner in zip(graph.body, owners, strict=True)
    )
    shares = tuple(float(each == rank) for each in range(ranks))
    return Plan(graph, tuple(map(alone_on, owners)), shares, batch, boxes)


def alone(plan: AnyPlan) -> Plan:
    """A plan with the same units, all of them on one rank."""
    boxes = tuple((Box.whole(unit.out_shape),) for unit in plan.graph.body)
    schemes = tuple(ROOT_ALONE if unit.opaque else "single" for unit in plan.graph.body)
    return Plan(plan.graph, schemes, (1.0,), plan.batch, boxes)
