"""A frame on a cluster, simulated: a clock for every rank, and links that carry one message at a time. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpiconv.partition.exchange import Exchange
from mpiconv.partition.plan import FLOAT_BYTES
from mpiconv.partition.schedule import Schedule
from mpiconv.partition.schemes import ROOT
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.speed import unit_seconds

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


class Links:
    """The links of a cluster while messages are on them: each end carries one at a time, or a shared medium does.

    Ranks whose devices have the same host name exchange maps through memory, which costs a copy.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        count = len(cluster.devices)
        self._shared = cluster.medium == "shared"
        self._out_free, self._in_free = np.zeros(count), np.zeros(count)
        self._air_free = 0.0

    def carry(self, source: int, target: int, payload_bytes: int, ready_s: float) -> float:
        """Send a message that is ready at a time; when it has arrived."""
        devices = self._cluster.devices
        if devices[source].host == devices[target].host:
            return ready_s + payload_bytes / devices[source].weight_bytes_per_s
        link = self._cluster.link(source, target)
        begin = max(ready_s, self._out_free[source], self._in_free[target], self._air_free if self._shared else 0.0)
        busy_until = begin + payload_bytes / link.beta_bytes_per_s
        self._out_free[source] = self._in_free[target] = busy_until
        if self._shared:
            self._air_free = busy_until
        return float(busy_until + link.alpha_s)


def simulate(schedule: Schedule, cluster: Cluster) -> Timeline:
    """How a frame goes by a schedule on a cluster of as many devices as the plan has ranks.

    A rank begins a unit once it has what that needs: it waits for those who send to it, not for the slowest of all. A
    map in pieces is sent piece by piece while the rest is computed. A message takes the link's alpha and its bytes over
    the link's rate; at either end of a link one message follows the other, on a shared medium all do.

    Raises ValueError for a cluster of another number of devices.
    """
    plan = schedule.plan
    if len(cluster.devices) != plan.ranks:
        raise ValueError(f"a plan for {plan.ranks} ranks on a cluster of {len(cluster.devices)} devices")
    links, now = Links(cluster), np.zeros(plan.ranks)
    made: dict[int, np.ndarray] = {}  # of a map in pieces (piece, rank): when each was computed
    stamps = np.zeros((plan.ranks, len(plan.graph.units), 3))
    for index, unit in enumerate(plan.graph.units):
        stamps[:, index, 0] = now
        began = now.copy()
        for source in plan.incoming(index):
            move = schedule.moves[source]
            for number, part in enumerate(move.parts):
                ready = made[source][number] if len(move.parts) > 1 else began
                arrived, sent = _exchanged(part, ready, links, plan.batch)
                now = np.maximum(now, np.maximum(arrived, sent))
        stamps[:, index, 1] = now
        boxes = schedule.pieces[index] if index < len(plan.boxes) else (plan.owned[index],)
        ends = np.empty((len(boxes), plan.ranks))
        for number, piece in enumerate(boxes):
            pairs = zip(cluster.devices, piece, strict=True)
            now = now + np.array([unit_seconds(device, unit, box, plan.batch) for device, box in pairs])
            ends[number] = now
        if len(boxes) > 1:
            made[index] = ends
        stamps[:, index, 2] = now
    return Timeline(stamps)


def _exchanged(part: Exchange, ready: np.ndarray, links: Links, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """When every rank has received all that it needs of an exchange, and when what it sends has left it."""
    count = len(part.owned)
    arrived, sent = np.zeros(count), np.zeros(count)
    if part.pattern == "bcast":
        return _broadcast(part, ready, links, batch), sent
    messages: dict[tuple[int, int], int] = {}
    for transfer in part.transfers:
        pair = transfer.source, transfer.target
        messages[pair] = messages.get(pair, 0) + FLOAT_BYTES * batch * transfer.box.size
    for source, target in _in_turn(messages, ready):
        size = messages[source, target]
        end = links.carry(source, target, size, ready[source])
        arrived[target] = max(arrived[target], end)
        if size > EAGER_BYTES:
            sent[source] = max(sent[source], end)
    return arrived, sent


def _in_turn(messages: Mapping[tuple[int, int], int], ready: np.ndarray) -> Sequence[tuple[int, int]]:
    """The messages in the order in which they come onto the links: round by round to the next rank, as in a ring."""
    count = len(ready)
    return sorted(messages, key=lambda pair: (ready[pair[0]], (pair[1] - pair[0]) % count, pair[0]))


def _broadcast(part: Exchange, ready: np.ndarray, links: Links, batch: int) -> np.ndarray:
    """When each rank has the same boxes of one rank: whoever has them hands them on, as in a binomial tree."""
    source = part.transfers[0].source
    targets = sorted({transfer.target for transfer in part.transfers}, key=lambda rank: (rank - source) % len(ready))
    size = FLOAT_BYTES * batch * sum(t.box.size for t in part.transfers if t.target == targets[0])
    have, arrived = [(float(ready[source]), source)], np.zeros(len(ready))
    for target in targets:
        when, giver = min(have)
        end = links.carry(giver, target, size, max(when, float(ready[target]) if giver != source else when))
        arrived[target] = end
        have[have.index((when, giver))] = (end, giver)
        have.append((end, target))
    return arrived
