"""Plans as data: what they imply, saving and loading, and what a broken one says."""

from __future__ import annotations

import inspect
import json

import pytest
import torch
from torch import nn

import mpiconv
from mpiconv.errors import PlanError, UsageError
from mpiconv.graph.trace import trace
from mpiconv.models import REGISTRY
from mpiconv.partition import SCHEMES, Box, Plan, Span, make_plan
from mpiconv.partition.plan_text import idle

CHAIN = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 5, padding=2), nn.Flatten())


def skeleton(name: str) -> nn.Module:
    """A named model without numbers in it."""
    with torch.device("meta"):
        model = REGISTRY[name].build(10)
    model.info = REGISTRY[name].info
    return model


def named_plan(name: str, scheme: str, ranks: int, **options: object) -> Plan:
    return make_plan(skeleton(name), (1, *REGISTRY[name].info.input_shape), scheme, ranks, **options)


def alexnet_elements(ranks: int, maps: list[int], last: int) -> float:
    """Elements received under KPM: the maps by everyone, the picture by all but the root, the last map by the root."""
    return (ranks - 1) * (3 * 227 * 227 + sum(maps)) + last * (ranks - 1) / ranks


AFTER_CONV = [96 * 55 * 55, 256 * 27 * 27, 384 * 13 * 13, 384 * 13 * 13]
AFTER_POOL = [96 * 27 * 27, 256 * 13 * 13, 384 * 13 * 13, 384 * 13 * 13]


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize(
    ("gather", "maps", "last"), [("conv", AFTER_CONV, 256 * 13 * 13), ("pool", AFTER_POOL, 256 * 6 * 6)]
)
def test_kpm_moves_what_the_formulas_say(ranks, gather, maps, last):
    plan = named_plan("alexnet", "kpm", ranks, gather=gather)
    moved = sum(plan.bytes_received(u, r) for u in range(len(plan.graph.units)) for r in range(ranks))
    assert moved == 4 * alexnet_elements(ranks, maps, last)
    assert ranks != 2 or moved == 4 * {"conv": 783035, "pool": 402235}[gather]


@pytest.mark.parametrize(
    ("scheme", "first", "between", "last"),
    [
        ("single", "none", "none", "none"),
        ("kpm", "bcast", "allgatherv", "gatherv"),
        ("wpm", "scatterv", "sendrecv", "gatherv"),
        ("replicated", "bcast", "none", "none"),
        ("fused", "scatterv", "none", "gatherv"),
        ("grid", "scatterv", "p2p", "gatherv"),
        ("columns", "scatterv", "sendrecv", "gatherv"),
        ("tiles", "scatterv", "p2p", "gatherv"),
    ],
)
def test_patterns_follow_from_the_boxes(scheme, first, between, last):
    plan = named_plan("alexnet", scheme, 4)
    assert plan.pattern(0) == first
    assert {plan.pattern(u) for u in range(1, 5)} == {between}
    assert plan.pattern(5) == last


def test_columns_are_the_rows_of_the_network_turned():
    """Bands thinner than the halo, an idle rank, more ranks than columns, stride 4 and even kernels among them."""
    picture = (3, 43, 29)
    upright = nn.Sequential(
        nn.Conv2d(3, 4, (11, 5), (4, 3), (2, 1)), nn.MaxPool2d((3, 2), (2, 1)), nn.Conv2d(4, 4, (4, 7), padding=(2, 3))
    )
    turned = nn.Sequential(
        nn.Conv2d(3, 4, (5, 11), (3, 4), (1, 2)), nn.MaxPool2d((2, 3), (1, 2)), nn.Conv2d(4, 4, (7, 4), padding=(3, 2))
    )
    for shares in ([1, 1], [3, 0, 1, 2], [1] * 6, [0.1, 5, 0.1]):
        rows = make_plan(upright, (2, *picture), "wpm", len(shares), shares)
        columns = make_plan(turned, (2, 3, 29, 43), "columns", len(shares), shares)
        assert columns.boxes == tuple(tuple(Box(b.channels, b.columns, b.rows) for b in row) for row in rows.boxes)
        for u in range(len(rows.graph.units)):
            assert columns.pattern(u) == rows.pattern(u)
            for r in range(len(shares)):
                assert columns.bytes_received(u, r) == rows.bytes_received(u, r)
                assert columns.flops(u, r) == rows.flops(u, r)


def test_tiles_are_as_square_as_the_number_of_ranks_allows():
    net = nn.Sequential(nn.Conv2d(1, 1, 1))
    found = {}
    for shares in ([1] * 4, [1] * 6, [3, 1, 0, 0], [1] * 5):
        (boxes,) = make_plan(net, (1, 1, 12, 8), "tiles", len(shares), shares).boxes
        found[tuple(shares)] = [f"{box.rows} {box.columns}" for box in boxes]
    assert found[1, 1, 1, 1] == ["0:6 0:4", "0:6 4:8", "6:12 0:4", "6:12 4:8"]
    assert found[(1,) * 6] == [f"{rows} {columns}" for rows in ("0:4", "4:8", "8:12") for columns in ("0:4", "4:8")]
    assert found[3, 1, 0, 0] == ["0:12 0:6", "0:12 6:8", "0:0 0:0", "0:0 0:0"]
    assert {tile.split()[1] for tile in found[(1,) * 5]} == {"0:8"}, "five ranks have bands of rows"


