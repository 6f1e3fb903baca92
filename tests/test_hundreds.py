"""Plans for hundreds of ranks: quick, and exactly what working everything out one by one comes to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from mpiconv.errors import ModelError, PlanError
from mpiconv.graph.trace import trace
from mpiconv.partition import SCHEMES, Box, Span, make_plan
from mpiconv.partition.bounds import are_cells, bounds, box_of, overlapping, sizes, union
from mpiconv.partition.box import hull, split, union_size
from mpiconv.partition.exchange import exchange
from mpiconv.partition.schedule import schedule
from mpiconv.planner.cluster import UNIT_KINDS, Cluster, Device, Link
from mpiconv.planner.links import Links
from mpiconv.planner.nominal import nominal_cluster
from mpiconv.planner.simulation import _exchanged, simulate
from tests import slow
from tests.random_nets import SHARES, nets
from tests.test_box import BOXES, cells

SIDES = (Span(0, 2), Span(0, 2), Span(2, 4)), (Span(0, 2), Span(2, 4), Span(1, 4))
QUICK = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@QUICK
@given(st.lists(BOXES, max_size=5))
def test_many_boxes_are_each_a_box(boxes):
    rows = bounds(boxes)
    assert [box_of(row) for row in rows.tolist()] == boxes
    assert sizes(rows).tolist() == [box.size for box in boxes]
    assert union(rows) == union_size(boxes)
    assert overlapping(rows) == (union_size(boxes) < sum(box.size for box in boxes))
    if are_cells(rows):
        assert not overlapping(rows)
        assert len(set().union(*map(cells, boxes))) == sum(box.size for box in boxes)


def test_boxes_that_are_no_cells():
    left, low, right = (Box(c, r, Span(0, 1)) for c, r in zip(*SIDES, strict=True))
    assert are_cells(bounds([left, Box(), low, Box()]))
    assert not are_cells(bounds([left, left]))
    assert not are_cells(bounds([left, low, right])), "right is cut elsewhere, though nothing overlaps"
    assert are_cells(bounds([]))


@QUICK
@given(st.lists(BOXES, min_size=1, max_size=5), st.data())
def test_any_exchange_is_that_of_the_slow_way(owned, data):
    """Of boxes that nobody cut with care: overlapping, missing, in no grid."""
    needed = [data.draw(BOXES) for _ in owned]
    lacking = set().union(*map(cells, needed)) - set().union(*map(cells, owned))
    if lacking:
        with pytest.raises(PlanError, match=r"needs .* of a map, which no rank computes"):
            exchange(owned, needed, "a map")
        return
    same(exchange(owned, needed, "a map"), owned, needed)


@QUICK
@given(SHARES, SHARES, st.integers(1, 9), st.integers(1, 9), st.data())
def test_the_exchange_of_a_grid_is_that_of_the_slow_way(across, down, channels, rows, data):
    """Of the cells of a grid, in any order, to any need: what is not cut piece by piece."""
    owned = [Box(c, r, Span(0, 2)) for c in split(channels, across) for r in split(rows, down)]
    owned = data.draw(st.permutations(owned))[:8]
    assume(are_cells(bounds(owned)))
    needed = [hull(data.draw(st.lists(st.sampled_from(owned), max_size=3))) for _ in owned]
    assume(not set().union(*map(cells, needed)) - set().union(*map(cells, owned)))
    same(exchange(owned, needed, "a map"), owned, needed)


def same(spread, owned, needed) -> None:
    """Whether all that an exchange says of itself is what its transfers say."""
    moved, ranks = slow.transfers(owned, needed), range(len(owned))
    assert [(t.source, t.target, t.box) for t in spread.transfers] == moved
    assert spread.pattern == slow.pattern(owned, needed, moved)
    assert spread.members == tuple(sorted({end for source, target, _ in moved for end in (source, target)}))
    assert [spread.sent(r) for r in ranks] == [sum(b.size for s, _, b in moved if s == r) for r in ranks]
    assert [spread.received(r) for r in ranks] == [sum(b.size for _, t, b in moved if t == r) for r in ranks]
    assert [spread.multicast(r) for r in ranks] == [union_size(b for s, _, b in moved if s == r) for r in ranks]
    blocks = {(s, b): sorted(t for u, t, c in moved if (u, c) == (s, b)) for s, _, b in moved}
    found = sorted((each.source, each.size, each.targets.tolist()) for each in spread.blocks)
    assert found == sorted((source, box.size, targets) for (source, box), targets in blocks.items())
    half = [Box(box.channels, box.rows, Span(0, 1) & box.columns) for box in owned]
    parts = [(s, t, b & half[s]) for s, t, b in moved if b & half[s]]
    assert [(t.source, t.target, t.box) for t in spread.part(half).transfers] == parts


@QUICK
@given(nets(), st.sampled_from(sorted(SCHEMES)), SHARES, st.sampled_from(["switch", "shared"]), st.data())
def test_messages_take_what_they_take_one_by_one(net, scheme, shares, medium, data):
    """To the last bit: for unequal links and devices, several of a host, ranks that are ready at any time."""
    model, picture = net
    try:
        plan = make_plan(model, (1, *picture), scheme, len(shares), shares)
    except ModelError:
        assume(False)
    ranks = range(plan.ranks)
    numbers = st.sampled_from([1e-3, 0.7, 1.0, 3.0])
    hosts, speeds = st.sampled_from("abcdef"), dict.fromkeys(UNIT_KINDS, 1.0)
    devices = [Device(data.draw(hosts), 1, 1, 0, speeds, 1e6) for _ in ranks]
    links = [Link(a, b, 1e-3 * data.draw(numbers), 1e4 * data.draw(numbers)) for a in ranks for b in ranks if a != b]
    on = Cluster(tuple(devices), tuple(links), medium)
    quick, wires = Links(on), slow.Wires(on)
    for spread in plan.exchanges.values():
        ready = np.array([data.draw(numbers) for _ in ranks])
        found, wanted = _exchanged(spread, ready, quick, 2), slow.exchanged(spread, ready, wires, 2)
        assert [each.tolist() for each in found] == [each.tolist() for each in wanted]


def test_hundreds_of_devices_are_simulated():
    """147 000 messages of a map: all ends of links are busy all the time."""
    net = nn.Sequential(nn.Conv2d(4, 384, 1), nn.Conv2d(384, 384, 1)).eval()
    plan = make_plan(trace(net, (4, 2, 2)).layers, (1, 4, 2, 2), "kpm", 384)
    spread = plan.exchanges[0]
    assert len(spread.table) == 384 * 383
    cluster = nominal_cluster(["pi4"] * 384, 1e6, 0.0)
    arrived, _ = _exchanged(spread, np.zeros(384), Links(cluster), 1)
    assert arrived == pytest.approx(np.full(384, 383 * 16 / 1e6))
    assert simulate(schedule(plan, lambda _: "messages"), cluster).latency_s > 383 * 16 / 1e6
