"""Whether pooling over windows that overlap is computed before a map changes hands or behind it. Pure."""

from __future__ import annotations

from dataclasses import replace

from mpiconv.graph.form import Graph, Unit
from mpiconv.graph.grouping import grouped
from mpiconv.partition.box import Box
from mpiconv.partition.plan import Plan
from mpiconv.partition.receptive import layer_boxes

POOLS = ("maxpool", "avgpool")


def apart(graph: Graph) -> Graph | None:
    """The network with what pools over overlapping windows in units of its own; None where nothing does.

    A rank that pools its rows computes those of the convolution twice that its neighbour's windows read too, unless
    these are exchanged. Where a normalisation lies between they stay together: it is put into the kernels.
    """
    names = [unit.layers[0].name for unit in grouped(graph, "pool", "split").body if _overlaps(unit)]
    return grouped(graph, dict.fromkeys(names, "conv"), "split") if names else None


def _overlaps(unit: Unit) -> bool:
    first, *rest = unit.layers
    pooled = any(layer.kind in POOLS and layer.kernel > layer.stride for layer in rest)
    return first.kind == "conv" and pooled and not any(layer.has_kernels or layer.kind == "norm" for layer in rest)


def joined(plan: Plan, graph: Graph) -> Plan:
    """The same plan with each convolution and its pooling in one unit, where no part of the map between is sent.

    Parameters
    ----------
    plan
        A plan for ``apart(graph)``.
    graph
        The network in any grouping.
    """
    sent = {
        unit.layers[-1].name
        for index, unit in enumerate(plan.graph.body)
        if unit.layers[-1].kind == "conv" and len(plan.exchanges[index].table)
    }
    units = grouped(graph, dict.fromkeys(sorted(sent), "conv"), "split")
    names, boxes = dict[int, str](), dict[int, tuple[Box, ...]]()
    for unit, name, row in zip(plan.graph.body, plan.schemes, plan.boxes, strict=True):
        parts = [layer_boxes(unit, box) if box else [Box()] * len(unit.layers) for box in row]
        for number, layer in enumerate(unit.layers):
            boxes[id(layer)] = tuple(part[number] for part in parts)
            names[id(layer)] = name if layer is unit.layers[-1] else "fused"
    ends = [id(unit.layers[-1]) for unit in units.body]
    schemes = tuple(names[end] for end in ends)
    return replace(plan, graph=units, schemes=schemes, boxes=tuple(boxes[end] for end in ends))
