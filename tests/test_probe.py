"""What the probe measures, what it makes of it, and the file that it writes."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from math import exp, log
from statistics import median
from time import thread_time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mpiconv.graph.form import Layer, Unit
from mpiconv.graph.grouping import grouped
from mpiconv.graph.trace import trace
from mpiconv.measure.estimate import fit_link, scatter, undisturbed
from mpiconv.models import info_of, load_model
from mpiconv.partition import Box, Span
from mpiconv.partition.receptive import layer_boxes
from mpiconv.planner.cluster import UNIT_KINDS, Cluster, Device
from mpiconv.planner.speed import CALL_S, MEASURED_ON, estimated_seconds, kind_of, unit_seconds
from mpiconv.planner.wisdom import Case, missing
from mpiconv.probe.medium import TELLING, judge_ring
from mpiconv.probe.speed import CASES, Work, make_work
from mpiconv.probe.units import UnitProbe
from mpiconv.probe.units import make_work as make_box
from tests.conftest import ROOT, execute, mpiconv


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        pytest.param([3.0], 3.0, id="one"),
        pytest.param([2.0, 1.0], 1.0, id="two"),
        pytest.param([2.0, 2.0, 2.0, 900.0], 2.0, id="all-but-one-alike"),
        pytest.param([9.0, 1.0, 8.0, 1.2, 7.0], 1.2, id="most-disturbed"),
        pytest.param([1.0, 1.1, 0.1, 1.2, 1.3], 1.0, id="one-too-fast"),
    ],
)
def test_disturbances_do_not_move_a_time(values, wanted):
    assert undisturbed(values) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [([1.0], 0), ([1.0, 1.0, 1.0], 0), ([1.0, 1.0, 1.5, 1.5, 1.6], 0.5)],
    ids=["one", "quiet", "busy-more-than-half"],
)
def test_how_much_a_time_scatters(values, wanted):
    assert scatter(values) == pytest.approx(wanted)


SIZES = (1, 1024, 2**14, 2**16, 2**18, 2**20)


@pytest.mark.parametrize(
    ("alpha", "beta", "spoil"),
    [
        pytest.param(1e-3, 12.5e6, {}, id="exact"),
        pytest.param(1e-5, 5e9, {}, id="memory"),
        pytest.param(0.3, 2e4, {}, id="slow"),
        pytest.param(1e-4, 12.5e6, {1024: 1e-4, 2**14: 1e-4}, id="a-burst-passes-the-rate-limit"),
        pytest.param(1e-4, 12.5e6, {2**16: 0.5}, id="one-size-disturbed"),
    ],
)
def test_the_line_through_a_links_times(alpha, beta, spoil):
    times = {size: alpha + size / beta for size in SIZES} | spoil
    assert fit_link(times) == (pytest.approx(alpha, rel=1e-3), pytest.approx(beta, rel=1e-2))


@given(st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3), st.floats(1.0, 1.1))
def test_a_ring_of_three_tells_a_switch_from_a_shared_medium(alone, disturbed):
    """Who carries one direction at a time is never called shared, nor is a switch; a shared medium never a switch."""
    one, two = max(alone), sum(alone) - min(alone)
    assert judge_ring(alone, disturbed * one) == ("switch", pytest.approx(1 / disturbed), "")
    kind, ratio, reason = judge_ring(alone, disturbed * sum(alone))
    if sum(alone) >= TELLING * two:
        assert kind == "shared"
    assert (ratio is None) == bool(reason) == (kind == "unknown")
    kind, _, reason = judge_ring(alone, two)
    assert kind in ("unknown", "switch")
    assert ("half duplex" in reason) == (kind == "unknown")


def test_equal_links_in_a_ring():
    verdicts = [judge_ring([1.0] * 3, together) for together in (1.0, 2.0, 3.0)]
    assert [kind for kind, *_ in verdicts] == ["switch", "unknown", "shared"]
    assert verdicts[2][1] == pytest.approx(1 / 3)
    assert verdicts[1][2].startswith("in a ring of three the slowest link keeps 50 % of its rate: ")


@pytest.mark.parametrize("times", [{1: 2.0, 1024: 1.0}, {1: 1.0}, {1: 0.0, 1024: 0.0}], ids=["falling", "one", "zero"])
def test_senseless_times_still_give_positive_numbers(times):
    assert min(fit_link(times)) > 0


def test_every_kind_is_measured_as_what_it_says():
    assert tuple(CASES) == UNIT_KINDS
    for kind in UNIT_KINDS:
        work = make_work(kind)
        make, shape = CASES[kind]
        layer = make()
        with torch.inference_mode():
            output = work.compute(work.inputs)
        assert work.inputs.shape == (1, *shape)
        if kind == "linear":
            assert work.flops == 2 * layer.in_features * layer.out_features
            assert work.weight_bytes == 4 * (layer.in_features + 1) * layer.out_features
        else:
            name = "x".join(map(str, layer.kernel_size))
            assert kind == ("depthwise" if layer.groups > 1 else "conv") + name
            assert work.flops == 2 * layer.weight[0].numel() * output.numel()
            assert output.min() >= 0, "a convolution is measured with the activation behind it"


def test_the_estimate_knows_on_what_the_speed_of_a_kind_was_measured():
    for kind, (reduction, channels, pixels) in MEASURED_ON.items():
        make, shape = CASES[kind]
        layer = make()
        with torch.inference_mode():
            output = layer(torch.zeros(1, *shape))
        assert (layer.weight[0].numel(), *output.shape[1:2]) == (reduction, channels)
        assert output[0, 0].numel() == pixels
        model = nn.Sequential(layer, nn.ReLU()).eval()
        unit, speeds = trace(model, shape).graph.units[0], dict.fromkeys(UNIT_KINDS, 100.0)
        fast = Device("a", 1, 1, 0, speeds, 1e29)
        seconds = unit.flops / 1e11
        assert estimated_seconds(fast, unit, Box.whole(unit.out_shape)) == pytest.approx(seconds + CALL_S)


def test_the_curve_for_small_boxes_is_near_what_was_measured():
    """Stored times of a fifth of the boxes to which it was fitted; a speed by kind alone is far from them."""
    stored = json.loads((ROOT / "tests" / "measured_units.json").read_text())
    nominal = Device("a", 1, 1, 0, stored["gflop_per_s"], stored["weight_bytes_per_s"])
    errors, flat = [], []
    for network, units in stored["units"].items():
        model = load_model(network)
        graph = grouped(trace(model, info_of(model).input_shape).layers, "pool", "split")
        known = {unit.name: unit for unit in graph.body}
        for name, bounds, seconds in units:
            unit, box = known[name], Box.of(bounds)
            errors.append(abs(log(estimated_seconds(nominal, unit, box) / seconds)))
            speeds = [(kind_of(layer), layer.flops_of(part.size)) for layer, part in with_kernels(unit, box)]
            if speeds and "linear" not in dict(speeds):
                by_kind = sum(flops / (1e9 * nominal.gflop_per_s[kind]) for kind, flops in speeds)
                flat.append(abs(log(by_kind / seconds)))
    assert len(errors) > 150
    assert exp(median(errors)) < 1.15
    assert exp(sorted(errors)[int(0.8 * len(errors))]) < 1.5
    assert exp(median(flat)) > 1.3


def with_kernels(unit: Unit, box: Box) -> list[tuple[Layer, Box]]:
    """The layers of a unit that have kernels, and their boxes."""
    return [pair for pair in zip(unit.layers, layer_boxes(unit, box), strict=True) if pair[0].has_kernels]


@pytest.mark.alone
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_the_file_is_what_was_measured(ranks, tmp_path):
    path = tmp_path / "new" / "cluster.toml"
    ended = mpiconv(ranks, "probe", "--repeats", 1, "--json", "--out", path)
    assert ended.status == 0, ended.err
    cluster = Cluster.load(path)
    assert Cluster.from_dict(ended.json) == cluster
    assert len(cluster.devices) == ranks
    assert len(cluster.links) == ranks * (ranks - 1)
    assert not cluster.emulated
    assert cluster.medium == "unknown"
    assert cluster.medium_reason.startswith(f"{ranks} ranks" if ranks < 3 else "the ranks are on 1 hosts")
    device = cluster.devices[0]
    assert device.memory_bytes > 1e8
    assert device.weight_bytes_per_s == pytest.approx(2e9 * device.gflop_per_s["linear"], rel=1e-2)


@pytest.mark.alone
def test_a_slow_device_shows_its_pace_and_times_are_undilated(tmp_path):
    """Rank 1 is 8 times slower than its core in a lab that runs at half speed: 4 times slower there."""
    path = tmp_path / "c.toml"
    ended = mpiconv(2, "probe", "--quick", "--pace", "2,8", "--dilation", 2, "--out", path)
    assert ended.status == 0, ended.err
    cluster = Cluster.load(path)
    assert (cluster.emulated, cluster.dilation, [device.pace for device in cluster.devices]) == (True, 2, [2, 8])
    fast, slow = (device.gflop_per_s for device in cluster.devices)
    ratios = sorted(fast[kind] / slow[kind] for kind in UNIT_KINDS)
    assert 2 < ratios[len(ratios) // 2] < 8
    assert "emulated devices, time dilation 2" in ended.out


def test_a_box_is_measured_as_a_run_has_it():
    """Computed from inputs of the size that is needed, with the padding around it, it gives a box of the right size."""
    graph = grouped(trace(load_model("mobilenet_v2"), (3, 64, 64)).layers, "pool", "split")
    found = missing(graph, {}, 2)[::9]
    with torch.inference_mode():
        for case in found:
            work = make_box(case, 2)
            assert work.compute(*work.inputs).shape == (2, *case.box.shape)
    times, steady = UnitProbe(2, 1e9, 3).measure(found[:6])
    assert {(key, point[:4]) for key, points in times.items() for point in points} == {
        (case.unit.shape_key, (*case.box.shape, 2)) for case in found[:6]
    }
    assert all(set(points) <= set(times[key]) for key, points in steady.items())
    assert UnitProbe(2, 0.0, 3).measure(found) == ({}, {}), "no time, nothing measured"


MODEL = ("--model", "digits")


def test_the_units_of_a_network_are_measured_kept_and_forgotten(tmp_path):
    first, again, cache = tmp_path / "1.toml", tmp_path / "2.toml", {"MPICONV_CACHE": str(tmp_path / "cache")}
    ended = mpiconv(2, "probe", *MODEL, "--repeats", 4, "--pace", "1,3", "--out", first, **cache)
    assert ended.status == 0, ended.err
    assert re.search(r"^units +of 5 shapes measured as \d+ boxes, rank 1$", ended.out, re.M)
    cluster = Cluster.load(first)
    model = load_model("digits")
    graph = grouped(trace(model, info_of(model).input_shape).layers, "pool", "split")
    keys = {unit.shape_key for unit in graph.body if not unit.opaque}
    assert [set(device.unit_seconds) for device in cluster.devices] == [keys, keys]
    fast, slow = ({(key, p[:4]): p[4] for key in keys for p in device.unit_seconds[key]} for device in cluster.devices)
    slower = [slow[box] / fast[box] for box in set(fast) & set(slow)]
    assert 1 < median(slower) < 9, "the second device is three times slower"
    kept = {path.name: path.read_text() for path in (tmp_path / "cache" / "wisdom").iterdir()}
    assert len(kept) == 2, "an emulated device's times are others than a real one's"
    assert not any(model in text for text in kept.values() for model in ("digits", "features", "classifier"))

    for path in (tmp_path / "cache" / "wisdom").iterdir():
        path.write_text(path.read_text().replace("}}\n", "}"))  # damaged
    ended = mpiconv(2, "probe", *MODEL, "--repeats", 1, "--pace", "1,3", "--out", again, **cache)
    assert ended.status == 0, ended.err
    assert ended.err.count("ignored, what is needed is measured again") == 2
    assert all(set() < set(device.unit_seconds) <= keys for device in Cluster.load(again).devices), "in half a second"
    ended = mpiconv(2, "probe", "--forget", **cache)
    assert (ended.status, ended.out) == (0, "forgotten  2 files of measured times and plans\n")
    assert not list((tmp_path / "cache" / "wisdom").iterdir())


def test_what_is_kept_is_not_measured_again(tmp_path):
    cache = {"MPICONV_CACHE": str(tmp_path / "cache")}
    assert mpiconv(1, "probe", *MODEL, "--repeats", 4, "--out", tmp_path / "1.toml", **cache).status == 0
    (path,) = (tmp_path / "cache" / "wisdom").iterdir()
    data = json.loads(path.read_text())
    key = next(iter(data["units"]))
    data["units"][key] = [[*size, 123.0] for *size, _ in data["units"][key]]
    path.write_text(json.dumps(data))
    assert mpiconv(1, "probe", *MODEL, "--repeats", 1, "--out", tmp_path / "2.toml", **cache).status == 0
    assert [point[4] for point in Cluster.load(tmp_path / "2.toml").devices[0].unit_seconds[key]].count(123.0) > 0


@pytest.mark.alone
def test_a_prediction_from_measured_times_is_nearer_than_one_without():
    """Of boxes of two thirds of the rows, which are measured in turn with those that are known."""
    graph = grouped(trace(load_model("mobilenet_v2"), (3, 96, 96)).layers, "pool", "split")
    cases = [case for case in missing(graph, {}, 1) if case.box.shape[1] > 2]
    new = [Case(case.unit, odd(case.box), 0) for case in cases if case.level == 0]
    both, _ = UnitProbe(1, 1e9, 7).measure([*(replace(case, level=0) for case in cases), *new])
    sizes = {(case.unit.shape_key, case.box.shape) for case in cases}
    times = {key: [p for p in points if (key, p[:3]) in sizes] for key, points in both.items()}
    works = {kind: make_work(kind) for kind in UNIT_KINDS}
    with torch.inference_mode():
        took = {kind: min(cpu_seconds(work) for _ in range(5)) for kind, work in works.items()}
    speeds = {kind: work.flops / took[kind] / 1e9 for kind, work in works.items()}
    plain = Device("a", 1, 1, 0, speeds, works["linear"].weight_bytes / took["linear"])
    known = replace(plain, unit_seconds=times)
    errors = []
    for device in (plain, known):
        found = []
        for case in new:
            seconds = next(p[4] for p in both[case.unit.shape_key] if p[:3] == case.box.shape)
            found.append(abs(log(unit_seconds(device, case.unit, case.box) / seconds)))
        errors.append(median(found))
    assert errors[1] < errors[0]
    assert exp(errors[1]) < 2


def cpu_seconds(work: Work) -> float:
    """CPU time of a call."""
    begin = thread_time()
    work.compute(work.inputs)
    return thread_time() - begin


def odd(box: Box) -> Box:
    """About two thirds of the rows."""
    return Box(box.channels, Span(0, 2 * len(box.rows) // 3), box.columns)


def test_tables_for_a_person(tmp_path):
    ended = mpiconv(2, "probe", "--repeats", 1, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert ended.status == 0, ended.err
    for word in (*UNIT_KINDS, "alpha in us, beta in MB/s", "medium   unknown: 2 ranks", "cluster  cluster.toml"):
        assert word in ended.out
    assert Cluster.load(tmp_path / "cluster.toml").devices[1].host


@pytest.mark.parametrize(
    ("words", "status", "word"),
    [
        pytest.param(["--out", "/proc/x.toml"], 1, "cannot write to the folder /proc", id="folder"),
        pytest.param(["--out", "/tmp"], 1, "/tmp: it is a folder", id="is-a-folder"),
        pytest.param(["--repeats", "0"], 2, "'0' is not a whole number from 1 up", id="repeats"),
        pytest.param(["--repeats", "2", "--quick"], 2, "not allowed with", id="both"),
        pytest.param(["--pace", "1,2,3"], 2, "--pace has 3 numbers for 2 ranks", id="paces"),
        pytest.param(["--dilation", "nan"], 2, "a pace or dilation of nan", id="dilation"),
    ],
)
def test_what_is_refused_before_anything_is_measured(words, status, word):
    ended = mpiconv(2, "probe", *words, timeout=60)
    assert (ended.status, len(ended.errors)) == (status, 1), ended.err
    assert word in ended.errors[0]
    assert ended.out == ""


@pytest.mark.parametrize(
    ("rank", "place"),
    [
        (1, "mpiconv.probe.speed:SpeedProbe.round"),
        (0, "mpiconv.probe.links:send_timed"),
        (2, "mpiconv.probe.links:answer"),
        (0, "mpiconv.probe.units:UnitProbe.measure"),
        (0, "mpiconv.planner.cluster:Cluster.save"),
    ],
)
def test_a_failure_on_any_rank_ends_all(rank, place, tmp_path):
    words = ["probe", "--repeats", "1", *MODEL, "--out", str(tmp_path / "c.toml")]
    ended = execute(
        ["mpirun", "-n", "3", sys.executable, "-m", "tests.broken_rank", str(rank), place, *words],
        cwd=ROOT,
        MPICONV_CACHE=str(tmp_path / "cache"),
    )
    assert (ended.status, len(ended.errors)) == (1, 1), ended.err
    assert f"rank {rank}: RuntimeError" in ended.errors[0]
    assert not (tmp_path / "c.toml").exists()
