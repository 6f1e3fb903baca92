"""Frames on clusters, simulated: against times worked out by hand, and what has to hold for any plan."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from mpiconv.errors import ModelError
from mpiconv.graph.trace import trace
from mpiconv.partition import SCHEMES, Box, Span, make_plan
from mpiconv.partition.plan import at_work
from mpiconv.partition.schedule import schedule
from mpiconv.planner.candidates import candidates
from mpiconv.planner.cluster import UNIT_KINDS, Cluster, Device, Link
from mpiconv.planner.estimating import estimate
from mpiconv.planner.memory import PROCESS_BYTES
from mpiconv.planner.simulation import Links, _exchanged, simulate
from mpiconv.planner.speed import CALL_S, kind_of, unit_seconds
from mpiconv.planner.ways import speeds_of
from tests.random_nets import SHARES, nets


def cluster(*speeds: float, rate: float = 1e6, alpha: float = 1e-3, medium: str = "switch", hosts: str = "") -> Cluster:
    """Devices of these GFLOP/s in all kinds, with equal links; ``hosts`` has a letter for each."""
    names = hosts or "".join(chr(97 + i) for i in range(len(speeds)))
    kinds = [dict.fromkeys(UNIT_KINDS, speed) for speed in speeds]
    devices = [Device(name, 1, 1, 0, speed, 1e29) for name, speed in zip(names, kinds, strict=True)]
    pairs = [(a, b) for a in range(len(devices)) for b in range(len(devices)) if a != b]
    return Cluster(tuple(devices), tuple(Link(a, b, alpha, rate) for a, b in pairs), medium)


def two_convolutions() -> nn.Module:
    """Maps of 8 x 10 x 10 throughout."""
    return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)).eval()


def unit_s(channels: int) -> float:
    """S that a device of 100 GFLOP/s takes for so many of a unit's channels."""
    unit = trace(two_convolutions(), (8, 10, 10)).graph.units[0]
    return unit_seconds(cluster(100.0).devices[0], unit, Box(Span(0, channels), Span(0, 10), Span(0, 10)))


MAP_BYTES = 4 * 8 * 100


def test_one_device_computes_one_unit_after_the_other():
    plan = make_plan(two_convolutions(), (1, 8, 10, 10))
    found = estimate(plan, cluster(100.0))
    assert found.latency_s == pytest.approx(2 * unit_s(8) + CALL_S)
    assert found.stamps_s[0, 1, 0] == found.stamps_s[0, 0, 2]


def test_kernels_on_two_devices():
    """The picture goes out, each computes half, the halves cross, each computes half, one half comes home."""
    plan = make_plan(two_convolutions(), (1, 8, 10, 10), "kpm", 2)
    found = simulate(schedule(plan, lambda _: "messages"), cluster(100.0, 100.0))
    half = unit_s(4)
    move = 1e-3 + MAP_BYTES / 2 / 1e6
    there = 1e-3 + MAP_BYTES / 1e6
    assert found.stamps_s[1, 0, 1] == pytest.approx(there)
    assert found.stamps_s[0, 0, 1] == pytest.approx(0, abs=1e-12)
    assert found.stamps_s[0, 1, 1] == pytest.approx(there + half + move)
    crossed = MAP_BYTES / 1e6 + move  # rank 0's half follows the picture on its link
    assert found.stamps_s[1, 1, 1] == pytest.approx(max(there + half, crossed))
    assert found.latency_s == pytest.approx(max(there + half, crossed) + half + move + CALL_S)


@pytest.mark.parametrize(("medium", "parts"), [("switch", 3), ("shared", 12)])
def test_on_a_shared_medium_one_message_follows_the_other(medium, parts):
    """Four ranks have a quarter each and need all: each sends three quarters at once, or twelve go one by one."""
    plan = make_plan(two_convolutions(), (1, 8, 10, 10), "kpm", 4)
    links = Links(cluster(*[100.0] * 4, alpha=0, medium=medium))
    arrived, sent = _exchanged(plan.exchanges[0], np.zeros(4), links, 1)
    assert arrived.max() == pytest.approx(parts * MAP_BYTES / 4 / 1e6)
    assert (sent == 0).all(), "small messages leave at once"


def test_a_halo_waits_for_the_neighbour_alone():
    """The last of four devices is slow: the second unit of the first two does not wait for it."""
    net = nn.Sequential(*[nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)]).eval()
    plan = make_plan(net, (1, 8, 40, 10), "wpm", 4)
    even, lame = (estimate(plan, cluster(100.0, 100.0, 100.0, last, rate=1e9, alpha=1e-6)) for last in (100.0, 0.1))
    assert lame.stamps_s[:2, 1, 2] == pytest.approx(even.stamps_s[:2, 1, 2])
    assert lame.stamps_s[2, 1, 1] > 10 * even.stamps_s[2, 1, 1]
    assert lame.latency_s > 10 * even.latency_s


