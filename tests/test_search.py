"""The search for the best split: against all chains tried one by one, and exact for any network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from mpiconv.errors import ModelError
from mpiconv.graph.form import PICTURE, Graph
from mpiconv.graph.trace import trace
from mpiconv.partition import Box, Span, make_plan
from mpiconv.partition.bounds import bounds, box_of, sizes
from mpiconv.partition.exchange import exchange
from mpiconv.partition.plan import Plan
from mpiconv.partition.receptive import unit_needs
from mpiconv.planner import rates
from mpiconv.planner.bounds import Costs, Needs, hulls
from mpiconv.planner.candidates import candidates
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.estimating import estimate
from mpiconv.planner.gathering import apart, joined
from mpiconv.planner.proposals import level_shares, levelled, searched
from mpiconv.planner.rates import Rates
from mpiconv.planner.search import Search
from mpiconv.planner.speed import unit_seconds
from mpiconv.planner.stages import Stage
from mpiconv.planner.ways import Way, blocks, over, teams, ways
from mpiconv.runtime import distribute
from mpiconv.runtime.settings import Settings
from tests.random_nets import nets
from tests.simulated import assert_close, fused_before, run_split
from tests.test_simulation import cluster

SPEEDS = st.lists(st.sampled_from([0.3, 1.0, 2.0]), min_size=2, max_size=3)
MEDIA = st.sampled_from(["switch", "shared", "multicast"])
RATES = st.sampled_from([1e4, 1e6, 1e8])


def boxes_in(found: np.ndarray) -> list[Box]:
    return [box_of(row) for row in found.tolist()]


def waits_s(own: np.ndarray, need: np.ndarray, on: Cluster) -> np.ndarray:
    """How long each rank waits for an exchange, from who sends what to whom as the engine derives it."""
    count = len(on.devices)
    sent, received, alphas = np.zeros(count), np.zeros(count), np.zeros(count)
    spread = exchange(boxes_in(own), boxes_in(need), "a map")
    for each in spread.transfers:
        link = on.link(each.source, each.target)
        seconds = 4 * each.box.size / link.beta_bytes_per_s
        sent[each.source] += seconds
        received[each.target] += seconds
        alphas[each.target] = max(alphas[each.target], link.alpha_s)
    everything = sent.sum()
    if on.medium == "multicast":
        sent = np.zeros(count)
        for block in spread.blocks:
            slowest = min(on.link(block.source, target).beta_bytes_per_s for target in block.targets.tolist())
            sent[block.source] += 4 * block.size / slowest
    elif spread.pattern == "bcast":
        sent *= np.ceil(np.log2(len(spread.members))) / max(len(spread.members) - 1, 1)
    arrived = received.copy()
    for each in spread.transfers:
        arrived[each.target] = max(arrived[each.target], sent[each.source])
    if on.medium == "shared":
        arrived = np.maximum(arrived, everything)
    return np.maximum(np.where(received > 0, arrived + alphas, 0), sent)


def any_chain(graph: Graph, on: Cluster, choose: Callable[[Sequence[Way]], Way]) -> Plan:
    """A plan in which each block is split by any way, whatever it takes."""
    among, names, boxes = ways(graph, on), list[str](), list[tuple[Box, ...]]()
    for block in blocks(graph):
        way = choose(among)
        names += way.names[block.start : block.stop]
        boxes += map(tuple, way.boxes[block.start : block.stop])
    count = len(on.devices)
    return Plan(graph, tuple(names), (1 / count,) * count, 1, tuple(boxes))


def all_chains(search: Search) -> list[list[Stage]]:
    stages = [stage for each in search._stages for stage in each]
    found, open_chains = [], [[]]
    while open_chains:
        chain = open_chains.pop()
        start = chain[-1].units.stop if chain else 0
        if start == len(search.graph.body):
            found.append(chain)
        open_chains += [[*chain, stage] for stage in stages if stage.units.start == start]
        assume(len(open_chains) + len(found) < 20000)
    return found


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(nets(), SPEEDS, RATES, MEDIA)
def test_no_chain_of_stages_is_quicker(net, speeds, rate, medium):
    model, picture = net
    try:
        graph = trace(model, picture).grouped("pool", "split")
    except ModelError:
        assume(False)
    assume(len(graph.body) >= 1 and len(blocks(graph)) <= 3)
    on = cluster(*speeds, rate=rate, medium=medium)
    search = Search(graph, on)
    root = np.array([[0, picture[0], 0, picture[1], 0, picture[2]], *[[0] * 6] * (len(speeds) - 1)])
    costs: dict[tuple[bytes, bytes], np.ndarray] = {}

    def waits(own: np.ndarray, need: np.ndarray) -> np.ndarray:
        key = own.tobytes(), need.tobytes()
        if key not in costs:
            costs[key] = waits_s(own, need, on)
        return costs[key]

    def takes(chain: list[Stage]) -> float:
        made = [root, *(stage.made for stage in chain)]
        stages = (
            (waits(own, each.needs) + each.each_s).max() + each.rest_s for own, each in zip(made, chain, strict=False)
        )
        return sum(stages) + search._to_root(chain[-1].way)

    best = min(takes(chain) for chain in all_chains(search))
    plan = search.plan()
    chosen = [
        chain
        for chain in all_chains(search)
        if tuple(tuple(boxes_in(row)) for stage in chain for row in stage.boxes) == plan.boxes
    ]
    assert min(takes(chain) for chain in chosen) == pytest.approx(best)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(nets(), SPEEDS)
def test_what_is_fused_is_what_each_rank_needs_for_its_last_box(net, speeds):
    model, picture = net
    try:
        graph = trace(model, picture).grouped("pool", "split")
    except ModelError:
        assume(False)
    for stages in Search(graph, cluster(*speeds))._stages:
        for stage in stages:
            if "fused" in stage.names:
                assert [boxes_in(row) for row in stage.boxes] == fused_before(graph, stage.units, boxes_in(stage.made))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(nets(), SPEEDS, RATES, MEDIA, st.integers(1, 2))
def test_every_plan_that_is_found_is_exact(net, speeds, rate, medium, batch):
    model, picture = net
    try:
        traced = trace(model, picture, batch=batch)
    except ModelError:
        assume(False)
    images = torch.rand(batch, *picture)
    with torch.inference_mode():
        answer = model(images)
    for _, plan in searched(traced.layers, cluster(*speeds, rate=rate, medium=medium), batch):
        fitting = trace(model, picture, batch=batch)
        assert_close(run_split(model, plan, images, fitting), answer)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(nets(), SPEEDS, st.randoms(use_true_random=False))
def test_many_boxes_at_once_are_as_one_by_one(net, speeds, random):
    """What is needed of every input, what it takes, and boxes around boxes: as partition.receptive says."""
    model, picture = net
    try:
        graph = trace(model, picture).grouped("pool", "split")
    except ModelError:
        assume(False)
    on = cluster(*speeds)
    needs, costs = Needs(graph), Costs(graph, on)
    for index, unit in enumerate(graph.body):
        rows = [
            [Box(*(Span(*sorted(random.sample(range(n + 1), 2))) for n in unit.out_shape)) for _ in speeds]
            for _ in range(3)
        ]
        rows[0][0] = Box()
        found = np.stack([bounds(row) for row in rows])
        for number, of_input in enumerate(needs(index, found)):
            assert [boxes_in(row) for row in of_input] == [
                [unit_needs(unit, box)[number] for box in row] for row in rows
            ]
        assert costs(index, found).shape == found.shape[:-1]
        assert ((costs(index, found) > 0) == (sizes(found) > 0)).all()
        assert boxes_in(hulls([found[0], found[1]])) == [a.hull(b) for a, b in zip(rows[0], rows[1], strict=True)]


@pytest.mark.parametrize("medium", ["switch", "shared"])
def test_of_many_ranks_some_speak_for_all(medium, monkeypatch):
    """40 equal devices: looking at some of them gives what looking at all gives."""
    on, ranks, whole = cluster(*[1.0] * 40, medium=medium), range(40), Box.whole((40, 120, 9))
    bands = bounds([Box(whole.channels, Span(3 * rank, 3 * rank + 3), whole.columns) for rank in ranks])
    rows = [Span(3 * rank - 1, 3 * rank + 4) & whole.rows for rank in ranks]
    halos = bounds([Box(whole.channels, each, whole.columns) for each in rows])
    slices = bounds([Box(Span(rank, rank + 1), whole.rows, whole.columns) for rank in ranks])
    everyone, root = bounds([whole] * 40), bounds([whole, *[Box()] * 39])
    cases = [(bands, halos), (bands, bands), (slices, everyone), (root, everyone), (root, bands), (slices, root)]
    some = [float(Rates(on, 1).seconds(own, need)) for own, need in cases]
    monkeypatch.setattr(rates, "FEW", 100)
    assert some == pytest.approx([float(Rates(on, 1).seconds(own, need)) for own, need in cases])
    assert some[1] == 0


def test_shares_by_which_all_compute_as_long():
    """A device that is half as fast in what it does gets half; one that has no part gets none."""
    net = nn.Sequential(*[nn.Conv2d(16, 16, 3, padding=1) for _ in range(4)]).eval()
    on = cluster(2.0, 1.0, 1.0, rate=1e9, alpha=1e-6)
    plan = make_plan(net, (1, 16, 60, 60), "wpm", 3, (1.0, 1.0, 0.0))
    shares = level_shares(plan, estimate(plan, on))
    assert shares[0] == pytest.approx(2 * shares[1], rel=0.02)
    assert shares[2] == 0
    graph = trace(net, (16, 60, 60)).layers
    best = next(each.plan for each in candidates(graph, on) if each.divided)
    (_, level), *_, (_, tilted) = levelled(graph, on, 1, best)
    busy, root = estimate(level, on).compute_s, estimate(tilted, on).compute_s[0]
    assert max(busy) < 1.1 * np.mean(busy)
    assert root > 1.1 * busy[0], "the root has more at last"


def test_units_between_cut_points():
    """A residual block is one block: the map before it is read again at its end."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x).relu()
            return x + self.c(self.b(x).relu())

    graph = trace(Residual().eval(), (4, 8, 8)).grouped("pool", "split")
    found = blocks(graph)
    assert [unit for block in found for unit in block] == list(range(len(graph.body)))
    assert found[0] == range(1)
    assert len(found[1]) == len(graph.body) - 1
    for block in found[:-1]:
        assert all(source >= block.stop - 1 for unit in graph.units[block.stop :] for source in unit.inputs)
    assert PICTURE in graph.units[0].inputs


