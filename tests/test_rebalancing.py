"""Whether another plan is adopted, on synthetic times: never for noise, soon for a device or link that has changed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from torch import nn

from mpiconv.graph.trace import trace
from mpiconv.partition import Plan, make_plan
from mpiconv.partition.plan import at_work
from mpiconv.partition.schedule import Schedule
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.correcting import State, blamed, reshared
from mpiconv.planner.drift import Drift
from mpiconv.planner.estimating import estimate, scheduled
from mpiconv.planner.rebalancing import COOL_DOWN, Move, Rebalancer, Window
from mpiconv.planner.simulation import simulate
from tests.test_simulation import cluster

FRAMES, WINDOW = 200, 3
ANSWERED_WITHIN = 10
MODEL = nn.Sequential(*(nn.Conv2d(32, 32, 3, padding=1) for _ in range(4))).eval()
GRAPH = trace(MODEL, (32, 48, 48)).layers


@dataclass
class Lab:
    """Ranks whose true state, in which they are from some frame on, only their times tell.

    ``off`` is by how much the cluster's numbers are wrong from the start, rank by rank; ``worse`` what a picture takes
    longer by any other plan than the first than any model would say.
    """

    known: Cluster
    plan: Plan
    states: dict[int, State]
    seed: int = 0
    noise: float = 0.04
    off: tuple[float, ...] = ()
    worse: float = 1.0
    frames: int = FRAMES
    schedule: Schedule | None = None
    moves: list[tuple[int, Move]] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)

    def run(self) -> Lab:
        random = np.random.default_rng(self.seed)
        first, rebalancer = self.plan, Rebalancer(self.plan, self.known)
        frames: list[tuple[np.ndarray, np.ndarray, float]] = []
        for number in range(self.frames):
            frames.append(self._frame(number, random, self.worse if self.plan is not first else 1.0))
            if len(frames) < WINDOW:
                continue
            window = Window(*(np.stack(each) for each in zip(*frames, strict=True)))
            frames = []
            move = rebalancer.look(window, self.frames - number - 1)
            if rebalancer.realised_gain is not None and len(self.gains) < len(self.moves):
                self.gains.append(rebalancer.realised_gain)
            if move is not None:
                self.moves.append((number, move))
                self.plan = move.plan
                rebalancer.adopted(move, 0.1)
        return self

    def _frame(self, number: int, random: np.random.Generator, worse: float) -> tuple[np.ndarray, np.ndarray, float]:
        """Heavy-tailed noise on every rank, all its units together, and now and then a spike."""
        ranks = len(self.known.devices)
        state = [each for since, each in self.states.items() if since <= number][-1:]
        state = state[0] if state else State((1.0,) * ranks, (1.0,) * ranks)
        jitter = np.exp(self.noise * np.abs(random.standard_t(3, ranks)))
        jitter = np.where(random.random(ranks) < 0.02, jitter * random.uniform(1.5, 6, ranks), jitter)
        factors = np.array(state.devices) * jitter * (self.off or 1.0)
        if self.schedule is None or self.schedule.plan is not self.plan:
            self.schedule = scheduled(self.plan, self.known)
        stamps = worse * simulate(self.schedule, replace(state, devices=tuple(factors)).of(self.known)).stamps_s
        exchange, compute = (stamps[..., i + 1] - stamps[..., i] for i in range(2))
        return exchange, compute, float(stamps[0, -1, 2] * np.exp(0.01 * random.standard_t(3)))


def lab(scheme: str = "kpm", ranks: int = 2, rate: float = 1e8, **options) -> Lab:
    """The devices take some tens of ms for a picture."""
    plan = make_plan(GRAPH, (1, 32, 48, 48), scheme, ranks)
    return Lab(cluster(*[1.0] * ranks, rate=rate, alpha=1e-4), plan, **{"states": {}} | options)


def slow(ranks: int, *links: int, **devices: float) -> State:
    """``r1=2``: rank 1 takes twice as long; rank numbers as such: their links have a tenth of their rate."""
    return State(
        tuple(devices.get(f"r{rank}", 1.0) for rank in range(ranks)),
        tuple(10.0 if rank in links else 1.0 for rank in range(ranks)),
    )


@pytest.mark.parametrize(("scheme", "noise", "seeds"), [("kpm", 0.04, range(15)), ("wpm", 0.08, range(15, 30))])
def test_noise_alone_never_moves_anything(scheme, noise, seeds):
    for seed in seeds:
        ranks = 2 + seed % 3
        ran = lab(scheme, ranks, seed=seed, noise=noise, off=(1.4, 0.7, 1.0, 1.2)[:ranks]).run()
        assert not ran.moves, (seed, ran.moves)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("ranks", "state", "changed"),
    [
        (2, slow(2, r1=2.0), (1,)),
        (4, slow(4, r1=2.0), (1,)),
        (2, slow(2, r0=2.0), (0,)),
        (4, slow(4, r1=2.0, r3=3.0), (1, 3)),
        (4, slow(4, r0=2.0), (0,)),
    ],
    ids=["of two", "of four", "the root", "two at once", "the root of four"],
)
def test_a_device_that_slows_is_answered_within_ten_pictures(ranks, state, changed, seed):
    ran = lab(ranks=ranks, states={100: state}, seed=seed).run()
    assert ran.moves, "nothing was adopted"
    frame, move = ran.moves[0]
    assert 100 <= frame < 100 + ANSWERED_WITHIN
    assert move.kind == "rebalance"
    assert set(move.ranks) <= set(changed)
    assert set(changed) == {rank for _, each in ran.moves for rank in each.ranks}
    assert all(each.kind == "rebalance" for _, each in ran.moves)
    assert min(ran.gains) > 1
    true = state.of(ran.known)
    best = min(estimate(each, true).latency_s for each in (reshared(ran.plan, true) or ran.plan, ran.plan))
    first = estimate(lab(ranks=ranks).plan, true).latency_s
    now = estimate(ran.plan, true).latency_s
    assert (first - now) > 0.7 * (first - best)


@pytest.mark.parametrize("seed", range(3))
def test_a_device_that_recovers_gets_its_work_back(seed):
    ran = lab(states={60: slow(2, r1=2.0), 130: slow(2)}, seed=seed).run()
    assert [move.ranks for _, move in ran.moves] == [(1,), (1,)]
    assert 60 <= ran.moves[0][0] < 60 + ANSWERED_WITHIN
    assert 130 <= ran.moves[1][0] < 130 + ANSWERED_WITHIN
    assert "longer" in ran.moves[0][1].why
    assert "shorter" in ran.moves[1][1].why
    true = ran.known
    assert estimate(ran.plan, true).latency_s <= 1.05 * estimate(lab().plan, true).latency_s


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("ranks", "links"), [(2, (0, 1)), (3, (2,)), (4, (1,)), (4, (0, 1, 2, 3))], ids=["two", "2 of 3", "1 of 4", "all"]
)
def test_a_link_that_drops_to_a_tenth(ranks, links, seed):
    ran = lab(ranks=ranks, rate=1e7, states={100: slow(ranks, *links)}, seed=seed).run()
    frame, move = ran.moves[0]
    assert 100 <= frame < 100 + ANSWERED_WITHIN
    assert move.ranks == links
    assert "links" in move.why
    assert ran.gains[0] > 1.2
    assert len(ran.moves) == 1


def test_waiting_for_a_slow_rank_is_no_slow_link():
    ran = lab(ranks=4, rate=1e7, states={100: slow(4, r2=4.0)}).run()
    assert [move.ranks for _, move in ran.moves] == [(2,)]
    assert "links" not in ran.moves[0][1].why


@pytest.mark.parametrize("left", [1, 3])
def test_too_few_pictures_are_left(left):
    assert not lab(states={FRAMES - 6 - left: slow(2, r1=2.0)}).run().moves


def test_a_change_that_is_too_small():
    assert not lab(states={60: slow(2, r1=1.12)}).run().moves


def test_a_plan_that_is_no_faster_is_given_up_and_then_left_alone_for_longer_and_longer():
    states = {60: slow(2, r1=2.0), 100: slow(2, r1=3.0), 300: slow(2, r1=4.5), 520: slow(2, r1=7.0)}
    ran = lab(states=states, worse=3.0, frames=800).run()
    kinds = [move.kind for _, move in ran.moves]
    assert kinds[:4] == ["rebalance", "undo", "rebalance", "undo"]
    assert ran.moves[1][1].plan is lab().plan or ran.moves[1][1].plan.boxes == lab().plan.boxes
    assert ran.moves[1][0] - ran.moves[0][0] <= 5 * WINDOW
    assert ran.gains[0] < 1
    undone = [frame for frame, move in ran.moves if move.kind == "undo"]
    again = [frame for frame, move in ran.moves if move.kind == "rebalance"][1:]
    pauses = [later - earlier for earlier, later in zip(undone, again, strict=False)]
    assert all(pause >= COOL_DOWN * 2**number for number, pause in enumerate(pauses))


def test_a_plan_that_was_refused_is_not_asked_for_again():
    ran = lab(states={60: slow(2, r1=2.0)})
    ran.run()
    wanted = ran.moves[0][1]
    rebalancer = Rebalancer(lab().plan, ran.known)
    rebalancer.refused(wanted)
    found = []
    fresh = lab(states={60: slow(2, r1=2.0)})
    random = np.random.default_rng(0)
    for number in range(0, FRAMES, WINDOW):
        rows = [fresh._frame(number + i, random, 1.0) for i in range(WINDOW)]
        move = rebalancer.look(Window(*(np.stack(each) for each in zip(*rows, strict=True))), FRAMES - number)
        found += [move] if move else []
    assert all(move.plan.boxes != wanted.plan.boxes for move in found)


def test_frames_that_are_not_there_do_not_count():
    rebalancer = Rebalancer(lab().plan, lab().known)
    rows = np.full((WINDOW, 2, 5), np.nan)
    assert rebalancer.look(Window(rows, rows, rows[:, 0, 0]), 100) is None


def test_new_shares_balance_what_ranks_take():
    plan, on = lab("wpm", ranks=3).plan, cluster(1.0, 2.0, 4.0, rate=1e9)
    found = estimate(reshared(plan, on), on).compute_s
    assert found.max() < 1.25 * found.min()
    assert reshared(make_plan(GRAPH, (1, 32, 48, 48), "single", 3), on) is None


def test_no_links_are_blamed_within_a_host():
    plan, on = lab().plan, cluster(1.0, 1.0, hosts="aa")
    usual = State((1.0, 1.0), (1.0, 1.0))
    zeros = np.zeros((2, len(plan.graph.units)))
    assert blamed(plan, on, usual, 2 * estimate(plan, on).latency_s, zeros) is None


def test_a_short_burst_is_no_change():
    drift = Drift()
    usual, high = [1.0, 1.01, 0.99], [2.0, 2.1, 1.9]
    for values in (*[usual] * 8, high, *[usual] * 12, high):
        drift.add(np.array(values))
        assert not drift.changed
    drift.add(np.array([0.4, 0.4, 0.4]))
    assert not drift.changed, "up and down is no level"
    drift.add(np.array([0.4, 0.4, 0.4]))
    assert drift.changed
    assert drift.now == pytest.approx(0.4)
    drift.accept()
    assert not drift.changed
    assert drift.level == pytest.approx(0.4)


def test_the_first_plan_has_both_ranks_at_work():
    assert at_work(lab().plan) == [0, 1]
