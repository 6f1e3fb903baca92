"""Frames on a cluster, simulated: a clock for every rank, and messages between them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush, heapreplace

import numpy as np

from mpiconv.graph.form import PICTURE
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


Exchanged = Callable[[Exchange, np.ndarray, Links, int, Wire], tuple[np.ndarray, np.ndarray]]
"""When every rank has received its part of a map and when what it sends has left, from when each is ready for it."""


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
        now = _received(schedule, index, now, made, links, exchanged)
        stamps[:, index, 1] = now
        boxes = _boxes(schedule, index)
        ends = np.empty((len(boxes), plan.ranks))
        for number, piece in enumerate(boxes):
            now = now + computing.seconds(index, piece)
            ends[number] = now
        if len(boxes) > 1:
            made[index] = ends
        stamps[:, index, 2] = now
    return Timeline(stamps)


def simulate_stream(schedule: Schedule, cluster: Cluster, in_flight: int, frames: int) -> np.ndarray:
    """How frames go by a schedule one behind the other, ``in_flight`` of them under way at a time.

    A rank that has what it needs for some frame computes: a new frame first, to have its picture on the way, then the
    oldest; it goes on with that frame until it has to wait for others. The next frame comes in once one is through, or,
    where its picture is sent in messages, once only the last unit of that one is left.

    Returns
    -------
    numpy.ndarray
        (frame, rank, unit, 3): as a ``Timeline``'s, in s from the start of the first frame.
    """
    return _Stream(schedule, cluster, in_flight, frames).run()


class _Stream:
    """Frames under way at once.

    Between exchanges lie runs of units that every rank computes without waiting. Events are in order of time: the
    exchange before a run, once all ranks have come to it; and a rank that computes its part of a run.
    """

    def __init__(self, schedule: Schedule, cluster: Cluster, in_flight: int, frames: int) -> None:
        self._schedule, self._plan, self._in_flight = schedule, schedule.plan, in_flight
        units, ranks = len(self._plan.graph.units), self._plan.ranks
        self._links, computing = Links(cluster), _Computing(schedule, cluster)
        starts = [unit for unit in range(units) if unit == 0 or _exchanges(schedule, unit)]
        self._runs = [range(a, b) for a, b in zip(starts, [*starts[1:], units], strict=True)]
        self._takes_s = [np.array([computing.seconds(u, part) for part in _boxes(schedule, u)]) for u in range(units)]
        self._works = [sum(self._takes_s[u].sum(axis=0) for u in run) > 0 for run in self._runs]
        picture = schedule.moves.get(PICTURE)
        sends = picture is not None and picture.medium == "messages" and len(picture.exchange.table) > 0
        self._early = in_flight > 1 and sends
        self._free_s = [0.0] * ranks
        self._stamps = np.zeros((frames, ranks, units, 3))
        self._reached = np.zeros((frames, ranks))  # when each rank was through with all that it has begun of a frame
        self._made: list[dict[int, np.ndarray]] = [{} for _ in range(frames)]
        self._left = [0] * frames
        self._events: list[tuple[float, int, int, int, int]] = []  # time, order at that time, frame, run, rank

    def run(self) -> np.ndarray:
        """All frames from start to end."""
        for frame in range(min(self._in_flight, len(self._stamps))):
            self._come_to(frame, 0)
        while self._events:
            now, order, frame, run, rank = heappop(self._events)
            if order == 0:
                self._exchange(frame, run)
            elif self._free_s[rank] > now:
                self._can_compute(self._free_s[rank], frame, run, rank)
            else:
                self._compute(frame, run, rank, now)
        return self._stamps

    def _come_to(self, frame: int, run: int) -> None:
        heappush(self._events, (float(self._reached[frame].max()), 0, frame, run, -1))

    def _can_compute(self, when: float, frame: int, run: int, rank: int) -> None:
        heappush(self._events, (when, 1 if run == 0 else 2, frame, run, rank))

    def _exchange(self, frame: int, run: int) -> None:
        """Every rank gets what it needs for a run of units; those that compute something of it can begin then."""
        units, reached, works = self._runs[run], self._reached[frame], self._works[run]
        stamps = self._stamps[frame]
        stamps[:, units.start, 0] = reached
        made = self._made[frame]
        now = _received(self._schedule, units.start, reached.copy(), made, self._links, _exchanged)
        stamps[:, units.start, 1:] = now[:, None]
        stamps[:, units.start + 1 : units.stop] = now[:, None, None]
        made |= {u: np.tile(now, (len(self._takes_s[u]), 1)) for u in units if len(self._takes_s[u]) > 1}
        self._reached[frame] = now
        self._left[frame] = int(works.sum())
        for rank in np.flatnonzero(works).tolist():
            self._can_compute(float(now[rank]), frame, run, rank)
        if not self._left[frame]:
            self._through(frame, run)

    def _compute(self, frame: int, run: int, rank: int, now: float) -> None:
        """A rank computes its part of a run."""
        stamps = self._stamps[frame, rank]
        units = self._runs[run]
        for unit in units:
            if unit > units.start:
                stamps[unit, 0] = now
            stamps[unit, 1] = now
            for number, taken in enumerate(self._takes_s[unit][:, rank].tolist()):
                now += taken
                if unit in self._made[frame]:
                    self._made[frame][unit][number, rank] = now
            stamps[unit, 2] = now
        self._free_s[rank] = self._reached[frame, rank] = now
        self._left[frame] -= 1
        if not self._left[frame]:
            self._through(frame, run)

    def _through(self, frame: int, run: int) -> None:
        """All ranks have computed their parts of a run: on to the next one, or the next frame comes in."""
        following = frame + self._in_flight
        if run + 1 < len(self._runs):
            self._come_to(frame, run + 1)
        elif following < len(self._stamps):
            self._reached[following] = self._reached[frame]
            self._reached[following, ROOT] = self._stamps[frame, ROOT, -1, 1 if self._early else 2]
            self._come_to(following, 0)


def _received(
    schedule: Schedule,
    index: int,
    began: np.ndarray,
    made: Mapping[int, np.ndarray],
    links: Links,
    exchanged: Exchanged,
) -> np.ndarray:
    """(rank,): when every rank has what it needs for a unit and has sent what others do, having come to it at a time.

    ``made`` has of a map in pieces when each of them was computed (piece, rank).
    """
    now, batch = began, schedule.plan.batch
    for source in schedule.plan.incoming(index):
        move = schedule.moves[source]
        for number, part in enumerate(move.parts):
            encode_s, decode_s = coding_s(part, move.wire, links.cluster, batch)
            ready = (made[source][number] if len(move.parts) > 1 else began) + encode_s
            arrived, sent = exchanged(part, ready, links, batch, move.wire)
            now = np.maximum.reduce([now, np.where(encode_s, ready, 0.0), arrived + decode_s, sent])
    return now


def _exchanges(schedule: Schedule, index: int) -> bool:
    """Whether anything changes hands before a unit."""
    return any(len(schedule.moves[source].exchange.table) for source in schedule.plan.incoming(index))


def _boxes(schedule: Schedule, index: int) -> Sequence[Sequence[Box]]:
    """The boxes of a unit that every rank computes, piece after piece."""
    return schedule.pieces[index] if index < len(schedule.plan.boxes) else (schedule.plan.owned[index],)


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
