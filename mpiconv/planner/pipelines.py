"""Pipelines: consecutive parts of a network on one device each, so that the slowest part takes least. Pure.

With several batches in flight a pipeline gives an answer whenever its slowest part is through: a device that computes,
or one that sends or receives meanwhile, or the medium if all share one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mpiconv.graph.form import PICTURE, Graph
from mpiconv.graph.grouping import grouped
from mpiconv.partition.bounds import bounds
from mpiconv.partition.box import Box
from mpiconv.partition.plan import FLOAT_BYTES, Plan
from mpiconv.partition.schemes import ROOT, alone_on
from mpiconv.planner.bounds import Costs
from mpiconv.planner.cluster import Cluster, kinds_of
from mpiconv.planner.proposals import Proposals, names_of
from mpiconv.planner.ways import blocks, speeds_of

MOST_ORDERS = 64
"""Of more sets of devices than this only those in order of their speed are looked at, the root first."""

NAMED = 4
"""Up to this number of devices a pipeline's name has theirs."""

State = tuple[tuple[int, ...], int]
"""How many devices of each class have a part, and the rank that has the last one."""


@dataclass(frozen=True)
class Part:
    """The last part of a pipeline so far, on ``rank`` and up to cut point ``stop``, with the parts ``before``.

    ``busy_s`` is what the busiest device or end of a link takes per batch, ``air_s`` a shared medium; ``into_root_s``
    and ``from_root_s`` what maps and pictures take into the root and out of it.
    """

    rank: int
    stop: int
    busy_s: float
    air_s: float = 0.0
    into_root_s: float = 0.0
    from_root_s: float = 0.0
    before: Part | None = None

    @property
    def loads(self) -> tuple[float, ...]:
        """What must not grow for another part to be as good."""
        return self.busy_s, self.air_s, self.into_root_s, self.from_root_s

    def parts(self) -> list[tuple[int, int]]:
        """(rank, stop) of all parts, the first one first."""
        return [*(self.before.parts() if self.before else ()), (self.rank, self.stop)]


