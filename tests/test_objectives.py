"""Plans that are best in something else than latency: pictures/s, pipelines, energy, and those best in anything."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from mpi4py import MPI
from torch import nn

import mpiconv
from mpiconv.errors import ModelError, MpiconvError, UsageError
from mpiconv.graph.trace import trace
from mpiconv.partition import SCHEMES, Plan, make_plan
from mpiconv.partition.plan import at_work
from mpiconv.partition.schedule import schedule
from mpiconv.planner import pipelines
from mpiconv.planner.candidates import Flowing, candidates
from mpiconv.planner.cluster import POWERS, Cluster
from mpiconv.planner.estimating import estimate, scheduled
from mpiconv.planner.limits import limits_for
from mpiconv.planner.objective import OBJECTIVES
from mpiconv.planner.pareto import front, pareto
from mpiconv.planner.pipelines import Part, Pipelines, pipelined
from mpiconv.planner.proposals import names_of
from mpiconv.planner.simulation import simulate, simulate_stream
from mpiconv.planner.throughput import DEPTHS, ENOUGH, flow, pictures_per_s_at_most
from mpiconv.runtime.settings import Settings
from mpiconv.runtime.trials import choose
from tests.browser import opened
from tests.conftest import mpiconv as run
from tests.random_nets import SHARES, nets
from tests.simulated import assert_close, run_split
from tests.test_simulation import cluster
from tests.test_trials import OWN, B, Fake

FEW = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MEDIA = st.sampled_from(["switch", "shared"])
COMM = MPI.COMM_WORLD


def powered(on: Cluster, *watts: float) -> Cluster:
    """The cluster with devices that draw so much while they compute, and a tenth while they wait."""
    power = [dict(zip(POWERS, (3.0, each / 10, each, 0.0), strict=True)) for each in watts]
    pairs = zip(on.devices, power, strict=True)
    return replace(on, devices=tuple(replace(device, power_w=each) for device, each in pairs))


def convolutions(count: int = 4) -> nn.Sequential:
    return nn.Sequential(*[nn.Conv2d(16, 16, 3, padding=1) for _ in range(count)]).eval()


def graph_of(count: int = 4):
    return trace(convolutions(count), (16, 24, 24)).layers


@FEW
@given(nets(), st.sampled_from(sorted(SCHEMES)), SHARES, MEDIA, st.booleans(), st.integers(2, 4))
def test_frames_one_behind_the_other(net, scheme, shares, medium, overlapped, in_flight):
    """One at a time they go as by themselves; several at once no rank does two things, and each takes what it takes."""
    model, picture = net
    try:
        plan = make_plan(model, (1, *picture), scheme, len(shares), shares)
    except ModelError:
        assume(False)
    on = cluster(*[1.0] * len(shares), rate=1e6, medium=medium)
    carried = schedule(plan, lambda _: "messages", overlap=lambda _: overlapped)
    alone = simulate(carried, on)
    np.testing.assert_allclose(simulate_stream(carried, on, 1, 2)[0], alone.stamps_s, rtol=1e-9)
    frames = 3 * in_flight
    stamps = simulate_stream(carried, on, in_flight, frames)
    takes = stamps[..., 2] - stamps[..., 1]
    np.testing.assert_allclose(
        takes, np.broadcast_to(alone.stamps_s[..., 2] - alone.stamps_s[..., 1], takes.shape), atol=1e-9
    )
    assert (np.diff(stamps.reshape(frames, len(shares), -1), axis=-1) >= -1e-12).all(), "a frame goes forward"
    for rank in range(len(shares)):
        busy = sorted((begin, end) for begin, end in stamps[:, rank, :, 1:].reshape(-1, 2).tolist() if end > begin)
        assert all(end <= begin + 1e-9 for (_, end), (begin, _) in itertools.pairwise(busy)), "one thing at a time"
    entered, left = stamps[in_flight:, 0, 0, 0], stamps[:-in_flight, 0, -1, 1]
    assert (entered >= left - 1e-12).all(), "no more are under way than said"


@FEW
@given(
    st.lists(st.sampled_from([0.3, 1.0, 2.0]), min_size=2, max_size=2),
    st.integers(1, 3),
    st.sampled_from([1e5, 1e6, 1e8]),
    st.integers(1, 6),
)
def test_a_pipeline_by_its_recurrence(speeds, cut, rate, frames):
    """The picture goes from a to b, a map from b to c, the answer back to a: each device and link does one thing."""
    graph, on = graph_of(), cluster(1.0, *speeds, rate=rate)
    ways = Pipelines(graph, on)
    plan = ways.plan(Part(2, 4, 0.0, before=Part(1, cut, 0.0, before=Part(-1, 0, 0.0))))
    carried = schedule(plan, lambda _: "messages")
    b_s, c_s, head_s = estimate(plan, on).compute_s[[1, 2, 0]]
    hop_s, alpha_s = 4 * 16 * 24 * 24 / rate, 1e-3
    sent = computed = moved = made = back = answer = 0.0
    answers = []
    for _ in range(frames):
        sent += hop_s
        computed = max(computed, sent + alpha_s) + b_s
        moved = max(moved, computed) + hop_s
        made = max(made, moved + alpha_s) + c_s
        back = max(back, made) + hop_s
        answer = max(answer, back + alpha_s) + head_s
        answers.append(answer)
    found = simulate_stream(carried, on, frames, frames)[:, 0, -1, 2]
    np.testing.assert_allclose(found, answers, rtol=1e-9)


@pytest.mark.parametrize("scheme", ["single", "kpm", "wpm"])
def test_pictures_per_s(scheme):
    """Never more than what is busiest allows; the fewest in flight that come near what more would."""
    on = cluster(1.0, 1.0, 1.0, rate=3e6)
    plan = make_plan(convolutions(), (1, 16, 24, 24), scheme, 3)
    carried = scheduled(plan, on)
    most = pictures_per_s_at_most(plan, estimate(plan, on), on)
    each = {depth: flow(carried, on, depth).pictures_per_s for depth in DEPTHS}
    found = flow(carried, on)
    assert max(each.values()) <= most
    assert found.pictures_per_s == each[found.in_flight] >= ENOUGH * min(max(each.values()), most)
    assert all(rate < ENOUGH * max(each.values()) for depth, rate in each.items() if depth < found.in_flight)
    assert each[1] == pytest.approx(1 / estimate(plan, on).latency_s, rel=0.02)


def all_pipelines(ways: Pipelines) -> list[Plan]:
    """Every way to cut the blocks into two parts and more, on every choice of devices."""
    last, found = len(ways.stops) - 1, []
    for count in range(2, min(last, len(ways.cluster.devices)) + 1):
        for cuts in itertools.combinations(range(1, last), count - 1):
            for ranks in itertools.permutations(range(len(ways.cluster.devices)), count):
                part = Part(-1, 0, 0.0)
                for rank, stop in zip(ranks, (*cuts, last), strict=True):
                    part = Part(rank, stop, 0.0, before=part)
                found.append(ways.plan(part))
    return found


@FEW
@given(
    st.lists(st.tuples(st.sampled_from([4, 16, 32]), st.sampled_from([1, 2])), min_size=2, max_size=4),
    st.lists(st.sampled_from([0.3, 1.0, 1.0, 2.0]), min_size=2, max_size=3),
    st.sampled_from([1e5, 3e6, 1e8]),
    MEDIA,
    st.booleans(),
)
def test_no_pipeline_is_better(layers, speeds, rate, medium, in_order):
    widths = [3, *(width for width, _ in layers)]
    model = nn.Sequential(
        *(
            layer
            for (wide, (width, pool)) in zip(widths, layers, strict=False)
            for layer in (nn.Conv2d(wide, width, 3, padding=1), nn.MaxPool2d(pool))
        )
    ).eval()
    on = cluster(*speeds, rate=rate, alpha=1e-5, medium=medium)
    ways = Pipelines(trace(model, (3, 16, 16)).layers, on)
    alone_s = min(ways.alone_s(rank) for rank in range(len(speeds)))
    seconds = [1 / pictures_per_s_at_most(plan, estimate(plan, on), on) for plan in all_pipelines(ways)]
    best = [each for each in seconds if each < alone_s * (1 - 1e-9)]
    if in_order:
        ways._order = list(range(len(speeds)))
        ways._following = ways._in_order
        ways._members = [[]]
    found = ways.find(alone_s)
    for part in found:
        plan = ways.plan(part)
        assert 1 / pictures_per_s_at_most(plan, estimate(plan, on), on) == pytest.approx(part.busy_s)
        assert min(best) <= part.busy_s * (1 + 1e-9)
    if not in_order:
        assert bool(found) == bool(best)
        assert not best or found[-1].busy_s == pytest.approx(min(best))


@settings(FEW, max_examples=20)
@given(nets())
def test_every_pipeline_is_exact(net):
    """Of any network that is not one block, also with branches; what only the root can compute makes none."""
    model, picture = net
    try:
        traced = trace(model, picture)
    except ModelError:
        assume(False)
    ways = Pipelines(traced.layers, cluster(0.5, 1.0, 0.8, rate=1e9, alpha=1e-6))
    found = ways.find()
    assert bool(found) is (len(ways.stops) > 2 and not any(unit.opaque for unit in ways.graph.body))
    image = torch.rand(1, *picture)
    with torch.inference_mode():
        answer = model(image)
    for part in found:
        assert_close(run_split(model, ways.plan(part), image), answer)


def test_more_devices_make_longer_pipelines(monkeypatch):
    """Of equal devices with fast links as many parts as blocks; in a fixed order as good."""
    graph, on = graph_of(6), cluster(*[1.0] * 6, rate=1e9, alpha=1e-6)
    found = [len(at_work(plan)) for _, plan in pipelined(graph, on)]
    assert found == sorted(set(found))
    assert found[-1] == 6
    monkeypatch.setattr(pipelines, "MOST_ORDERS", 1)
    assert [len(at_work(plan)) for _, plan in pipelined(graph, on)][-1] == 6


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=12))
def test_the_front_is_one(rows):
    """Of those on it none is better than another; every other one has one on it that is as good in everything."""
    places = front(rows)

    def as_good(one, other):
        return all(a <= b for a, b in zip(one, other, strict=True))

    assert places
    for place, row in enumerate(rows):
        better = [rows[other] for other in places if other != place and as_good(rows[other], row)]
        assert bool(better) is (place not in places)


def test_plans_are_in_the_order_of_the_objective():
    graph = graph_of()
    on = powered(cluster(1.0, 1.1, 0.5, rate=1e7, alpha=1e-4), 5.0, 8.0, 0.5)
    for objective in OBJECTIVES.values():
        found = candidates(graph, on, objective=objective)
        values = [objective.value(each, on) for each in found if each.flow or not objective.streams]
        assert values == sorted(values)
        assert len(values) > 3
    energy = candidates(graph, on, objective=OBJECTIVES["energy"])
    assert energy[0].name == "all on c", "slow, and it draws a tenth"
    streams = candidates(graph, on, objective=OBJECTIVES["throughput"])
    assert streams[0].pictures_per_s(on) > 1.5 / candidates(graph, on)[-1].latency_s
    assert streams[0].flow.in_flight > 1


def test_the_best_of_each_is_on_the_front():
    graph, on = graph_of(), powered(cluster(1.0, 1.1, 0.5, rate=1e7, alpha=1e-4), 5.0, 8.0, 0.5)
    found = candidates(graph, on, front=True)
    assert all(each.flow for each in found)
    best = pareto(found, on)
    for objective in OBJECTIVES.values():
        least = min(objective.value(each, on) for each in found)
        assert least in [objective.value(each, on) for each in best]
    assert min(each.most_memory[1] for each in found) in [each.most_memory[1] for each in best]
    assert len(best) < len(found)


def test_energy_limits_are_kept():
    graph, on = graph_of(), powered(cluster(1.0, 1.0, rate=1e8, alpha=1e-5), 5.0, 5.0)
    every = sorted(sum(each.joules(on)) for each in candidates(graph, on))
    told = []
    found = candidates(graph, on, energy_limit_j=every[3], tell=told.append)
    assert [sum(each.joules(on)) <= every[3] for each in found] == [True] * len(found)
    assert len(found) >= 4
    with pytest.raises(MpiconvError, match=r"no plan for \S+ keeps within the energy limit of \S+ J a picture: the "):
        candidates(graph, on, energy_limit_j=0.9 * every[0])
    candidates(graph, on, batch=2, energy_limit_j=1.01 * every[0])
    with pytest.raises(UsageError, match="not known of a: give it as power_w"):
        candidates(graph, cluster(1.0, 1.0), energy_limit_j=1.0)


def test_a_split_that_takes_too_much_energy_is_told():
    graph, on = graph_of(), powered(cluster(1.0, 1.0, rate=1e8, alpha=1e-5), 5.0, 50.0)
    told = []
    alone = next(each for each in candidates(graph, on) if each.name == "all on a")
    found = candidates(graph, on, energy_limit_j=1.001 * sum(alone.joules(on)), tell=told.append)
    assert not any(each.divided for each in found)
    assert len(told) == 1
    assert told[0].startswith("no split of ")


def test_no_more_in_flight_than_there_is_memory_for():
    graph, on = graph_of(), cluster(1.0, 1.0, 1.0, rate=1e7, alpha=1e-4)
    free = candidates(graph, on, objective=OBJECTIVES["throughput"])[0]
    _, needed = free.most_memory
    limits = limits_for(on, names_of(on), [None, *[0.9 * needed] * 2])
    found = candidates(graph, on, objective=OBJECTIVES["throughput"], memory_limits=[None, *[0.9 * needed] * 2])
    for each in found:
        assert limits.broken(each.memory) is None
        if each.flow and each.turns is None:
            assert each.memory == Flowing(on, each.flow.in_flight, limits).one(each).memory


class Unsteady(Fake):
    """By one plan every fifth picture takes eight times as long."""

    def run(self, count: int) -> list[float]:
        before = len(self.run_by)
        seconds = super().run(count)
        slow = self.named(self.plan) == "0.5"
        return [8 * each if slow and (before + i) % 5 == 4 else each for i, each in enumerate(seconds)]


@pytest.mark.parametrize(("name", "chosen"), [("latency", "0.5"), ("p90", "own"), ("throughput", "own")])
@pytest.mark.parametrize("in_flight", [1, 3])
def test_trials_measure_what_is_wanted(name, chosen, in_flight):
    fake = Unsteady({"own": 0.1, "0.5": 0.05}, OWN.plan, settings=Settings(in_flight=in_flight))
    found = choose(fake, [OWN, B], cluster(1.0, 1.0), fake.run, 1000, OBJECTIVES[name])
    assert fake.named(fake.plan) == chosen
    wanted = {"latency": 0.05, "p90": 0.4, "throughput": 0.12}[name]
    assert found[1].measured_s == pytest.approx(wanted, rel=0.3)


@pytest.mark.parallel(3)
def test_a_pipeline_is_exact_with_three_in_flight():
    model = mpiconv.load_model("digits", seed=0)
    on = cluster(0.01, 0.01, 0.01, rate=1e9, alpha=1e-6)
    ways = Pipelines(trace(model, (1, 32, 32)).layers, on)
    plan = ways.plan(ways.find()[-1])
    assert at_work(plan) == [0, 1, 2]
    root = COMM.rank == 0
    pictures = [torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(10)]
    with mpiconv.distribute(model if root else None, plan if root else None, COMM, Settings(in_flight=3)) as net:
        answers = list(net.stream(pictures if root else None))
    assert len(answers) == 10
    with torch.inference_mode():
        for answer, picture in zip(answers, pictures, strict=True):
            if root:
                assert_close(answer, model(picture))


def saved(tmp_path, on: Cluster) -> str:
    on.save(tmp_path / "cluster.toml")
    return str(tmp_path / "cluster.toml")


def test_plan_makes_a_pipeline_that_runs(tmp_path):
    path = saved(tmp_path, cluster(0.01, 0.01, 0.01, rate=1e8, alpha=1e-5))
    words = ["plan", "--model", "digits", "--cluster", path, "--objective", "throughput", "--save", tmp_path / "p.json"]
    ended = run(0, *words)
    assert ended.status == 0, ended.err
    first = ended.out.splitlines()[0]
    assert "pictures/s with --in-flight " in first
    assert "x as many as a alone" in first
    assert "in flight" in ended.out
    depth = int(first.split("--in-flight ")[1].split(",")[0])
    done = run(3, "run", "--model", "digits", "--plan", tmp_path / "p.json", "--in-flight", depth, "--check", "--json")
    assert done.status == 0, done.err
    assert done.json["check"]["max_rel_error"] <= 1e-5


def test_plans_best_in_something(tmp_path):
    page = tmp_path / "plan.html"
    path = saved(tmp_path, powered(cluster(0.01, 0.02, rate=1e8), 5.0, 20.0))
    words = ["plan", "--model", "digits", "--cluster", path, "--pareto", "--html", page]
    ended = run(0, *words, "--objective", "energy", "--json")
    assert ended.status == 0, ended.err
    names = {each["name"]: each for each in ended.json["candidates"]}
    assert ended.json["objective"] == "energy"
    assert ended.json["best"] in ended.json["pareto"]
    assert set(ended.json["pareto"]) < set(names)
    assert all(names[name]["in_flight"] for name in ended.json["pareto"])
    with opened(page, 1280) as browser:
        text = browser.execute_script("return document.body.innerText")
        assert "Plans that are best in something" in text
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_run_takes_the_most_pictures_per_s(file_of):
    ended = run(2, "run", "--model", "digits", "--objective", "throughput", "--cluster", file_of(2), "--repeats", 60)
    assert ended.status == 0, ended.err
    said = next(line for line in ended.out.splitlines() if line.startswith("auto "))
    assert "pictures/s as measured" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--scheme", "kpm", "--objective", "p90"), "--objective is for --scheme auto: leave it out"),
        (("--scheme", "kpm", "--energy-limit", "1"), "--energy-limit is for --scheme auto: leave it out"),
        (("--objective", "energy", "--plan-by", "measure"), "--objective energy is by the estimate"),
        (("--objective", "energy", "--cluster", "2"), "which is not known of a: give it as power_w"),
        (("--energy-limit", "0"), "'0' is no energy in J above 0"),
    ],
)
def test_options_that_do_not_go_together(words, message, file_of):
    words = [file_of(2) if word == "2" else word for word in words]
    ended = run(2, "run", "--model", "digits", *words)
    assert ended.status == 2
    assert len(ended.errors) == 1
    assert message in ended.errors[0]
