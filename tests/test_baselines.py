"""The baselines from the literature: exact for any network, and built as their papers say."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from mpiconv.cli import main
from mpiconv.cli.options import BASELINES as TOLD
from mpiconv.errors import ModelError
from mpiconv.graph.form import PICTURE, Graph
from mpiconv.graph.grouping import grouped
from mpiconv.graph.trace import trace
from mpiconv.partition import Box, Plan, make_plan
from mpiconv.partition.plan import at_work
from mpiconv.planner.baselines import BASELINES, aofl, coedge, deepthings, flexpie, modnn
from mpiconv.planner.candidates import candidates
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.coedge import balanced, split_units
from mpiconv.planner.speed import unit_seconds
from tests.conftest import mpiconv
from tests.random_nets import nets
from tests.simulated import assert_close, fused_before, run_split
from tests.test_head import NETS, seeded
from tests.test_head import PICTURE as HEAD_PICTURE
from tests.test_plan import skeleton
from tests.test_search import MEDIA, RATES, waits_s
from tests.test_simulation import cluster
from tests.test_words import said  # noqa: F401 - a fixture


def chain(*channels: int, kernel: int = 3) -> nn.Module:
    """Convolutions, one after the other, that keep the size of the map."""
    pairs = pairwise((3, *channels))
    return nn.Sequential(*(nn.Conv2d(a, b, kernel, padding=kernel // 2) for a, b in pairs)).eval()


def layers(model: nn.Module, picture: tuple[int, int, int]) -> Graph:
    return trace(model, picture).layers


def bounds(boxes: tuple[Box, ...]) -> np.ndarray:
    return np.array([[edge for span in box.spans for edge in (span.lo, span.hi)] for box in boxes])


def takes_s(plan: Plan, on: Cluster, groups: list[range] | None = None) -> float:
    """What the search takes a plan to last: all ranks begin each group of units together, and wait for its input."""
    if groups is None:
        ends = [unit + 1 for unit, name in enumerate(plan.schemes) if name != "fused"]
        groups = [range(a, b) for a, b in pairwise([0, *ends])]
    total = 0.0
    for group in groups:
        each_s = np.zeros(plan.ranks)
        for unit in group:
            for source in plan.incoming(unit):
                spread = plan.exchanges[source]
                each_s += waits_s(bounds(spread.owned), bounds(spread.needed), on)
            row = zip(on.devices, plan.boxes[unit], strict=True)
            each_s += [unit_seconds(device, plan.graph.units[unit], box) for device, box in row]
        total += each_s.max()
    last = [plan.exchanges[source] for source in plan.incoming(len(plan.boxes))]
    return total + sum(waits_s(bounds(e.owned), bounds(e.needed), on).max() for e in last)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    nets(),
    st.sampled_from(sorted(BASELINES)),
    st.lists(st.sampled_from([0.3, 1.0, 2.0]), min_size=1, max_size=6),
    RATES,
    MEDIA,
    st.integers(1, 2),
)
def test_every_baseline_is_exact(net, name, speeds, rate, medium, batch):
    model, picture = net
    try:
        traced = trace(model, picture, batch=batch)
    except ModelError:
        assume(False)
    images = torch.randn(batch, *picture, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = model(images.clone())
    assume(wanted.isfinite().all())
    plan = BASELINES[name](traced.layers, cluster(*speeds, rate=rate, medium=medium), batch)
    assert_close(run_split(model, plan, images, traced), wanted)
    assert Plan.from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("net", ["chain", "pooled", "perceptron", "residual", "no head", "nothing"])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_odd_networks_and_numbers_of_devices(name, net, count):
    """No convolutions, no fully connected layers, nothing to split at all; one device, more devices than rows."""
    own = {"no head": nn.Sequential(nn.Conv2d(3, 2, 2, 4), nn.Conv2d(2, 2, (3, 2))), "nothing": nn.Flatten()}
    model = seeded(net) if net in NETS else own[net].eval().requires_grad_(False)
    picture = HEAD_PICTURE
    traced = trace(model, picture)
    plan = BASELINES[name](traced.layers, cluster(*[1.0, 3.0, 2.0, 0.1, 1.0, 1.0, 5.0, 2.0, 1.0][:count]), 1)
    assert plan.ranks == count
    images = torch.randn(1, *picture)
    assert_close(run_split(model, plan, images, traced), model(images))


def test_modnn_shares_follow_speed_along_the_longer_edge():
    on = cluster(1.0, 3.0, 2.0)
    upright, lying = (modnn(layers(chain(8, 8), shape), on) for shape in ((3, 60, 30), (3, 30, 60)))
    assert [[len(box.rows) for box in row] for row in upright.boxes] == [[10, 30, 20]] * 2
    assert [[len(box.columns) for box in row] for row in lying.boxes] == [[10, 30, 20]] * 2
    assert (upright.scheme, lying.scheme) == ("wpm", "columns")


def test_modnn_splits_fully_connected_weights():
    plan = modnn(layers(seeded("chain"), HEAD_PICTURE), cluster(1.0, 1.0))
    assert plan.head == "split"
    held = [sum(plan.weight_bytes(unit, rank) for unit in range(2, 5)) for rank in (0, 1)]
    assert min(held) > 0.25 * sum(held)


def test_coedge_leaves_out_a_slow_device_and_one_with_a_bad_link():
    graph = layers(chain(16, 16, 16, 16), (3, 64, 64))
    even = coedge(graph, cluster(1.0, 1.0, 1.0, rate=1e9, alpha=1e-5))
    assert [len(box.rows) for box in even.boxes[0]] == [22, 21, 21]
    slow = coedge(graph, cluster(1.0, 1.0, 0.001, rate=1e9, alpha=1e-5))
    assert at_work(slow) == [0, 1]
    far = cluster(1.0, 1.0, 1.0, rate=1e9, alpha=1e-5).to_dict()
    for link in far["link"]:
        if 1 in (link["source"], link["target"]):
            link["beta_bytes_per_s"] = 1e4
    assert at_work(coedge(graph, Cluster.from_dict(far))) == [0, 2], "its neighbours are neighbours now"


def test_coedge_balances_what_every_device_takes():
    """Twice the speed is twice the share where links cost nothing, and less where they do."""
    graph = layers(chain(16, 16, 16), (3, 90, 64))
    free, slow = (coedge(graph, cluster(1.0, 2.0, rate=rate, alpha=0)).shares[1] for rate in (1e15, 1e7))
    assert free == pytest.approx(2 / 3, rel=1e-2)
    assert 0 < slow < 0.6
    shares = balanced({0: 1.0, 1: 2.0, 2: 9.0}, {0: 4.0, 1: 2.0, 2: 1.0})
    assert sum(shares.values()) == pytest.approx(1)
    assert 1 + 4 * shares[0] == pytest.approx(2 + 2 * shares[1])
    assert shares[2] < 0, "nine seconds before it begins: the others are faster without it"


@pytest.mark.parametrize("kernel", [3, 7, 13])
def test_coedge_asks_neighbours_alone(kernel):
    """Nine devices, and bands of a few rows: those whose band is thinner than the halo do not take part."""
    plan = coedge(layers(chain(16, 16, 16, kernel=kernel), (3, 36, 36)), cluster(*[0.1] * 9, rate=1e12, alpha=0))
    working = at_work(plan)
    place = {rank: number for number, rank in enumerate(working)}
    between = [t for unit in range(2) for t in plan.exchanges[unit].transfers]
    assert between
    assert all(abs(place[t.source] - place[t.target]) == 1 for t in between)
    assert len(working) == {3: 9, 7: 9, 13: 6}[kernel]


def test_deepthings_fuses_the_first_layers_in_equal_tiles():
    """Small layers behind large ones are left to the root; nothing is exchanged between those that are fused."""
    net = nn.Sequential(*chain(32, 32, 32), nn.MaxPool2d(16), nn.Conv2d(32, 8, 3, padding=1), nn.Conv2d(8, 8, 1)).eval()
    plan = deepthings(layers(net, (3, 64, 64)), cluster(1.0, 1.0, 1.0, 1.0, rate=3e7, alpha=1e-4))
    assert plan.schemes == ("fused", "fused", "tiles", "root", "root")
    assert [str(box.rows) for box in plan.boxes[2]] == ["0:2", "0:2", "2:4", "2:4"]
    assert [str(box.columns) for box in plan.boxes[2]] == ["0:2", "2:4"] * 2
    assert [plan.pattern(unit) for unit in (1, 2, 3, 4)] == ["none", "none", "gatherv", "none"]


def all_groups(count: int) -> list[list[range]]:
    """Every way to cut ``count`` units in a row into groups."""
    if not count:
        return [[]]
    return [[*before, range(last, count)] for last in range(count) for before in all_groups(last)]


@pytest.mark.parametrize("rate", [1e5, 3e6, 1e8])
@pytest.mark.parametrize("medium", ["switch", "shared"])
def test_aofl_is_the_best_of_all_groups_of_fused_layers(rate, medium):
    model, on = chain(8, 8, 16, 4), cluster(1.0, 2.0, 1.0, rate=rate, medium=medium, alpha=1e-4)
    graph = grouped(layers(model, (3, 24, 24)), "pool", "root")
    bands = make_plan(graph, (1, 3, 24, 24), "wpm", 3)
    times = []
    for groups in all_groups(len(graph.body)):
        boxes = [row for units in groups for row in fused_before(graph, units, bands.boxes[units[-1]])]
        times.append(takes_s(Plan(graph, bands.schemes, bands.shares, 1, tuple(map(tuple, boxes))), on, groups))
    found = aofl(graph, on)
    assert takes_s(found, on) == pytest.approx(min(times))
    assert min(times) < 0.99 * max(times)
    last = found.boxes[-1]
    assert [len(box.rows) for box in last] == [8, 8, 8], "equal bands, whatever the speeds"


@pytest.mark.parametrize("rate", [1e5, 3e6, 1e8])
def test_flexpie_is_no_slower_than_any_of_its_schemes(rate):
    model = nn.Sequential(*chain(8, 16), nn.MaxPool2d(4), nn.Conv2d(16, 64, 3, padding=1), nn.Conv2d(64, 64, 3)).eval()
    graph, on = layers(model, (3, 32, 40)), cluster(*[1.0] * 4, rate=rate, alpha=1e-4)
    single = {s: takes_s(make_plan(graph, (1, 3, 32, 40), s, 4), on) for s in ("kpm", "wpm", "columns", "tiles")}
    found = flexpie(graph, on)
    assert takes_s(found, on) <= min(single.values()) * (1 + 1e-9)
    assert at_work(found) == [0, 1, 2, 3]


def test_flexpie_splits_columns_and_tiles_where_they_are_best():
    """A wide, flat map has long rows: the halo between columns is short."""
    found = flexpie(layers(chain(8, 8, 8), (3, 8, 200)), cluster(1.0, 1.0, rate=1e7, alpha=1e-5))
    assert found.schemes[-1] == "columns"
    found = flexpie(layers(chain(8, 8, 8), (3, 64, 64)), cluster(*[1.0] * 4, rate=1e5, alpha=1e-5))
    assert found.schemes[-1] == "tiles"


def test_where_classification_begins():
    """Maps of one row and column at the end of the body: a global pooling, not a fully connected layer in the midst."""
    graph = grouped(layers(seeded("pooled"), HEAD_PICTURE), "pool", "root")
    assert 0 < split_units(graph) < len(graph.body)
    assert PICTURE not in graph.units[split_units(graph)].inputs
    plan = coedge(graph, cluster(1.0, 5.0, rate=1e9, alpha=0))
    assert plan.boxes[split_units(graph)][0] == Box.whole(graph.units[split_units(graph)].out_shape)


def test_candidates_have_the_baselines_among_them():
    graph = trace(skeleton("alexnet"), (3, 227, 227)).layers
    names = {each.name for each in candidates(graph, cluster(1.0, 3.0, 2.0, rate=1e6))}
    assert {"coedge", "deepthings"} <= names
    assert not names & {each.name for each in candidates(graph, cluster(1.0))} - {"all on a"}


@pytest.mark.parametrize("name", BASELINES)
def test_plan_shows_and_saves_a_baseline(name, file_of, tmp_path, capsys):
    path = tmp_path / "p.json"
    words = ["plan", "--model", "digits", "--cluster", str(file_of(2)), "--scheme", name]
    assert main([*words, "--save", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{name}: over ")
    assert "not measured" in out
    assert "mpiconv run --model digits --plan" in out
    assert Plan.load(path).ranks == 2
    assert main([*words, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["best"], shown["estimated"]) == (name, True)
    assert Plan.from_dict(shown["plan"]) == Plan.load(path)


@pytest.mark.parametrize(("name", "given"), [("coedge", False), ("flexpie", True)])
def test_run_by_a_baseline(name, given, file_of, tmp_path):
    """On devices and links from a file, or as a quick probe finds them; the results have the baseline's name."""
    out = tmp_path / "out.h5"
    words = ["--repeats", 3, "--check", "--json", "--output", out, *(["--cluster", file_of(2)] if given else [])]
    ended = mpiconv(2, "run", "--model", "digits", "--scheme", name, *words)
    assert ended.status == 0, ended.err
    assert ended.json["scheme"] == name
    assert ended.json["check"]["max_rel_error"] <= 1e-5
    with h5py.File(out) as file:
        assert file.attrs["scheme"] == name


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("plan", "--scheme", "aolf"), "unknown scheme 'aolf'.*did you mean 'aofl'"),
        (("plan", "--scheme", "modn", "--cluster", "2"), "unknown scheme 'modn'.*did you mean 'modnn'"),
        (("plan", "--scheme", "kpm", "--cluster", "2"), "leave --scheme out"),
        (("plan", "--scheme", "modnn"), "--scheme modnn chooses .*--cluster FILE.toml"),
        (("plan", "--scheme", "modnn", "--shares", "1,2", "--cluster", "2"), "leave --shares out"),
    ],
)
def test_what_does_not_go_together(words, sentence, file_of, said):  # noqa: F811
    words = [str(file_of(2)) if word == "2" else word for word in words]
    status, message = said(words[0], "--model", "digits", *words[1:])
    assert status == 2
    assert re.search(sentence, message), message


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("coegde",), "unknown scheme 'coegde': .*did you mean 'coedge'"),
        (("modnn", "--head", "split"), "--scheme modnn chooses the head by itself"),
        (("modnn", "--plan-by", "measure"), "--plan-by is for --scheme auto"),
    ],
)
def test_a_run_that_is_refused(words, sentence):
    ended = mpiconv(0, "run", "--model", "digits", "--scheme", *words)
    assert ended.status == 2
    assert len(ended.errors) == 1
    assert re.search(sentence, ended.errors[0]), ended.errors


def test_help_tells_of_every_baseline():
    assert list(TOLD) == list(BASELINES)