class Pipelines:
    """The best pipelines of a network on a cluster by dynamic programming over cut points and devices.

    ``stops`` are the cut points: how many units of the body come before each, the first one 0.
    """

    def __init__(self, graph: Graph, cluster: Cluster, batch: int = 1) -> None:
        self.graph, self.cluster, self.batch = grouped(graph, "pool", "split"), cluster, batch
        units, count = self.graph.units, len(cluster.devices)
        self.stops = [0, *(block.stop for block in blocks(self.graph))]
        costs = Costs(self.graph, cluster, batch)
        whole = [np.tile(bounds([Box.whole(unit.out_shape)]), (count, 1)) for unit in units]
        each_s = np.array([costs(index, made) for index, made in enumerate(whole)])
        self._before_s = np.concatenate([np.zeros((1, count)), each_s[:-1].cumsum(axis=0)])  # (unit, rank)
        self._head_s = float(each_s[-1, ROOT])
        sizes = {PICTURE: math.prod(self.graph.input_shape)}
        sizes |= {index: math.prod(unit.out_shape) for index, unit in enumerate(units)}
        self._bytes = [FLOAT_BYTES * batch * sizes[stop - 1] for stop in self.stops[:-1]]
        self._bytes.append(FLOAT_BYTES * batch * sum(sizes[index] for index in set(units[-1].inputs)))
        self._hosts = [device.host for device in cluster.devices]
        self._members = self._classes()

    def _classes(self) -> list[list[int]]:
        """The ranks that can stand for each other, the root by itself; each by itself where links or hosts differ."""
        links = {(link.alpha_s, link.beta_bytes_per_s) for link in self.cluster.links}
        alike = len(links) <= 1 and len(set(self._hosts)) == len(self._hosts)
        kinds = kinds_of(self.cluster.devices) if alike else range(len(self._hosts))
        found: dict[int, list[int]] = {}
        for rank in range(1, len(self._hosts)):
            found.setdefault(kinds[rank], []).append(rank)
        return [[ROOT], *found.values()]

    def _following(self, used: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], int]]:
        """The devices that can have the next part, with what is used then."""
        for number, members in enumerate(self._members):
            if used[number] < len(members):
                yield (*used[:number], used[number] + 1, *used[number + 1 :]), members[used[number]]

    def _in_order(self, used: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], int]]:
        """The same where the devices come in a fixed order: ``used`` has the number of those that are passed."""
        for number in range(used[0], len(self._order)):
            yield (number + 1,), self._order[number]

    def find(self, least_s: float = math.inf) -> list[Part]:
        """The best pipeline of two parts, of three and so on, as long as each is better than those of fewer parts.

        Their slowest part takes less than ``least_s``. None where some unit can be computed by the root alone.
        """
        if any(unit.opaque for unit in self.graph.body) or not self.graph.body:
            return []
        following, start = self._following, (0,) * len(self._members)
        if math.prod(len(each) + 1 for each in self._members) > MOST_ORDERS:
            speeds = speeds_of(self.graph, self.cluster, self.batch)
            self._order = sorted(range(len(speeds)), key=lambda rank: (rank != ROOT, -speeds[rank]))
            following, start = self._in_order, (0,)
        best: dict[int, Part] = {}
        reached: list[dict[State, list[Part]]] = [{} for _ in self.stops]
        reached[0][start, -1] = [Part(-1, 0, 0.0)]
        for at in range(len(self.stops) - 1):
            for (used, _), parts in reached[at].items():
                for further, rank in following(used):
                    for part in parts:
                        for longer in self._longer(part, rank, at, least_s):
                            _keep(reached[longer.stop].setdefault((further, rank), []), longer)
        for parts in reached[-1].values():
            for part in map(self._answered, parts):
                count = len(part.parts()) - 1  # the first is where the picture comes from
                if count > 1 and part.busy_s < min(best[count].busy_s if count in best else math.inf, least_s):
                    best[count] = part
        found: list[Part] = []
        for count in sorted(best):
            if not found or best[count].busy_s < found[-1].busy_s:
                found.append(best[count])
        return found

    def _longer(self, part: Part, rank: int, at: int, least_s: float) -> Iterator[Part]:
        """A pipeline with one more part on a rank, of every length."""
        first = part.before is None
        source = ROOT if first else part.rank
        moving_s = self._moving_s(source, rank, self._bytes[at])
        from_root_s = part.from_root_s + (moving_s if source == ROOT else 0.0)
        into_root_s = part.into_root_s + (moving_s if rank == ROOT else 0.0)
        air_s = part.air_s + (moving_s if self.cluster.medium == "shared" else 0.0)
        busy_s = max(part.busy_s, moving_s, from_root_s, into_root_s, air_s)
        begin = self._before_s[self.stops[at], rank] - (self._head_s if rank == ROOT else 0.0)
        for stop in range(at + 1, len(self.stops)):
            longest_s = max(busy_s, float(self._before_s[self.stops[stop], rank] - begin))
            if longest_s >= least_s:
                return
            yield Part(rank, stop, longest_s, air_s, into_root_s, from_root_s, part)

    def _answered(self, part: Part) -> Part:
        """The same with the answer brought to the root."""
        moving_s = self._moving_s(part.rank, ROOT, self._bytes[-1])
        air_s = part.air_s + (moving_s if self.cluster.medium == "shared" else 0.0)
        busy_s = max(part.busy_s, self._head_s, part.into_root_s + moving_s, air_s)
        return Part(part.rank, part.stop, busy_s, air_s, part.into_root_s + moving_s, part.from_root_s, part.before)

    def _moving_s(self, source: int, target: int, payload_bytes: float) -> float:
        """S for which a map keeps a link busy."""
        if self._hosts[source] == self._hosts[target]:
            return 0.0
        return payload_bytes / self.cluster.link(source, target).beta_bytes_per_s

    def alone_s(self, rank: int) -> float:
        """S that the busiest device or link takes where one rank computes all."""
        *_, whole = self._longer(Part(-1, 0, 0.0), rank, 0, math.inf)
        return self._answered(whole).busy_s

    def plan(self, part: Part) -> Plan:
        """The plan of a pipeline."""
        ends = part.parts()[1:]
        owners = [next(rank for rank, stop in ends if self.stops[stop] > unit) for unit in range(len(self.graph.body))]
        ranks, body = range(len(self._hosts)), self.graph.body
        boxes = [
            tuple(Box.whole(unit.out_shape) if rank == owner else Box() for rank in ranks)
            for unit, owner in zip(body, owners, strict=True)
        ]
        work = [sum(unit.flops for unit, owner in zip(body, owners, strict=True) if owner == rank) for rank in ranks]
        shares = tuple(each / (sum(work) or 1) for each in work)
        return Plan(self.graph, tuple(map(alone_on, owners)), shares, self.batch, tuple(boxes))


def pipelined(graph: Graph, cluster: Cluster, batch: int = 1) -> Proposals:
    """Pipelines with more pictures/s than any device by itself: the best of every number of parts."""
    found, names = Pipelines(graph, cluster, batch), names_of(cluster)
    if len(names) == 1 or not found.graph.body:
        return
    for part in found.find(min(found.alone_s(rank) for rank in range(len(names)))):
        turns = [names[rank] for rank, _ in part.parts()[1:]]
        words = f"first on {', then on '.join(turns)}"
        yield words if len(turns) <= NAMED else f"one after the other on {len(turns)} devices", found.plan(part)


def _keep(parts: list[Part], new: Part) -> None:
    """Add a part to those of the same state and cut point, unless one is as good; what it is as good as goes."""
    if any(all(a <= b for a, b in zip(each.loads, new.loads, strict=True)) for each in parts):
        return
    parts[:] = [each for each in parts if not all(a <= b for a, b in zip(new.loads, each.loads, strict=True))]
    parts.append(new)