def test_an_idle_rank_is_in_no_exchange():
    plan = named_plan("alexnet", "kpm", 4, shares=[1, 1, 0, 1])
    assert all(plan.bytes_received(u, 2) == plan.bytes_sent(u, 2) == 0 for u in range(6))
    assert all(2 not in spec.members for spec in plan.exchanges.values())
    assert plan.pattern(1) == "allgatherv"
    assert list(idle(plan)) == [2]


def test_a_band_thinner_than_the_halo_reaches_past_its_neighbour():
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 7, padding=3))
    plan = make_plan(net, (1, 1, 6, 6), "wpm", 6)
    assert plan.pattern(1) == "sendrecv"
    assert {t.source for t in plan.exchanges[0].transfers if t.target == 2} == {0, 1, 3, 4, 5}


def test_more_ranks_than_kernels_or_rows():
    plan = named_plan("alexnet", "wpm", 15)
    assert idle(plan)[14] == ["conv2", "conv3", "conv4", "conv5"]
    plan = make_plan(CHAIN, (1, 3, 9, 9), "kpm", 6)
    assert idle(plan) == {4: ["conv2"], 5: ["conv2"]}


def test_flops_and_weights_of_the_slices_sum_to_the_whole():
    for name in ("alexnet", "vgg11", "digits"):
        plan = named_plan(name, "kpm", 3, shares=[0.7, 0.2, 0.1])
        for u, unit in enumerate(plan.graph.body):
            assert sum(plan.flops(u, r) for r in range(3)) == unit.flops
            assert sum(plan.weight_bytes(u, r) for r in range(3)) == 4 * sum(p.size for p in unit.params)


def test_paper_flops():
    graph = trace(skeleton("alexnet"), (3, 227, 227)).graph
    assert [unit.flops for unit in graph.body] == [210830400, 895795200, 299040768, 448561152, 299040768]
    assert [unit.name for unit in graph.units] == ["conv1", "conv2", "conv3", "conv4", "conv5", "head"]
    assert graph.units[-1].flops == 2 * (9216 * 4096 + 4096 * 4096 + 4096 * 10)


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_a_plan_is_data_and_readable(scheme, tmp_path):
    plan = named_plan("digits", scheme, 3, shares=[2, 1, 1])
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert str(again) == str(plan)
    header = str(plan).splitlines()[1]
    assert all(word in header for word in ("unit", "scheme", "rank", "channels", "rows", "bytes in", "FLOPs"))


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_a_scheme_is_a_short_function(scheme):
    assert len(inspect.getsource(SCHEMES[scheme]).splitlines()) <= 25


@pytest.mark.parametrize(
    ("change", "word"),
    [
        pytest.param(lambda d: d.update(mpiconv_plan=99), "version 1", id="version"),
        pytest.param(lambda d: d["boxes"].pop(), "does not fit", id="units"),
        pytest.param(lambda d: d["boxes"][0].pop(), "boxes for 1 ranks", id="ranks"),
        pytest.param(lambda d: d["boxes"][0][1][0].__setitem__(1, 99), "leaves the map", id="outside"),
        pytest.param(lambda d: d["boxes"][0][1][1].__setitem__(1, 3), "no rank computes", id="gap"),
        pytest.param(lambda d: d.pop("graph"), "graph", id="no-graph"),
        pytest.param(lambda d: d["graph"]["units"][1].update(inputs=[1]), "reads a map", id="edge"),
        pytest.param(lambda d: d.update(shares="x"), "broken plan", id="shares"),
        pytest.param(lambda d: d.update(threads=[2]), "for 2 ranks", id="threads of too few"),
        pytest.param(lambda d: d.update(threads=[0, 0, 0]), "from 1 up", id="no threads"),
        pytest.param(lambda d: d.update(threads="ab"), "broken plan", id="threads"),
        pytest.param(lambda d: d["graph"]["units"][0]["layers"][0].update(kind="magic"), "unknown kind", id="kind"),
    ],
)
def test_broken_plans_are_refused_by_name(change, word, tmp_path):
    data = make_plan(CHAIN, (1, 3, 9, 9), "wpm", 2).to_dict()
    data = json.loads(json.dumps(data))
    change(data)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(data))
    with pytest.raises(PlanError, match=word) as caught:
        Plan.load(path)
    assert "broken.json" in str(caught.value)


def test_files_that_are_no_plan(tmp_path):
    (tmp_path / "no.json").write_text("{")
    with pytest.raises(PlanError, match="not JSON"):
        Plan.load(tmp_path / "no.json")
    with pytest.raises(PlanError, match=r"missing\.json: No such file"):
        Plan.load(tmp_path / "missing.json")


def test_scheme_names():
    with pytest.raises(UsageError, match=r"'kmp'.*did you mean 'kpm'"):
        make_plan(CHAIN, (1, 3, 9, 9), "kmp", 2)
    with pytest.raises(UsageError, match="0 ranks"):
        make_plan(CHAIN, (1, 3, 9, 9), "kpm", 0)
    with pytest.raises(UsageError, match="batch of 0"):
        make_plan(CHAIN, (0, 3, 9, 9), "kpm", 1)


def test_offload_all_leaves_rank_0_the_head():
    plan = named_plan("alexnet", "kpm", 2, shares=[0, 1])
    assert all(box == Box() for box in (row[0] for row in plan.boxes))
    assert plan.boxes[0][1].channels == Span(0, 96)
    assert [plan.pattern(u) for u in range(6)] == ["bcast", "none", "none", "none", "none", "gatherv"]


def test_library_names():
    assert {"load_model", "make_plan", "distribute", "Plan"} <= set(dir(mpiconv))
    with pytest.raises(AttributeError, match="nothing"):
        _ = mpiconv.nothing