def test_a_unit_that_needs_whole_maps_is_not_fused_behind_others():
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d((1, 1)), nn.Conv2d(4, 8, 1)).eval()
    search = Search(trace(net, (4, 12, 12)).grouped("conv", "split"), cluster(1.0, 1.0))
    assert not any("fused" in stage.names[:1] for stage in search._stages[0])


def test_columns_and_tiles_where_they_can_be_best():
    """Columns of a wide picture alone, tiles of four devices and more; of ways that are alike one."""

    def schemes(picture: tuple[int, int, int], devices: int) -> set[str]:
        graph = trace(nn.Conv2d(4, 8, 3).eval(), picture).grouped("pool", "split")
        found = ways(graph, cluster(*[1.0] * devices))
        assert all(a.boxes != b.boxes for i, a in enumerate(found) for b in found[:i])
        return {way.scheme for way in found}

    assert schemes((4, 16, 16), 2) == {"", "kpm", "wpm", "replicated"}
    assert schemes((4, 16, 20), 2) == {"", "kpm", "wpm", "columns", "replicated"}
    assert schemes((4, 16, 16), 4) == {"", "kpm", "wpm", "grid", "tiles", "replicated"}


def test_a_grid_is_made_of_a_teams_own_members():
    graph = trace(nn.Conv2d(4, 8, 3).eval(), (4, 18, 18)).grouped("pool", "split")
    grid = next(way for way in over(graph, [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0]) if way.scheme == "grid")
    assert grid.ranks == (0, 2, 3, 6)
    assert [str(box) for box in grid.boxes[0]] == [
        *("c0:4 r0:8 w0:16", "-", "c4:8 r0:8 w0:16", "c0:4 r8:16 w0:16", "-", "-", "c4:8 r8:16 w0:16")
    ]