def test_what_travels_while_the_rest_is_computed_is_not_waited_for():
    net = nn.Sequential(nn.Conv2d(16, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)).eval()
    plan = make_plan(net, (1, 16, 32, 32), "kpm", 2)
    on = cluster(0.5, 0.5, rate=2e6)
    apart = simulate(schedule(plan, lambda _: "messages"), on)
    together = simulate(schedule(plan, lambda _: "messages", overlap=lambda _: True), on)
    assert together.latency_s < apart.latency_s - 0.3 * 4 * 32 * 1024 / 2e6


def test_ranks_of_one_host_need_no_link():
    plan = make_plan(two_convolutions(), (1, 8, 10, 10), "kpm", 2)
    apart, beside = (estimate(plan, cluster(100.0, 100.0, rate=1e3, hosts=hosts)) for hosts in ("ab", "aa"))
    assert beside.latency_s < 1e-3 < apart.latency_s


def test_a_cluster_of_another_size_is_refused():
    plan = make_plan(two_convolutions(), (1, 8, 10, 10), "kpm", 2)
    with pytest.raises(ValueError, match="a plan for 2 ranks on a cluster of 3 devices"):
        estimate(plan, cluster(1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Conv2d(4, 4, 1), "conv1x1"),
        (nn.Conv2d(4, 4, 2), "conv3x3"),
        (nn.Conv2d(4, 4, (1, 7)), "conv7x7"),
        (nn.Conv2d(4, 4, 9), "conv11x11"),
        (nn.Conv2d(4, 4, 3, groups=4), "depthwise3x3"),
        (nn.Conv2d(4, 4, 3, groups=2), "conv3x3"),
        (nn.ConvTranspose2d(4, 4, 4), "conv5x5"),
    ],
)
def test_kinds(layer, kind):
    assert kind_of(trace(nn.Sequential(layer), (4, 12, 12)).graph.units[0].layers[0]) == kind


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(nets(), st.sampled_from(sorted(SCHEMES)), SHARES, st.sampled_from(["switch", "shared"]), st.booleans())
def test_any_plan(net, scheme, shares, medium, overlapped):
    """Time does not go back, the root takes at least what it computes, faster devices and links never hurt."""
    model, picture = net
    try:
        plan = make_plan(model, (1, *picture), scheme, len(shares), shares)
    except ModelError:
        assume(False)
    carried = schedule(plan, lambda _: "messages", overlap=lambda _: overlapped)
    count = len(shares)
    each = [cluster(*[speed] * count, rate=rate, medium=medium) for speed, rate in ((1.0, 1e5), (2.0, 1e7))]
    slow, fast = (simulate(carried, one) for one in each)
    stamps = slow.stamps_s.reshape(count, -1)
    assert (np.diff(stamps, axis=1) >= 0).all()
    assert fast.latency_s <= slow.latency_s
    boxes = [row[0] for row in plan.owned]
    alone = sum(unit_seconds(each[0].devices[0], u, box) for u, box in zip(plan.graph.units, boxes, strict=True))
    assert slow.latency_s >= alone * (1 - 1e-9)


def test_the_candidates_of_a_slow_link_and_of_a_fast_one():
    """VGG11 is not split over 0.1 MB/s, and is over 1 GB/s; where one device is much faster it does all."""
    graph = trace(nn.Sequential(*[nn.Conv2d(32, 32, 3, padding=1) for _ in range(4)]).eval(), (32, 64, 64)).layers
    slow, quick = (candidates(graph, cluster(1.0, 1.0, rate=rate, alpha=1e-5)) for rate in (1e5, 1e9))
    assert slow[0].name == "all on a"
    assert at_work(quick[0].plan) == [0, 1]
    assert quick[0].latency_s < 0.6 * slow[0].latency_s
    uneven = candidates(graph, cluster(0.1, 10.0, rate=1e7))
    assert uneven[0].name == "all on b"
    assert uneven[0].bytes_moved == 2 * 4 * 32 * 64 * 64
    assert [c.latency_s for c in uneven] == sorted(c.latency_s for c in uneven)
    assert speeds_of(graph, cluster(1.0, 3.0))[1] == pytest.approx(3 * speeds_of(graph, cluster(1.0, 3.0))[0])


def test_weights_that_find_no_room():
    graph = trace(nn.Sequential(*[nn.Conv2d(512, 512, 3) for _ in range(2)]).eval(), (512, 9, 9)).layers
    whole = 4 * 2 * (512 * 512 * 9 + 512)
    big, small = (
        Device(name, 1, 1, PROCESS_BYTES + room, dict.fromkeys(UNIT_KINDS, 1.0), 1e29)
        for name, room in (("a", 10 * whole), ("b", int(1.5 * whole)))
    )
    found = candidates(graph, Cluster((big, small), cluster(1.0, 1.0).links))
    assert any(at_work(c.plan) == [0, 1] for c in found)
    assert all(c.weight_bytes[1] <= 0.75 * whole for c in found)
