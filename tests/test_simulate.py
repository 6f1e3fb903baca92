"""``mpiconv simulate``: multicast by hand, what is printed, written and drawn, and what is refused."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mpiconv.cli import main
from mpiconv.errors import ModelError
from mpiconv.graph.trace import trace
from mpiconv.partition import SCHEMES, make_plan
from mpiconv.partition.schedule import schedule
from mpiconv.planner.candidates import candidates
from mpiconv.planner.estimating import estimate
from mpiconv.planner.forecast import DIMENSIONS, QUANTITIES, Question, forecast
from mpiconv.planner.links import Links
from mpiconv.planner.nominal import nominal_device
from mpiconv.planner.simulation import _multicast, simulate
from tests.random_nets import SHARES, nets
from tests.test_simulation import MAP_BYTES, cluster, two_convolutions
from tests.test_words import said  # noqa: F401

BLOCK_S = MAP_BYTES / 4 / 1e6
"""A quarter of a map over 1 MB/s."""


@pytest.mark.parametrize(("medium", "blocks"), [("switch", 3), ("shared", 4)])
def test_everyone_needs_all(medium, blocks):
    """Four ranks have a quarter each: on a switch three quarters come in at each, on the air every quarter is once."""
    plan = make_plan(two_convolutions(), (1, 8, 10, 10), "kpm", 4)
    links = Links(cluster(*[100.0] * 4, alpha=1e-3, medium=medium))
    arrived, sent = _multicast(plan.exchanges[0], np.zeros(4), links, 1)
    assert arrived.max() == pytest.approx(1e-3 + blocks * BLOCK_S)
    assert (sent == 0).all(), "small messages leave at once"


@pytest.mark.parametrize("medium", ["switch", "shared"])
def test_the_picture_reaches_all_at_once(medium):
    plan = make_plan(two_convolutions(), (1, 8, 10, 10), "kpm", 4)
    on = cluster(*[100.0] * 4, medium=medium)
    arrived, _ = _multicast(plan.exchanges[-1], np.zeros(4), Links(on), 1)
    assert arrived.tolist() == pytest.approx([0, *[1e-3 + MAP_BYTES / 1e6] * 3])
    tree = simulate(schedule(plan, lambda _: "messages"), on).stamps_s[:, 0, 1]
    assert tree.max() == pytest.approx({"switch": 2e-3 + 2 * MAP_BYTES / 1e6}.get(medium, tree.max()))
    assert tree.max() > arrived.max()


def test_a_slow_receiver_does_not_hold_up_the_others_on_a_switch():
    links = Links(cluster(*[1.0] * 3, alpha=0.0))
    links.carry(2, 1, 5_000_000, 0.0)
    assert links.spread(0, np.array([1, 2]), 1_000_000, 0.0).tolist() == pytest.approx([6.0, 1.0])
    assert links.carry(0, 2, 1_000_000, 0.0) == pytest.approx(2.0), "the sender was busy once"


def test_a_neighbour_on_the_same_host_takes_no_link():
    links = Links(cluster(*[1.0] * 3, hosts="aab"))
    assert links.spread(0, np.array([1, 2]), 1_000_000, 0.0).tolist() == pytest.approx([0, 1.001], abs=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(nets(), st.sampled_from(sorted(SCHEMES)), SHARES, st.sampled_from(["switch", "shared"]))
def test_bytes_that_are_sent_once(net, scheme, shares, medium):
    """Between two ranks there is nothing to save; more send no less than the union, and no more than one by one."""
    model, picture = net
    try:
        plan = make_plan(model, (1, *picture), scheme, len(shares), shares)
    except ModelError:
        assume(False)
    ranks = range(plan.ranks)
    for spread in plan.exchanges.values():
        once = sum(block.size for block in spread.blocks)
        assert sum(map(spread.multicast, ranks)) <= once <= sum(map(spread.sent, ranks))
        assert sum(block.size * len(block.targets) for block in spread.blocks) == sum(map(spread.sent, ranks))
    on = cluster(*[1.0] * plan.ranks, medium=medium, rate=1e5)
    apart, together = (simulate(schedule(plan, lambda _: "m"), on, multicast=way) for way in (False, True))
    assert (np.diff(together.stamps_s.reshape(plan.ranks, -1), axis=1) >= 0).all()
    assert together.latency_s <= apart.latency_s * (1 + 1e-9)
    if plan.ranks == 2:
        assert together.latency_s == pytest.approx(apart.latency_s)


FEW = ["simulate", "--model", "digits", "--devices", "1,2,5", "--rates", "0.01,100", "--schemes", "kpm,wpm,auto"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What a small simulation wrote and drew, and the folder of it."""
    folder = tmp_path_factory.mktemp("simulate")
    words = ["--schemes", "kpm,wpm", "--output", str(folder / "f.h5"), "--figures", str(folder / "pictures"), "--quiet"]
    assert main([*FEW, "--model", "squeezenet1_1", "--input-size", "64x64,96x64", *words]) == 0
    return folder


