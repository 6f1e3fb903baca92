"""What to tell a person about a network on a cluster: where splitting begins to pay, what would help. Pure.

All of it is found by simulating once more with something changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from operator import itemgetter
from typing import Any

import numpy as np

from mpiconv.graph.form import Graph
from mpiconv.graph.grouping import grouped
from mpiconv.partition.bounds import bounds
from mpiconv.partition.box import Box
from mpiconv.partition.plan import Plan
from mpiconv.partition.schemes import ROOT
from mpiconv.partition.wire import FLOAT32, WIRES
from mpiconv.planner.bounds import Costs, Needs
from mpiconv.planner.candidates import Candidate
from mpiconv.planner.cluster import Cluster, Link
from mpiconv.planner.coding import priced
from mpiconv.planner.estimating import estimate, scheduled
from mpiconv.planner.limits import limits_for
from mpiconv.planner.memory import peak_bytes
from mpiconv.planner.proposals import Proposals, levelled, named, names_of, searched, undivided
from mpiconv.planner.rates import Rates
from mpiconv.planner.ways import speeds_of, ways

FARTHEST = 12
"""Links up to 2 ** FARTHEST times as fast, or as slow, are looked at for the rate from which splitting pays."""

HALVINGS = 4
"""How often the factor of two between which that rate lies is halved, so that it is known to 5 %."""

WORTH = 1.05
"""Splitting pays, and a change helps, where a picture takes less by this factor at least."""

COMPARED = 2
"""Splits that are simulated again at other link rates: the fastest at each rate that candidates are found for."""

REFINED, NEAR = 3, 0.2
"""The best splits where they begin to pay are compared too, so often at most, until that changes by less than 15 %."""


@dataclass(frozen=True)
class BreakEven:
    """Where the fastest split is so much faster than the fastest plan that splits nothing that it is worth it.

    ``factor``: the links' rates there over what they are; None where splitting pays at no rate, or at all.
    """

    pays_now: bool
    factor: float | None


@dataclass(frozen=True)
class Alternative:
    """One way to split a unit: what it takes after what the plan has done before it. ``chosen``: the plan does so."""

    name: str
    compute_s: float
    exchange_s: float
    chosen: bool = False


def break_even(graph: Graph, cluster: Cluster, found: Sequence[Candidate], batch: int = 1) -> BreakEven | None:
    """From which link rate on splitting pays, or down to which it does; None where there is nothing to split over."""
    whole = [each.plan for each in found if not each.divided][:COMPARED]
    splits = [each for each in found if each.divided]
    if not whole or not splits:
        return None
    pays_now = WORTH * splits[0].latency_s < min(each.latency_s for each in found if not each.divided)
    pool, known = [each.plan for each in splits[:COMPARED]], math.inf
    for _ in range(REFINED):
        crossing = _crossing(_comparison(cluster, pool, whole), pays_now=pays_now)
        power = (-FARTHEST if pays_now else FARTHEST) if crossing is None else crossing
        if abs(power - known) < NEAR:
            break
        known = power
        pool += _splits(graph, cluster.with_links(2**power), batch)
    return BreakEven(pays_now, None if crossing is None else 2**crossing)


def _splits(graph: Graph, cluster: Cluster, batch: int) -> list[Plan]:
    """The fastest splits of the schemes and the search that every device has the memory for, ``COMPARED`` at most."""
    limits, found = limits_for(cluster, names_of(cluster)), dict[Any, tuple[float, Plan]]()

    def add(proposals: Proposals) -> None:
        for _, plan in proposals:
            if plan.boxes not in found and any(sum(map(bool, row)) > 1 for row in plan.boxes):
                found[plan.boxes] = estimate(plan, cluster).latency_s, plan

    add(chain(named(graph, cluster, batch), searched(graph, cluster, batch)))
    if found:
        add(levelled(graph, cluster, batch, min(found.values(), key=itemgetter(0))[1]))
    plans = (plan for _, plan in sorted(found.values(), key=itemgetter(0)))
    fitting = (plan for plan in plans if limits.broken(peak_bytes(scheduled(plan, cluster))) is None)
    return list(islice(fitting, COMPARED))


def _crossing(pays: Callable[[float], bool], *, pays_now: bool) -> float | None:
    """The power of two of the links' factor where splitting begins to pay; None where it is too far away."""
    step = -1 if pays_now else 1
    near = 0
    while pays(2.0**near) == pays_now:
        near += step
        if abs(near) > FARTHEST:
            return None
    low, high = (near, near + 1) if pays_now else (near - 1, near)
    return _halved(lambda power: pays(2**power), low, high)


def _halved(pays: Callable[[float], bool], low: float, high: float) -> float:
    """Where splitting begins to pay between two powers of two: not at the lower, at the higher."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if pays(middle) else (middle, high)
    return (low + high) / 2


def _comparison(cluster: Cluster, splits: Sequence[Plan], whole: Sequence[Plan]) -> Callable[[float], bool]:
    """A function from a factor on the links' rates to whether the fastest split is worth it beside the rest."""

    def pays(factor: float) -> bool:
        changed = cluster.with_links(factor)
        split_s, whole_s = (min(estimate(plan, changed).latency_s for plan in some) for some in (splits, whole))
        return WORTH * split_s < whole_s

    return pays


