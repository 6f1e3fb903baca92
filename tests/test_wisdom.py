"""Measured times of units: what they are kept by, the file, and what is read between them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mpiconv.errors import MpiconvError
from mpiconv.graph.form import Graph, Unit
from mpiconv.graph.grouping import grouped
from mpiconv.graph.trace import trace
from mpiconv.models import load_model
from mpiconv.partition import Box, Span
from mpiconv.planner import wisdom
from mpiconv.planner.cluster import UNIT_KINDS, Device
from mpiconv.planner.speed import estimated_seconds, unit_seconds
from mpiconv.planner.unit_times import UnitTimes, whole_blocks
from mpiconv.planner.wisdom import Basis

HERE = Basis("a processor", 1, "2.13.0")


def network(*layers: nn.Module, shape: tuple[int, int, int] = (16, 12, 12)) -> Graph:
    return grouped(trace(nn.Sequential(*layers).eval(), shape).layers, "pool", "split")


def only(*layers: nn.Module, shape: tuple[int, int, int] = (16, 12, 12)) -> Unit:
    return network(*layers, shape=shape).units[0]


def conv(**changes: object) -> nn.Conv2d:
    return nn.Conv2d(**{"in_channels": 16, "out_channels": 32, "kernel_size": 3, "padding": 1} | changes)


def test_units_of_the_same_shape_have_one_key_whatever_they_are_called():
    net = network(conv(in_channels=16, out_channels=16), nn.ReLU(), conv(in_channels=16, out_channels=16), nn.ReLU())
    one, two = net.body
    assert one.name != two.name
    assert one.shape_key == two.shape_key
    assert Graph.from_dict(json.loads(net.to_json())).units[0].shape_key == one.shape_key
    assert set(one.shape_key) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_")


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(only(conv(kernel_size=5, padding=2)), id="kernel"),
        pytest.param(only(conv(stride=2)), id="stride"),
        pytest.param(only(conv(padding=0)), id="padding"),
        pytest.param(only(conv(dilation=2, padding=2)), id="dilation"),
        pytest.param(only(conv(groups=4)), id="groups"),
        pytest.param(only(conv(out_channels=48)), id="channels"),
        pytest.param(only(conv(bias=False)), id="bias"),
        pytest.param(only(conv(), nn.ReLU()), id="activation"),
        pytest.param(only(conv(), nn.ReLU6()), id="another-activation"),
        pytest.param(only(conv(), nn.MaxPool2d(2)), id="pooling"),
        pytest.param(only(conv(), shape=(16, 12, 14)), id="map"),
    ],
)
def test_whatever_changes_the_time_changes_the_key(other):
    assert other.shape_key != only(conv()).shape_key


def test_what_is_missing_is_asked_for_once_whole_units_first():
    net = grouped(trace(load_model("resnet18"), (3, 64, 64)).layers, "pool", "split")
    cases = wisdom.missing(net, {}, 1)
    shapes = {unit.shape_key for unit in net.body}
    assert len(shapes) < len(net.body)
    assert {case.unit.shape_key for case in cases[: len(shapes)]} == shapes
    sizes = [(case.unit.shape_key, case.box.shape) for case in cases]
    assert len(set(sizes)) == len(sizes)
    times = {key: ((*size, 1, 1e-3),) for key, size in sizes[:5]}
    assert len(wisdom.missing(net, times, 1)) == len(cases) - 5
    assert len(wisdom.missing(net, times, 2)) == len(cases)


def test_the_boxes_of_a_unit():
    sizes = {case.box.shape for case in wisdom.cases_of(only(conv(), shape=(16, 12, 12)))}
    halves = {(16, 12, 12), (32, 6, 12), (8, 12, 12), (32, 3, 12), (4, 12, 12), (32, 2, 12)}
    assert sizes == {(32, 12, 12)} | halves
    vector = wisdom.cases_of(network(nn.Flatten(), nn.Linear(16, 9), shape=(16, 1, 1)).units[0])
    assert {case.box.shape for case in vector} == {(9, 1, 1), (5, 1, 1), (3, 1, 1), (2, 1, 1)}


def test_of_a_large_layer_a_part_is_measured():
    large = network(nn.Flatten(), nn.Linear(2**13, 2**13, bias=False), shape=(2**13, 1, 1)).units[0]
    cases = wisdom.cases_of(large)
    assert max(case.box.shape for case in cases) == (2**11, 1, 1)
    assert [case.level for case in cases if case.box.shape == (2**11, 1, 1)] == [0]


KEPT = {"unit_a": ((16, 4, 4, 1, 0.5), (32, 4, 4, 1, 0.9)), "unit_b": ((8, 1, 1, 2, 1e-6),)}


def test_kept_and_found_again(tmp_path):
    assert wisdom.load(tmp_path, HERE) == ({}, "")
    assert wisdom.save(tmp_path, HERE, KEPT) == ""
    assert wisdom.save(tmp_path, HERE, {"unit_a": ((16, 4, 4, 1, 0.4),), "unit_c": ((1, 1, 1, 1, 2.0),)}) == ""
    times, note = wisdom.load(tmp_path, HERE)
    assert note == ""
    assert times["unit_a"] == ((16, 4, 4, 1, 0.4), (32, 4, 4, 1, 0.9))
    assert set(times) == {"unit_a", "unit_b", "unit_c"}
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]
    assert wisdom.forget(tmp_path) == 1
    assert wisdom.load(tmp_path, HERE) == ({}, "")


@pytest.mark.parametrize(
    "other",
    [{"torch": "2.12.0"}, {"threads": 2}, {"processor": "another"}, {"compute": "eager"}, {"caches": "warm"}],
    ids=lambda other: next(iter(other)),
)
def test_what_was_measured_with_something_else_is_not_used(other, tmp_path):
    wisdom.save(tmp_path, replace(HERE, **other), KEPT)
    assert wisdom.load(tmp_path, HERE) == ({}, "")


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        pytest.param(lambda text: text[:-9], "is not JSON", id="cut-off"),
        pytest.param(lambda _: "[1, 2]", "mpiconv_wisdom is None", id="a-list"),
        pytest.param(
            lambda text: text.replace('wisdom": 1', 'wisdom": 2'), "mpiconv_wisdom is 2, 1 is wanted", id="newer"
        ),
        pytest.param(lambda text: text.replace("2.13.0", "2.12.0"), "something else than its name says", id="renamed"),
        pytest.param(lambda text: text.replace("0.5", "-1"), "unit_a has [16, 4, 4, 1, -1] in it", id="negative"),
        pytest.param(lambda text: text.replace("0.5", "NaN"), "unit_a has [16, 4, 4, 1, nan] in it", id="nan"),
        pytest.param(lambda text: text.replace("0.5", "true"), "unit_a has [16, 4, 4, 1, True] in it", id="true"),
        pytest.param(lambda text: text.replace("16, ", ""), "unit_a has [4, 4, 1, 0.5] in it", id="a-number-less"),
        pytest.param(lambda text: text.replace("16,", "1.5,"), "unit_a has [1.5, 4,", id="a-broken-size"),
    ],
)
def test_a_file_of_no_use_is_ignored_and_said_once(spoil, word, tmp_path):
    wisdom.save(tmp_path, HERE, KEPT)
    path = HERE.path(tmp_path)
    path.write_text(spoil(path.read_text()))
    times, note = wisdom.load(tmp_path, HERE)
    assert times == {}
    assert word in note
    assert str(path) in note
    assert "\n" not in note
    wisdom.save(tmp_path, HERE, KEPT)
    assert wisdom.load(tmp_path, HERE) == (KEPT, "")


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    assert "are not kept: " in wisdom.save(tmp_path / "file" / "folder", HERE, KEPT)
    with pytest.raises(MpiconvError, match="a table of measured times"):
        wisdom.times_of([1])


WHOLE = (64, 32, 20)


@st.composite
def measured(draw: st.DrawFn) -> list[tuple[int, int, int, int, float]]:
    """The whole of a unit, and some parts that take less the smaller they are."""
    channels = [*sorted(draw(st.sets(st.sampled_from([16, 32, 48]), min_size=1))), WHOLE[0]]
    rows = [*sorted(draw(st.sets(st.integers(1, WHOLE[1] - 1), min_size=1))), WHOLE[1]]
    seconds = draw(st.floats(1e-6, 1e3))
    points = {}
    for axis, sizes in ((0, channels), (1, rows)):
        parts = [*sorted(draw(st.lists(st.floats(0.01, 1), min_size=len(sizes) - 1, max_size=len(sizes) - 1))), 1.0]
        for size, part in zip(sizes, parts, strict=True):
            box = [*WHOLE]
            box[axis] = size
            points[(*box, 1)] = seconds * part
    return [(*size, each) for size, each in points.items()]


@given(measured(), st.data())
def test_between_measured_sizes_times_rise_and_stay_within_bounds(points, data):
    times = UnitTimes(points)
    for point in points:
        assert times.seconds(point[:3], 1) == point[4]
    whole = times.seconds(WHOLE, 1)
    channels = sorted(data.draw(st.lists(st.integers(1, 64), min_size=2, max_size=2)))
    rows = sorted(data.draw(st.lists(st.integers(1, 32), min_size=2, max_size=2)))
    columns = sorted(data.draw(st.lists(st.integers(1, 20), min_size=2, max_size=2)))
    small, large = (times.seconds((channels[i], rows[i], columns[i]), 1) for i in (0, 1))
    assert 0 < small <= large * (1 + 1e-9)
    assert large <= whole * (1 + 1e-9)
    fastest = min(point[4] / (whole * point[0] / 64 * point[1] / 32) for point in points)
    part = whole_blocks(channels[0]) / 64 * rows[0] / 32 * columns[0] / 20
    assert small >= min(fastest, 1) ** 2 * part * whole * (1 - 1e-9), "never faster than its part at the best rate"


def test_a_line_between_two_sizes_and_beyond():
    times = UnitTimes([(32, 8, 8, 1, 1.0), (32, 4, 8, 1, 0.6), (32, 2, 8, 1, 0.4), (16, 8, 8, 1, 0.8)])
    assert times.seconds((32, 6, 8), 1) == pytest.approx(0.8)
    assert times.seconds((32, 1, 8), 1) == pytest.approx(0.3), "along the line"
    assert times.seconds((32, 4, 4), 1) == pytest.approx(0.4), "columns count as rows"
    assert times.seconds((9, 8, 8), 1) == pytest.approx(0.8), "as the next whole block"
    assert times.seconds((16, 4, 8), 1) == pytest.approx(0.8 * 0.6), "cut twice"
    assert times.seconds((64, 8, 8), 1) == pytest.approx(2.0), "larger than measured"
    assert times.seconds((32, 8, 8), 2) is None


def device(**changes: object) -> Device:
    usual = {"host": "a", "cores": 1, "threads": 1, "memory_bytes": 0, "weight_bytes_per_s": 1e10}
    return Device(**usual | {"gflop_per_s": dict.fromkeys(UNIT_KINDS, 100.0)} | changes)


def test_a_device_takes_what_was_measured_and_else_what_is_estimated():
    unit, other = only(conv()), only(conv(stride=2))
    whole, half = Box.whole(unit.out_shape), Box(Span(0, 32), Span(0, 6), Span(0, 12))
    plain = device()
    own = device(unit_seconds={unit.shape_key: [(32, 12, 12, 1, 0.25)]})
    assert unit_seconds(own, unit, whole) == 0.25
    assert unit_seconds(own, unit, Box()) == 0
    ratio = estimated_seconds(plain, unit, half) / estimated_seconds(plain, unit, whole)
    assert unit_seconds(own, unit, half) == pytest.approx(0.25 * ratio)
    ratio = estimated_seconds(plain, unit, whole, 3) / estimated_seconds(plain, unit, whole)
    assert unit_seconds(own, unit, whole, 3) == pytest.approx(0.25 * ratio)
    box = Box.whole(other.out_shape)
    assert unit_seconds(own, other, box) == unit_seconds(plain, other, box) == estimated_seconds(plain, other, box)


def test_the_layers_of_a_head_are_looked_up_as_units_of_their_own():
    net = trace(nn.Sequential(conv(), nn.Flatten(), nn.Linear(32 * 144, 9), nn.ReLU(), nn.Linear(9, 4)), (16, 12, 12))
    split, whole = (grouped(net.layers, "pool", head) for head in ("split", "root"))
    lines = split.body[1:]
    assert len(lines) == 2
    own = device(unit_seconds={unit.shape_key: [(*unit.out_shape, 1, 0.5)] for unit in lines})
    head = whole.units[-1]
    assert len(head.layers) == 4
    assert unit_seconds(own, head, Box.whole(head.out_shape)) == pytest.approx(1.0, abs=1e-2)