def test_the_file_opens_in_xarray(made):
    xarray = pytest.importorskip("xarray")
    with xarray.open_dataset(made / "f.h5", engine="h5netcdf") as data:
        assert data.latency.dims == DIMENSIONS
        assert set(data.data_vars) == set(QUANTITIES)
        assert data.attrs["estimated"] == 1
        assert data.attrs["device"] == "nominal pi4"
        assert data.input_size.values.tolist() == ["64x64", "96x64"]
        assert data.device_count.values.tolist() == [1, 2, 5]
        assert data.scheme.values.tolist() == ["single", "kpm", "wpm"]
        assert data.medium.values.tolist() == ["switch", "switch+multicast", "shared", "shared+multicast"]
        assert (data.latency.attrs["units"], data.rate.attrs["units"]) == ("s", "B/s")
        one = data.latency.sel(device_count=1)
        assert np.allclose(one.values, one.sel(scheme="single").values[..., None]), (
            "one device is one device, however it is split"
        )
        assert (data.latency >= data.compute_time.sel(scheme="single", device_count=1) / 5).all()
        assert (data.multicast_bytes <= data.bytes_moved).all()
        many = data.sel(device_count=5, scheme="kpm", medium="switch")
        assert (many.multicast_bytes < many.bytes_moved / 2).all()
        slow = data.latency.sel(rate=1e4, device_count=5)
        assert (slow.sel(scheme="kpm") > 10 * slow.sel(scheme="single")).all()


def test_figures_are_made(made):
    names = [f"{name}-{size}.png" for name in ("latency", "map") for size in ("64x64", "96x64")]
    assert sorted(path.name for path in (made / "pictures").iterdir()) == sorted(names)
    assert all((made / "pictures" / name).stat().st_size > 20_000 for name in names)


