"""When a device or a link has changed while a plan runs: is another plan worth adopting, and was it? Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from mpiconv.partition.holdings import bytes_moved, holdings
from mpiconv.partition.plan import Plan
from mpiconv.planner.candidates import Candidate
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.correcting import State, blamed, options
from mpiconv.planner.drift import IN_A_ROW, Drift
from mpiconv.planner.estimating import estimate, scheduled
from mpiconv.planner.proposals import names_of
from mpiconv.planner.simulation import simulate

WARM = 1
"""Windows after the start of a plan that do not count: caches are cold."""

LEAST_GAIN = 1.05
"""A plan has to be estimated to be faster by this factor at least."""

MARGIN = 1.5
"""What a plan gains has to be worth this many times what it costs to adopt it."""

NO_BETTER = 0.98
"""A plan is given up again where a picture takes this part or more of what it took before."""

BUILD_S = 0.2
"""What it takes to adopt a plan besides sending weights, until that was measured."""

COOL_DOWN = 50
"""Pictures for which nothing is adopted after a plan was given up; twice as many each time."""

SEARCHED = 0.05
"""A search may take this part of the time that the pictures to come would take."""

SAME = 0.05
"""Ranks whose times differ by no more than that (in logarithms) are not worth another simulation."""


@dataclass(frozen=True)
class Window:
    """A few frames of every rank, each on its own clock; NaN where a rank had run fewer.

    ``exchange_s`` and ``compute_s`` are (frame, rank, unit), waiting included in the exchange; ``latency_s`` is
    (frame,), the root's.
    """

    exchange_s: np.ndarray
    compute_s: np.ndarray
    latency_s: np.ndarray

    @property
    def complete(self) -> bool:
        """Whether all frames are there."""
        return bool(np.isfinite(self.compute_s).all() and np.isfinite(self.latency_s).all())


@dataclass(frozen=True)
class Move:
    """A plan to adopt.

    Attributes
    ----------
    kind
        ``rebalance``, or ``undo``: back to the plan before, since this one is no faster.
    name
        What the plan is called.
    ranks, why
        Whose devices or links have changed, and how.
    predicted_gain
        By which factor a picture should take less, as estimated; as measured for an ``undo``.
    before_s
        What a picture took until now in s, the median of the last few.
    """

    kind: str
    name: str
    plan: Plan
    ranks: tuple[int, ...]
    why: str
    predicted_gain: float
    before_s: float


class Rebalancer:
    """Watches a run by a plan on a cluster, window by window.

    How far the cluster's numbers are off for a plan is told by its first windows; only changes against that count.

    Attributes
    ----------
    plan
        That runs.
    realised_gain
        By which factor a picture takes less by the plan that was adopted last, as measured; None until it was.
    """

    def __init__(self, plan: Plan, cluster: Cluster) -> None:
        self._cluster, self._names = cluster, [_with_rank(*each) for each in enumerate(names_of(cluster))]
        usual = (1.0,) * len(cluster.devices)
        self._state = State(usual, usual)
        self._build_s = BUILD_S
        self._cool_down, self._rests_until = COOL_DOWN, float("inf")
        self._refused: list[Plan] = []
        self.realised_gain: float | None = None
        self._former: tuple[Plan, str, Move] | None = None
        self._start(plan, "the plan from the start")

    def _start(self, plan: Plan, name: str) -> None:
        """Watch a plan from its first picture on."""
        self.plan, self._name = plan, name
        self._schedule = scheduled(plan, self._cluster)
        self._estimated_s = simulate(self._schedule, self._cluster).compute_s
        self._devices = [Drift() for _ in self._estimated_s]
        self._latency = Drift()
        self._explained = np.empty(0), 0.0
        self._to_skip = WARM
        self._first: list[Window] = []
        self._last: deque[Window] = deque(maxlen=IN_A_ROW)

    def adopted(self, move: Move, seconds: float) -> None:
        """Note that the plan runs from the next picture on, and how long adopting it took, in s."""
        self._build_s = max(seconds - self._sending_s(move.plan), 0.0)
        self.realised_gain = None
        self._former = (self.plan, self._name, move) if move.kind != "undo" else None
        self._start(move.plan, move.name)

    def refused(self, move: Move) -> None:
        """The plan cannot run here."""
        self._refused.append(move.plan)

    def look(self, window: Window, left: int) -> Move | None:
        """Take the next window and the number of pictures to come; returns the plan to adopt now, None for none."""
        if not window.complete:
            return None
        if self._to_skip:
            self._to_skip -= 1
            return None
        self._follow(window)
        if self._latency.level is None:
            return None
        if self._former is not None:
            return self._judged(left)
        changed = self._latency.changed or any(drift.changed for drift in self._devices)
        return self._decided(left) if changed and left <= self._rests_until else None

    def _follow(self, window: Window) -> None:
        self._last.append(window)
        if self._latency.level is None:
            self._first.append(window)
        seconds = window.compute_s.sum(axis=2)
        for rank, drift in enumerate(self._devices):
            if self._estimated_s[rank] > 0:
                drift.add(np.maximum(seconds[:, rank], 1e-9) / self._estimated_s[rank])
        self._latency.add(window.latency_s / self._explained_s(np.median(seconds, axis=0)))

    def _explained_s(self, seconds: np.ndarray) -> float:
        """The simulated latency for these computing times in s; not simulated again for about the same ones."""
        estimated = self._estimated_s
        devices = np.where(estimated > 0, np.maximum(seconds, 1e-9) / np.maximum(estimated, 1e-12), self._state.devices)
        known, explained_s = self._explained
        if not len(known) or np.abs(np.log(devices / known)).max() > SAME:
            state = replace(self._state, devices=tuple(devices.tolist()))
            explained_s = simulate(self._schedule, state.of(self._cluster)).latency_s
            self._explained = devices, explained_s
        return explained_s

    def _judged(self, left: int) -> Move | None:
        """Whether the plan that was adopted is faster than the one before it, which is gone back to else."""
        if self._former is None:
            return None
        plan, name, move = self._former
        after_s = float(np.median(np.concatenate([window.latency_s for window in self._first])))
        self.realised_gain = move.before_s / after_s
        self._former = None
        worth = self._cost_s(plan) < SEARCHED * left * after_s
        if after_s < NO_BETTER * move.before_s or not worth:
            return None
        self._rests_until, self._cool_down = left - self._cool_down, 2 * self._cool_down
        why = f"{move.name} is no faster: {1e3 * after_s:.3g} ms a picture, {1e3 * move.before_s:.3g} ms before"
        return Move("undo", name, plan, move.ranks, why, after_s / move.before_s, after_s)

    def _decided(self, left: int) -> Move | None:
        """The plan that is worth most in the state that the devices and links are in now."""
        before_s = float(np.median(np.concatenate([window.latency_s for window in self._last])))
        ranks, why = self._changes(before_s)
        for drift in (self._latency, *self._devices):
            drift.accept()
        self._first = list(self._last)
        if not ranks:
            return None
        cluster = self._state.of(self._cluster)
        now_s = estimate(self.plan, cluster).latency_s
        best, most_s = None, 0.0
        for each in options(self.plan, cluster, SEARCHED * left * before_s):
            gain = now_s / each.latency_s
            if gain < LEAST_GAIN or any(each.plan.boxes == plan.boxes for plan in self._refused):
                continue
            worth_s = left * before_s * (1 - 1 / gain) - MARGIN * self._cost_s(each.plan)
            if worth_s > most_s:
                best, most_s = each, worth_s
        return _move(best, now_s, before_s, ranks, why) if best is not None else None

    def _changes(self, before_s: float) -> tuple[tuple[int, ...], str]:
        """Bring the state up to date: whose devices or, where it is none, whose links have changed, and how."""
        ranks = tuple(rank for rank, drift in enumerate(self._devices) if drift.changed)
        pairs = zip(self._devices, self._state.devices, strict=True)
        self._state = replace(self._state, devices=tuple(known if d.now is None else d.now for d, known in pairs))
        if ranks:
            return ranks, ", ".join(f"{self._names[rank]} computes {_longer(self._devices[rank])}" for rank in ranks)
        usual = np.median(np.concatenate([window.exchange_s for window in self._first]), axis=0)
        now = np.median(np.concatenate([window.exchange_s for window in self._last]), axis=0)
        target_s = before_s / (self._latency.level or 1.0)
        found = blamed(self.plan, self._cluster, self._state, target_s, now - usual)
        if found is None:
            return (), ""
        state, ranks = found
        factor = state.links[ranks[0]] / self._state.links[ranks[0]]
        self._state = state
        self._latency.explained()
        self._explained = np.empty(0), 0.0
        whose = self._names[ranks[0]] if len(ranks) == 1 else "all ranks"
        return ranks, f"the links of {whose} are {_times(factor, 'slower', 'faster')}"

    def _sending_s(self, plan: Plan) -> float:
        """What it takes to send the weights that are missing for a plan, at the rate of the slowest link."""
        links = self._state.of(self._cluster).links
        slowest = min((link.beta_bytes_per_s for link in links), default=np.inf)
        return bytes_moved(holdings(self.plan), holdings(plan)) / slowest

    def _cost_s(self, plan: Plan) -> float:
        """What it takes to adopt a plan."""
        return self._sending_s(plan) + self._build_s


def _move(best: Candidate, now_s: float, before_s: float, ranks: tuple[int, ...], why: str) -> Move:
    return Move("rebalance", best.name, best.plan, ranks, why, now_s / best.latency_s, before_s)


def _with_rank(rank: int, name: str) -> str:
    return name if f"rank {rank}" in name else f"rank {rank} ({name})"


def _longer(drift: Drift) -> str:
    return _times((drift.now or 1.0) / (drift.level or 1.0), "longer", "shorter")


def _times(factor: float, more: str, less: str) -> str:
    """By how much something has changed, in words."""
    return f"{factor:.2g} x {more}" if factor > 1 else f"{1 / factor:.2g} x {less}"
