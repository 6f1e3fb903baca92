"""Plans that are tried in turn: the fastest as measured stays, and no trial costs more than it can bring."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mpiconv.errors import PlanError
from mpiconv.graph.trace import trace
from mpiconv.partition import Plan, make_plan
from mpiconv.partition.plan import at_work
from mpiconv.planner.candidates import Candidate
from mpiconv.planner.proposals import undivided
from mpiconv.planner.simulation import Timeline
from mpiconv.runtime.settings import Settings
from mpiconv.runtime.trials import CLOSE, HOPELESS, MOST, TIMED, WARM, choose, fastest, shortlist
from tests.test_simulation import cluster

MODEL = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)).eval()
SHAPE = (1, 3, 16, 16)


def candidate(name: str, plan: Plan, estimated_s: float) -> Candidate:
    stamps = np.zeros((plan.ranks, len(plan.graph.units), 3))
    stamps[0, -1, 2] = estimated_s
    return Candidate(name, plan, Timeline(stamps))


def split(share: float, estimated_s: float) -> Candidate:
    return candidate(f"{share:g}", make_plan(MODEL, SHAPE, "kpm", 2, (1 - share, share)), estimated_s)


OWN = candidate("own", make_plan(MODEL, SHAPE, "single", 2), 1.0)
A, B, C = split(0.25, 0.9), split(0.5, 0.8), split(0.75, 0.7)


@dataclass
class Fake:
    """A network of which it is known what a picture takes by each plan, in s."""

    takes: dict[str, float]
    plan: Plan
    left: int = 1000
    refused: tuple[str, ...] = ()
    settings: Settings = Settings()  # noqa: RUF009 - frozen
    adopted: list[str] = field(default_factory=list)
    run_by: list[str] = field(default_factory=list)

    def adopt(self, plan: Plan) -> int:
        name = self.named(plan)
        if name in self.refused:
            raise PlanError("this compute cannot run it")
        self.plan = plan
        self.adopted.append(name)
        return 0

    def named(self, plan: Plan) -> str:
        return next(each.name for each in (OWN, A, B, C) if each.plan.boxes == plan.boxes)

    def run(self, count: int) -> list[float]:
        count = min(count, self.left)
        self.left -= count
        self.run_by += [self.named(self.plan)] * count
        return [self.takes[self.named(self.plan)]] * count


def tried(fake: Fake, listed: list[Candidate], frames: int = 1000, rate: float = 1e9):
    return choose(fake, listed, cluster(1.0, 1.0, rate=rate), fake.run, frames)


@pytest.mark.parametrize("best", ["own", "0.25", "0.5", "0.75"])
def test_the_fastest_as_measured_stays(best):
    fake = Fake({name: 0.1 if name == best else 0.2 for name in ("own", "0.25", "0.5", "0.75")}, OWN.plan)
    found = tried(fake, [OWN, C, B, A])
    assert fake.named(fake.plan) == best == fastest(found).name
    assert [each.name for each in found] == ["own", "0.75", "0.5", "0.25"]
    assert [each.measured_s for each in found] == [fake.takes[each.name] for each in found]
    assert [each.estimated_s for each in found] == [1.0, 0.7, 0.8, 0.9]


def test_one_device_stays_where_nothing_is_faster():
    fake = Fake({"own": 0.1, "0.5": 0.1}, OWN.plan)
    assert fastest(tried(fake, [OWN, B], frames=50)).name == "own"
    assert fake.adopted[0] == "0.5"
    assert fake.adopted[-1] == "own"


@pytest.mark.parametrize(("ratio", "more"), [(CLOSE * 1.01, 1), (CLOSE * 0.99, 2), (1 / (CLOSE * 0.99), 2), (0.5, 1)])
def test_a_split_that_is_about_as_fast_as_one_device_is_timed_once_more(ratio, more):
    fake = Fake({"own": 0.1, "0.5": 0.1 * ratio, "0.75": 0.13}, OWN.plan)
    assert [each.frames for each in tried(fake, [OWN, B, C])] == [more * MOST, more * MOST, MOST]


def test_a_lucky_first_trial_is_found_out():
    """What is measured again counts as much as what was measured first."""

    class Lucky(Fake):
        def run(self, count: int) -> list[float]:
            found = super().run(count)
            lucky = self.run_by.count("0.5") <= WARM + MOST
            return [0.097] * len(found) if self.named(self.plan) == "0.5" and lucky else found

    fake = Lucky({"own": 0.1, "0.5": 0.105}, OWN.plan)
    assert fastest(tried(fake, [OWN, B])).name == "own"
    assert fake.named(fake.plan) == "own"


def test_of_a_hopeless_plan_one_picture_is_timed():
    fake = Fake({"own": 0.1, "0.5": 0.1 * HOPELESS * 1.01, "0.75": 0.1 * HOPELESS * 0.99}, OWN.plan)
    own, hopeless, poor = tried(fake, [OWN, B, C])
    assert hopeless.frames == 1
    assert own.frames == poor.frames == MOST


def test_plans_that_cannot_run_here_are_passed_over_with_the_reason():
    fake = Fake({"own": 0.2, "0.5": 0.0, "0.75": 0.1}, OWN.plan, refused=("0.5",))
    found = tried(fake, [OWN, B, C])
    assert [(each.name, each.frames > 0, each.why) for each in found] == [
        ("own", True, ""), ("0.5", False, "this compute cannot run it"), ("0.75", True, "")
    ]  # fmt: skip
    assert fake.named(fake.plan) == "0.75"


def test_weights_are_sent_for_a_trial_only_where_it_can_gain_as_much():
    weights = sum(param.numel() for param in MODEL[0].parameters()) * 4  # a lower bound
    slow = weights / 100.0  # B/s: half of the weights takes far longer than is bearable
    fake = Fake({"own": 1.0, "0.5": 0.5}, OWN.plan)
    _, skipped = tried(fake, [OWN, B], frames=50, rate=slow)
    assert skipped.frames == 0
    assert "sending its weights would take" in skipped.why
    assert fake.adopted == []
    fake.settings = Settings(weights_file="w.safetensors", readers=(1,))
    _, there = tried(fake, [OWN, B], frames=50, rate=slow)
    assert there.frames, "rank 1 reads its weights from its own disk"
    fake = Fake({"own": 1.0, "0.5": 0.5}, OWN.plan)
    _, worth = tried(fake, [OWN, B], frames=100_000, rate=slow)
    assert worth.frames == MOST
    assert fake.adopted == ["0.5"]


@given(st.integers(1, 200), st.permutations([OWN, A, B, C]))
def test_a_third_of_the_pictures_is_left_for_what_stays(frames, listed):
    fake = Fake({"own": 0.1, "0.25": 0.11, "0.5": 0.12, "0.75": 0.13}, listed[0].plan, left=frames)
    found = tried(fake, listed, frames)
    assert len(fake.run_by) <= max(frames - frames // 3, WARM + max(TIMED, frames // 10))
    assert [each.name for each in found] == [each.name for each in listed[: len(found)]]
    if fake.left:
        assert fake.named(fake.plan) == fastest(found).name


@pytest.mark.parametrize("left", range(12))
def test_a_run_that_ends_early(left):
    """Also in the midst of a trial: what was measured last is the plan's that runs, and nothing is divided by zero."""
    fake = Fake({"own": 0.2, "0.5": 0.1, "0.75": 0.15}, OWN.plan, left=left)
    found = tried(fake, [OWN, B, C], frames=40)
    assert len(fake.run_by) == left
    assert all(each.frames for each in found)
    assert fake.named(fake.plan) == ["own", *fake.adopted][-1]


def test_what_is_tried():
    graph, on = trace(MODEL, SHAPE[1:]).layers, cluster(1.0, 2.0)
    own, *_ = [candidate(name, plan, 1.0) for name, plan in undivided(graph, on, 1) if at_work(plan) == [0]]
    other, *_ = [candidate(name, plan, 0.5) for name, plan in undivided(graph, on, 1) if at_work(plan) == [1]]
    splits = [split(share, 0.1 * number) for number, share in enumerate((0.2, 0.4, 0.5, 0.6), 1)]
    names = [each.name for each in shortlist([*splits, other, own])]
    assert names == ["all on a", "0.2", "0.4", "0.5", "all on b"], "rank 0 alone first: the weights are there"
    assert [each.name for each in shortlist([own, *splits, other])] == ["all on a", "0.2", "0.4"]
    assert [each.name for each in shortlist([own])] == ["all on a"]