def test_what_is_printed_says_where_a_split_pays(capsys):
    assert main([*FEW, "--multicast", "off", "--media", "switch"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Estimated, not measured: digits, nominal pi4, batch 1, links of 0.2 ms.")
    assert "Nothing beats one device at any of these rates." in out
    assert "KPM beats WPM" in out
    assert "multicast" not in out
    assert main([*FEW[:-4], "--rates", "0.01,1000", "--model", "alexnet", "--schemes", "wpm", "--latency", "0"]) == 0
    assert "Below 1000 MB/s nothing beats one device" in capsys.readouterr().out


def test_json(capsys):
    assert main([*FEW, "--media", "shared", "--multicast", "on", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["estimated"] is True
    assert len(found["cells"]) == 3 * 2 * 4
    assert {cell["medium"] for cell in found["cells"]} == {"shared+multicast"}
    assert set(found["cells"][0]) == {*DIMENSIONS, *QUANTITIES}


def test_auto_leaves_idle_what_it_does_not_search(monkeypatch):
    from mpiconv.graph.trace import trace
    from mpiconv.planner import forecast as module

    monkeypatch.setattr(module, "AUTO_DEVICES", 2)
    graph = trace(two_convolutions(), (8, 40, 10)).layers
    asked = Question((graph,), (nominal_device("pi4"),), (1, 2, 6), (1e9,), ("switch", "shared"), ("auto",), 0.0)
    found = forecast(asked)["latency"][0, :, 0, :, 1]
    assert found[2].tolist() == found[1].tolist()
    assert (found[1] < found[0]).all()


def test_unequal_devices_share_by_speed():
    """A laptop beside a Pi: alone it is the fastest, and a split that gave both the same would wait for the Pi."""
    from mpiconv.graph.trace import trace
    from mpiconv.models import load_model

    graph = trace(load_model("vgg11"), (3, 64, 64)).layers
    both = (nominal_device("pi4"), nominal_device("laptop"))
    asked = Question((graph,), both, (1, 2), (1e9,), ("switch",), ("kpm", "wpm"), 0.0)
    (alone,), (two,) = forecast(asked)["latency"][0, :, :, 0, :]
    assert two[0] < 0.6 * alone[0], "all on the laptop"
    assert two[1] < 1.1 * two[0]


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        ("--schemes kmp", 2, "unknown scheme 'kmp': choose from .*auto; did you mean 'kpm'"),
        ("--devices 0,2", 2, "'0' is not a whole number from 1 up"),
        ("--devices 2,385", 2, "--devices 385: 384 are simulated at most"),
        ("--device pi5", 2, "unknown device 'pi5': choose from pi4, .*did you mean 'pi4'"),
        ("--device nowhere.toml", 1, "cannot read .*nowhere.toml"),
        ("--media wifi", 2, "unknown medium 'wifi': choose from switch, shared"),
        ("--rates 0", 2, "'0' is not a rate in MB/s"),
        ("--input-size 32x4096", 2, "--input-size 32x4096: 2048x2048 is simulated at most"),
        ("--model alexnet --input-size 9x9", 1, "alexnet cannot take pictures of 9x9: "),
        ("--measured results/figure9.h5", 2, "add --figures"),
        ("--measured results/figure9.h5 --figures x", 2, "has no run of digits to draw"),
        ("--output x.txt", 2, "does not end with .h5"),
    ],
)
def test_refused(said, words, status, sentence):  # noqa: F811
    found, message = said("simulate", "--model", "digits", *words.split())
    assert found == status, message
    assert re.search(sentence, message), message
    assert len(message.strip().splitlines()) == 1


def test_a_device_of_a_cluster_file(file_of):
    from mpiconv.cli.simulate_run import described, device_of
    from mpiconv.errors import UsageError

    path = file_of(2)
    assert device_of(f"{path}:1").host == "b"
    assert device_of(path).host == "a"
    assert described(f"pi4,{path}") == f"nominal pi4, device of {path}"
    with pytest.raises(UsageError, match="are numbered from 0 to 1"):
        device_of(f"{path}:2")


def test_multicast_as_the_medium_of_a_cluster():
    """The search counts what several need alike once, and what comes out is no slower than over a switch."""
    net = two_convolutions()
    switch, multicast = (cluster(*[0.01] * 4, medium=medium) for medium in ("switch", "multicast"))
    plan, graph = make_plan(net, (1, 8, 10, 10), "kpm", 4), trace(net, (8, 10, 10)).layers
    assert estimate(plan, multicast).latency_s == estimate(plan, switch, multicast=True).latency_s
    assert estimate(plan, multicast).latency_s < estimate(plan, switch).latency_s
    best, other = candidates(graph, multicast), candidates(graph, switch)
    assert best[0].latency_s <= min(estimate(each.plan, multicast).latency_s for each in other)
    assert best[0].latency_s <= other[0].latency_s