def test_what_is_cheap_between_kernels_is_computed_by_all():
    """One exchange less than on one device: every device gets the whole map before it, and has the one behind it."""
    net = nn.Sequential(*(nn.Conv2d(a, b, 1) for a, b in pairwise((1024, 2048, 256, 8192, 8)))).eval()
    on = cluster(1.0, 1.0, rate=1e9, alpha=1e-3)
    search = Search(trace(net, (1024, 1, 1)).grouped("pool", "split"), on)
    plan, other = search.plan(), search.plan(without=["replicated"])
    assert plan.schemes == ("kpm", "replicated", "kpm", "root")
    assert [plan.pattern(unit) for unit in range(4)] == ["bcast", "allgatherv", "none", "gatherv"]
    assert estimate(plan, on).latency_s < estimate(other, on).latency_s


def test_pooling_may_come_behind_the_exchange():
    """Slow devices with fast links send each other a row rather than compute it twice; a slow link the other way."""
    net = nn.Sequential(
        *(nn.Conv2d(8, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    ).eval()
    graph = trace(net, (8, 32, 32)).layers
    assert [unit.layers[-1].name for unit in apart(graph).body] == ["0", "2", "5"]
    fast, slow = (candidates(graph, cluster(1.0, 1.0, rate=rate, alpha=1e-6))[0].plan for rate in (1e9, 1e4))
    assert (fast.gather, fast.pattern(1)) == ("mixed", "gatherv")
    assert slow.gather == "pool"
    assert apart(trace(nn.Sequential(nn.Conv2d(4, 4, 3), nn.MaxPool2d(2)).eval(), (4, 9, 9)).layers) is None


@pytest.mark.parametrize("seed", range(6))
def test_units_that_are_joined_again_compute_the_same(seed):
    """Any plan with pooling apart: what is sent stays apart, the rest is one unit again, and nothing more is sent."""
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(8, 8, 3), nn.AvgPool2d(3, 1)),
        *(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(12 * 4 * 4, 5)),
    ).eval()
    traced, picture = trace(net, (3, 28, 28)), torch.rand(1, 3, 28, 28)
    plan = any_chain(apart(traced.layers), cluster(1.0, 2.0, 1.0), Random(seed).choice)
    found = joined(plan, traced.layers)
    sent = [sum(sum(each.exchanges[source].sizes) for source in each.exchanges) for each in (plan, found)]
    assert sent[0] == sent[1]
    with torch.inference_mode():
        assert_close(run_split(net, found, picture, traced), net(picture))


