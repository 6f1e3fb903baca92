"""A frame on a cluster, simulated: a clock for every rank, and messages between them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heappush, heapreplace

import numpy as np

from mpiconv.partition.box import Box
from mpiconv.partition.exchange import Block, Exchange
from mpiconv.partition.schedule import Schedule
from mpiconv.partition.schemes import ROOT
from mpiconv.partition.wire import FLOAT32, Payload, Wire
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.coding import coding_s
from mpiconv.planner.links import Links
from mpiconv.planner.speed import unit_seconds

IN_ROUNDS = ("allgatherv", "p2p")
"""Patterns in which many send to many: whoever is ready first must not keep the others' links busy one by one."""

EAGER_BYTES = 2**16
"""A message up to this size leaves at once; the sender of a larger one waits until it has arrived."""


@dataclass(frozen=True)
class Timeline:
    """When every rank did what, in s from the start of the frame; of the same form as a recorded one.

    Attributes
    ----------
    stamps_s
        (rank, unit, 3): when the unit's exchange began, when its computing began, and when that ended.
    """

    stamps_s: np.ndarray

    @property
    def latency_s(self) -> float:
        """From the start of the frame to the output on the root."""
        return float(self.stamps_s[ROOT, -1, 2])

    @property
    def compute_s(self) -> np.ndarray:
        """(rank,): how long each rank computes."""
        return np.asarray((self.stamps_s[..., 2] - self.stamps_s[..., 1]).sum(axis=1))


def simulate(schedule: Schedule, cluster: Cluster, *, multicast: bool = False) -> Timeline:
    """How a frame goes by a schedule on a cluster of as many devices as the plan has ranks.

    A rank begins a unit once it has what that needs: it waits for those who send to it, not for the slowest of all. A
    map in pieces is sent piece by piece while the rest is computed. A message takes the link's alpha and its bytes over
    the link's rate; at either end of a link one message follows the other, on a shared medium all do.

    ``multicast``, also as the cluster's medium: what several ranks need alike is sent once and reaches all of them.
    This is simulated only: the engine sends to one rank at a time.

    Raises ValueError for a cluster of another number of devices.
    """
    plan = schedule.plan
    if len(cluster.devices) != plan.ranks:
        raise ValueError(f"a plan for {plan.ranks} ranks on a cluster of {len(cluster.devices)} devices")
    links, now, computing = Links(cluster), np.zeros(plan.ranks), _Computing(schedule, cluster)
    exchanged = _multicast if multicast or cluster.medium == "multicast" else _exchanged
    made: dict[int, np.ndarray] = {}  # of a map in pieces (piece, rank): when each was computed
    stamps = np.zeros((plan.ranks, len(plan.graph.units), 3))
    for index in range(len(plan.graph.units)):
        stamps[:, index, 0] = now
        began = now.copy()
        for source in plan.incoming(index):
            move = schedule.moves[source]
            for number, part in enumerate(move.parts):
                encode_s, decode_s = coding_s(part, move.wire, cluster, plan.batch)
                ready = (made[source][number] if len(move.parts) > 1 else began) + encode_s
                arrived, sent = exchanged(part, ready, links, plan.batch, move.wire)
                now = np.maximum.reduce([now, np.where(encode_s, ready, 0.0), arrived + decode_s, sent])
        stamps[:, index, 1] = now
        boxes = schedule.pieces[index] if index < len(plan.boxes) else (plan.owned[index],)
        ends = np.empty((len(boxes), plan.ranks))
        for number, piece in enumerate(boxes):
            now = now + computing.seconds(index, piece)
            ends[number] = now
        if len(boxes) > 1:
            made[index] = ends
        stamps[:, index, 2] = now
    return Timeline(stamps)


