"""What a network would take on 1 to hundreds of devices, by scheme, link rate and medium: simulated. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np

from mpiconv.graph.form import Graph
from mpiconv.graph.grouping import Gather, grouped
from mpiconv.partition.making import make_plan
from mpiconv.partition.plan import Plan
from mpiconv.planner.candidates import candidates
from mpiconv.planner.cluster import Cluster, Device
from mpiconv.planner.estimating import estimate
from mpiconv.planner.nominal import linked
from mpiconv.planner.proposals import undivided
from mpiconv.planner.ways import speeds_of

SINGLE, AUTO = "single", "auto"
"""All on one device, the one that is fastest at it, and the best plan that the planner finds."""

MOST_DEVICES = 384
AUTO_DEVICES = 16
"""The most devices that ``auto`` searches, in a second or two; it leaves the rest idle."""

MULTICAST = "+multicast"
"""What the name of a medium ends with where a block that several devices need is sent once. Simulated only."""

DIMENSIONS = ("input_size", "device_count", "rate", "medium", "scheme")

QUANTITIES = {
    "latency": ("s", "from the picture on device 0 to the answer there"),
    "compute_time": ("s", "time that the device computes which computes longest"),
    "bytes_moved": ("B", "payload that travels between devices per batch, once per receiver"),
    "multicast_bytes": ("B", "the same where a block that several devices need counts once"),
    "weight_bytes": ("B", "weights of the device that computes with most of them"),
}
"""What is estimated of every cell: units, and what it is."""


@dataclass(frozen=True)
class Question:
    """What is to be simulated: every combination of sizes, numbers of devices, rates, media and schemes.

    Attributes
    ----------
    graphs
        The network as traced for every size of its pictures, in any grouping.
    devices
        Device ``i`` of a cluster is number ``i`` of these, which are gone through again and again.
    rates_bytes_per_s, alpha_s
        Every link's: n bytes take ``alpha_s + n / rate``.
    media
        ``switch``, ``shared``, or one of them with ``MULTICAST`` behind it.
    schemes
        Names of schemes, ``auto`` among them; ``single`` is always there, as the first.
    """

    graphs: tuple[Graph, ...]
    devices: tuple[Device, ...]
    device_counts: tuple[int, ...]
    rates_bytes_per_s: tuple[float, ...]
    media: tuple[str, ...]
    schemes: tuple[str, ...]
    alpha_s: float
    batch: int = 1
    head: str = "root"
    gather: Gather = "pool"

    @cached_property
    def all_schemes(self) -> tuple[str, ...]:
        """The schemes in their order in the arrays."""
        return tuple(dict.fromkeys((SINGLE, *self.schemes)))

    @property
    def shape(self) -> tuple[int, ...]:
        """How many there are along each of ``DIMENSIONS``."""
        axes = self.graphs, self.device_counts, self.rates_bytes_per_s, self.media, self.all_schemes
        return tuple(len(axis) for axis in axes)

    def cluster(self, count: int, rate_bytes_per_s: float) -> Cluster:
        """So many devices on a switch, every one a host of its own."""
        chosen = [self.devices[rank % len(self.devices)] for rank in range(count)]
        hosts = [replace(device, host=f"{device.host}-{rank}") for rank, device in enumerate(chosen)]
        return linked(hosts, rate_bytes_per_s, self.alpha_s)


@dataclass(frozen=True)
class Split:
    """A plan with those of its numbers that depend on no link."""

    plan: Plan

    @cached_property
    def fixed(self) -> tuple[int, int, int]:
        """B moved once per receiver, B moved once, B of weights on the device that has most."""
        plan = self.plan
        pairs = [(plan.payloads[source].each, spread.blocks) for source, spread in plan.exchanges.items()]
        moved = sum(int(each.sum()) for each, _ in pairs)
        once = sum(int(each[block.transfer]) for each, blocks in pairs for block in blocks)
        units = range(len(plan.graph.units))
        weights = max(sum(plan.weight_bytes(unit, rank) for unit in units) for rank in range(plan.ranks))
        return moved, once, weights

    def on(self, cluster: Cluster, *, multicast: bool) -> tuple[float, ...]:
        """One number for each of ``QUANTITIES``."""
        timeline = estimate(self.plan, cluster, multicast=multicast)
        return timeline.latency_s, float(timeline.compute_s.max()), *self.fixed


def forecast(question: Question, done: Callable[[int], object] = lambda _: None) -> dict[str, np.ndarray]:
    """An array over ``DIMENSIONS`` for each of ``QUANTITIES``, all estimated; NaN where ``auto`` finds no room.

    ``done`` is called with the number of cells that were finished since the last time.
    """
    found = np.full((len(QUANTITIES), *question.shape), np.nan)
    best = _Auto(question)
    for (i, graph), (j, count) in product(enumerate(question.graphs), enumerate(question.device_counts)):
        splits = dict(_splits(question, graph, count))
        for k, rate in enumerate(question.rates_bytes_per_s):
            switch = question.cluster(count, rate)
            shared = replace(switch, medium="shared")
            for m, medium in enumerate(question.media):
                on, multicast = shared if medium.startswith("shared") else switch, medium.endswith(MULTICAST)
                for n, scheme in enumerate(question.all_schemes):
                    if scheme == AUTO:
                        found[:, i, j, k, m, n] = best.numbers(graph, on, rate, multicast=multicast)
                    else:
                        found[:, i, j, k, m, n] = min(split.on(on, multicast=multicast) for split in splits[scheme])
                    done(1)
    return dict(zip(QUANTITIES, found, strict=True))


class _Auto:
    """The best plans that the planner finds, each looked for once: of many devices it uses the first of them."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._plans: dict[tuple[object, ...], list[Split]] = {}

    def numbers(self, graph: Graph, on: Cluster, rate: float, *, multicast: bool) -> tuple[float, ...]:
        """One number for each of ``QUANTITIES``; NaN where no plan fits the devices' memory."""
        count = min(len(on.devices), AUTO_DEVICES)
        cluster = on if count == len(on.devices) else replace(self._question.cluster(count, rate), medium=on.medium)
        key = graph.input_shape, count, rate, on.medium  # of graphs there is one for each size
        if key not in self._plans:
            self._plans[key] = [Split(each.plan) for each in candidates(graph, cluster, self._question.batch)]
        tried = [split.on(cluster, multicast=multicast) for split in self._plans[key]]
        return min(tried, default=(np.nan,) * len(QUANTITIES))


def _splits(question: Question, graph: Graph, count: int) -> Iterator[tuple[str, list[Split]]]:
    """The plans of every scheme for a number of devices, of which the best counts; unequal ones share by speed."""
    cluster = question.cluster(count, question.rates_bytes_per_s[0])
    speeds = speeds_of(grouped(graph, "pool", "split"), cluster, question.batch)
    shares = speeds if max(speeds) > min(speeds) else None
    shape = question.batch, *graph.input_shape
    for scheme in question.all_schemes:
        if scheme == SINGLE and shares is not None:
            yield scheme, [Split(plan) for _, plan in undivided(graph, cluster, question.batch)]
        elif scheme != AUTO:
            yield scheme, [Split(make_plan(graph, shape, scheme, count, shares, question.gather, question.head))]