@pytest.mark.parallel([2, 3])
def test_any_chain_of_ways_is_exact_over_real_ranks():
    from mpi4py import MPI

    comm, failures = MPI.COMM_WORLD, []

    @settings(max_examples=5, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(nets(), st.randoms(use_true_random=False), st.sampled_from(["auto", "messages"]))
    def every_rank_draws_the_same(net, random, same_host):
        model, picture = net
        try:
            graph = trace(model, picture).grouped("pool", "split")
            with torch.inference_mode():
                images = torch.randn(1, *picture, generator=torch.Generator().manual_seed(3))
                wanted = model(images.clone())
            assume(wanted.isfinite().all())
        except ModelError:
            assume(False)
        plan = any_chain(graph, cluster(*[1.0, 2.0, 1.0][: comm.size]), random.choice)
        root = comm.rank == 0
        split = distribute(model if root else None, plan if root else None, comm, Settings(same_host=same_host))
        got = split(images if root else None)
        split.close()
        try:
            assert got is None or assert_close(got, wanted) is None
        except AssertionError as error:
            failures.append(f"{model} {picture} {plan}: {error}")

    every_rank_draws_the_same()
    assert not failures


def test_a_bottleneck_is_split_by_rows_first_and_by_kernels_behind():
    """Large maps with few channels, then one pixel with many: no one scheme is best for both."""
    net = nn.Sequential(
        *(nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8, 8)),
        nn.MaxPool2d(256),
        nn.Conv2d(8, 512, 3, padding=1),
        nn.Conv2d(512, 2048, 3, padding=1),
    ).eval()
    graph = trace(net, (3, 256, 256)).layers
    best, *_ = candidates(graph, cluster(20.0, 20.0, rate=1e8, alpha=1e-4))
    assert best.name.startswith("unit by unit: ")
    assert best.plan.schemes[0] == "fused"
    assert best.plan.schemes[-1] == "kpm"
    assert best.plan.scheme == "mixed"


def test_teams_are_the_fastest_devices_with_and_without_the_root():
    assert list(teams([1.0, 3.0, 2.0])) == [(1, 2), (0, 1), (0, 1, 2)]
    assert {len(team) for team in teams([1.0] * 20)} == {2, 4, 8, 16, 20}


def test_plans_have_different_names():
    graph = trace(nn.Sequential(*[nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)]).eval(), (8, 64, 64)).layers
    names = [each.name for each in candidates(graph, cluster(1.0, 1.0, 1.0, rate=1e6))]
    assert len(names) == len(set(names))


def test_what_is_fused_is_charged_for_computing_alone():
    """Two devices compute the rows at the border twice, and send each other none of them."""
    net = nn.Sequential(*[nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)]).eval()
    search = Search(trace(net, (4, 12, 12)).grouped("pool", "split"), cluster(1.0, 1.0))
    fused = [stage for each in search._stages for stage in each if "fused" in stage.names]
    assert fused
    device = search.cluster.devices[0]
    for stage in fused:
        units = list(zip((search.graph.units[unit] for unit in stage.units), stage.boxes, strict=True))
        computing = max(sum(unit_seconds(device, unit, boxes_in(row)[r]) for unit, row in units) for r in (0, 1))
        assert stage.each_s.max() + stage.rest_s == pytest.approx(computing)


def test_without_time_to_search_there_are_the_plans_on_one_device():
    graph = trace(nn.Sequential(*[nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)]).eval(), (8, 64, 64)).layers
    on = cluster(1.0, 2.0, rate=1e9)
    assert [each.name for each in candidates(graph, on, most_s=0.0)] == ["all on b", "all on a"]
    assert any(each.divided for each in candidates(graph, on, most_s=60.0))