def helps(
    graph: Graph, cluster: Cluster, now_s: float, batch: int = 1, wire: str = FLOAT32.name
) -> list[tuple[str, float]]:
    """What a picture would take after some changes of the cluster, in s: the first is none, the rest best first.

    ``now_s`` is what it takes without any; ``wire`` the format of messages.
    """
    names = names_of(cluster)
    changes = [(f"{names[ROOT]} twice as fast", _faster_root(cluster)), (*_one_more(graph, cluster, batch),)]
    if cluster.links:
        changes.append(("links twice as fast", cluster.with_links(2.0)))
    found = sorted(
        ((what, _quickest(graph, changed, batch, wire)) for what, changed in changes), key=lambda pair: pair[1]
    )
    return [("as it is", now_s), *found]


def _quickest(graph: Graph, cluster: Cluster, batch: int, wire: str) -> float:
    plans = chain(undivided(graph, cluster, batch), searched(graph, priced(cluster, WIRES[wire]), batch))
    return min(estimate(replace(plan, wire=wire), cluster).latency_s for _, plan in plans)


def _faster_root(cluster: Cluster) -> Cluster:
    root, *rest = cluster.devices
    return replace(cluster, devices=(root.faster(2.0), *rest))


def _one_more(graph: Graph, cluster: Cluster, batch: int) -> tuple[str, Cluster]:
    """The cluster with one more of its fastest device, on links like the slowest; at 12.5 MB/s where it has none."""
    speeds, count = speeds_of(grouped(graph, "pool", "split"), cluster, batch), len(cluster.devices)
    model = cluster.devices[int(np.argmax(speeds))]
    slowest = min(cluster.links, key=lambda link: link.beta_bytes_per_s, default=Link(0, 1, 1e-4, 12.5e6))
    links = [
        replace(slowest, source=source, target=target)
        for other in range(count)
        for source, target in ((other, count), (count, other))
    ]
    device = replace(model, host=f"{model.host}-more")
    return f"one more device like {model.host}", replace(
        cluster, devices=(*cluster.devices, device), links=(*cluster.links, *links)
    )


def lower_bound_s(graph: Graph, cluster: Cluster, batch: int = 1) -> float:
    """S below which no split can come: every unit spread over all devices by their speeds, with nothing to send.

    As long as no part of a unit takes less than its part of the whole unit's time.
    """
    units = grouped(graph, "pool", "split")
    costs, count, total = Costs(units, cluster, batch), len(cluster.devices), 0.0
    for index, unit in enumerate(units.units):
        seconds = costs(index, np.tile(bounds([Box.whole(unit.out_shape)]), (count, 1)))
        total += float(seconds[ROOT]) if unit.opaque else 1 / float((1 / seconds).sum())
    return total


def alternatives(plan: Plan, cluster: Cluster, unit: int) -> list[Alternative]:
    """Every way to split one unit of the body, with what it takes after what the plan does before; quickest first."""
    graph, count = plan.graph, plan.ranks
    names, choice = names_of(cluster), ways(graph, cluster, plan.batch)
    own = bounds(plan.boxes[unit])
    rows = np.concatenate([own[None], np.stack([bounds(way.boxes[unit]) for way in choice])])
    labels = [plan.schemes[unit], *(way.names[unit] for way in choice)]
    compute = Costs(graph, cluster, plan.batch)(unit, rows).max(axis=-1)
    rates, moving = Rates(cluster, plan.batch), np.zeros(len(rows))
    picture = [Box.whole(graph.input_shape), *[Box()] * (count - 1)]
    for source, need in zip(graph.units[unit].inputs, Needs(graph)(unit, rows), strict=True):
        made = bounds(picture if source < 0 else plan.boxes[source])
        moving = moving + rates.seconds(made[None], need)
    found, seen = [], set()
    for row, label, compute_s, exchange_s in zip(rows, labels, compute.tolist(), moving.tolist(), strict=True):
        if row.tobytes() not in seen:
            seen.add(row.tobytes())
            at = [names[rank] for rank in np.flatnonzero(row[:, 1])]
            where = at[0] if len(at) == 1 else f"all {count}" if len(at) == count else _few(at)
            name = f"on {where}" if len(at) == 1 else f"{label} over {where}"
            found.append(Alternative(name, compute_s, exchange_s, chosen=len(seen) == 1))
    return sorted(found, key=lambda each: each.compute_s + each.exchange_s)


def _few(names: Sequence[str], most: int = 4) -> str:
    """Names joined by commas; of many their number."""
    return ", ".join(names) if len(names) <= most else f"{len(names)} devices"


def rate_now(cluster: Cluster) -> float | None:
    """B/s of the links where all have the same to 10 %; None where they have not."""
    rates = [link.beta_bytes_per_s for link in cluster.links]
    same = rates and max(rates) <= 1.1 * min(rates)
    return math.exp(sum(map(math.log, rates)) / len(rates)) if same else None