class _Computing:
    """How long ranks compute: worked out once for equal boxes on devices that differ in nothing but their host."""

    def __init__(self, schedule: Schedule, cluster: Cluster) -> None:
        self._plan, self._devices = schedule.plan, cluster.devices
        self._kinds = [repr(replace(device, host="")) for device in cluster.devices]

    def seconds(self, index: int, boxes: Sequence[Box]) -> np.ndarray:
        """(rank,): s that each rank computes its box of a unit."""
        unit, batch, found = self._plan.graph.units[index], self._plan.batch, np.zeros(len(boxes))
        known: dict[tuple[str, Box], float] = {}
        for rank, (device, kind, box) in enumerate(zip(self._devices, self._kinds, boxes, strict=True)):
            if box:
                taken = known.get((kind, box))
                if taken is None:
                    taken = known[kind, box] = unit_seconds(device, unit, box, batch)
                found[rank] = taken
        return found


def _exchanged(
    part: Exchange, ready: np.ndarray, links: Links, batch: int, wire: Wire = FLOAT32
) -> tuple[np.ndarray, np.ndarray]:
    """When every rank has received all that it needs of an exchange, and when what it sends has left it."""
    count = len(part.owned)
    arrived, sent = np.zeros(count), np.zeros(count)
    if part.pattern == "bcast":
        return _broadcast(part, ready, links, batch, wire), sent
    pairs = part.table[:, 0] * count + part.table[:, 1]
    total = np.bincount(pairs, Payload(part, wire, batch).each, count * count)
    sources, targets = _in_turn(total.reshape(count, count), ready, in_rounds=part.pattern in IN_ROUNDS)
    payload = total[sources * count + targets]
    ends = links.carry_all(sources, targets, payload, ready[sources])
    np.maximum.at(arrived, targets, ends)
    waits = payload > EAGER_BYTES
    np.maximum.at(sent, sources[waits], ends[waits])
    return arrived, sent


def _in_turn(total: np.ndarray, ready: np.ndarray, *, in_rounds: bool) -> tuple[np.ndarray, np.ndarray]:
    """Sources and targets of the messages in the order in which they come onto the links.

    ``in_rounds``: each rank sends to the next, then to the one after that, and so on, as in a ring. Else who is ready
    first sends first, and those who are ready together in rounds. ``total[s, t]`` are the B that s sends to t.
    """
    sources, targets = np.nonzero(total)
    rounds, when = (targets - sources) % len(ready), ready[sources]
    order = np.lexsort((sources, when, rounds) if in_rounds else (sources, rounds, when))
    return sources[order], targets[order]


def _broadcast(part: Exchange, ready: np.ndarray, links: Links, batch: int, wire: Wire) -> np.ndarray:
    """When each rank has the same boxes of one rank: whoever has them hands them on, as in a binomial tree."""
    source, first = part.table[0, :2].tolist()
    targets = sorted(set(part.table[:, 1].tolist()), key=lambda rank: (rank - source) % len(ready))
    size = int(Payload(part, wire, batch).each[part.table[:, 1] == first].sum())
    have, arrived = [(float(ready[source]), source)], np.zeros(len(ready))
    for target in targets:
        when, giver = have[0]
        end = links.carry(giver, target, size, max(when, float(ready[target]) if giver != source else when))
        arrived[target] = end
        heapreplace(have, (end, giver))
        heappush(have, (end, target))
    return arrived


def _multicast(
    part: Exchange, ready: np.ndarray, links: Links, batch: int, wire: Wire = FLOAT32
) -> tuple[np.ndarray, np.ndarray]:
    """The same as ``_exchanged`` where a box that several ranks need of one is sent once."""
    count = len(part.owned)
    arrived, sent, each = np.zeros(count), np.zeros(count), Payload(part, wire, batch).each

    def turn(block: Block) -> tuple[float, int, int]:
        return float(ready[block.source]), int(((block.targets - block.source) % count).min()), block.source

    for block in sorted(part.blocks, key=turn):
        payload = int(each[block.transfer])
        ends = links.spread(block.source, block.targets, payload, float(ready[block.source]))
        arrived[block.targets] = np.maximum(arrived[block.targets], ends)
        if payload > EAGER_BYTES and part.pattern != "bcast":
            sent[block.source] = max(sent[block.source], ends.max())
    return arrived, sent
