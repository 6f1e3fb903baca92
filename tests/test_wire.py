"""Number formats of maps in messages: what they take, as the plan says and as it is counted, and how exact they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from mpi4py import MPI

import mpiconv
from mpiconv.errors import ModelError, PlanError
from mpiconv.partition import Plan, make_plan
from mpiconv.partition.plan import same_work
from mpiconv.partition.plan_files import PLAN_VERSION
from mpiconv.partition.schedule import MESSAGES, schedule
from mpiconv.partition.wire import FLOAT32, WIRES, Payload, Wire
from mpiconv.runtime import choices
from mpiconv.runtime.settings import Settings
from tests.random_nets import SHARES, nets
from tests.simulated import assert_close

COMM = MPI.COMM_WORLD
DIGITS = (2, 1, 32, 32)
FORMATS = st.sampled_from(sorted(WIRES.values(), key=lambda wire: wire.name))


def test_the_command_line_knows_all_formats():
    assert tuple(WIRES) == choices.WIRES


@given(FORMATS, st.integers(1, 4), st.integers(1, 70), st.integers(1, 9), st.integers(1, 9))
def test_a_piece_takes_its_numbers_and_scales_and_up_to_three_bytes(wire: Wire, pictures, channels, rows, columns):
    size = wire.size((pictures, channels, rows, columns))
    wanted = pictures * channels * (wire.item_bytes * rows * columns + wire.scale_bytes)
    assert size % 4 == 0
    assert wanted <= size < wanted + 4
    assert wire.sizes(pictures, np.array([channels]), np.array([rows * columns])).tolist() == [size]


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(nets(), st.sampled_from(["kpm", "wpm", "grid", "fused", "tiles"]), SHARES, FORMATS, st.booleans())
def test_any_plan_in_any_format(net, scheme, shares, wire, overlapped):
    """What is sent is received; float32 takes 4 B a number; memory of one host carries float32 whatever the format."""
    model, picture = net
    try:
        plan = make_plan(model, (2, *picture), scheme, len(shares), shares, wire=wire.name)
    except ModelError:
        assume(False)
    ranks = range(plan.ranks)
    by_messages = schedule(plan, lambda _: MESSAGES, overlap=lambda _: overlapped)
    in_memory = schedule(plan, lambda _: "shared")
    for source, spread in plan.exchanges.items():
        payload = Payload(spread, wire, 2)
        assert payload.sent.sum() == payload.received.sum() == payload.each.sum()
        assert [in_memory.bytes_sent(source, r) for r in ranks] == [8 * spread.sent(r) for r in ranks]
        parts = by_messages.moves[source].parts
        pieces = [wire.size((2, *t.box.shape)) for part in parts for t in part.transfers]
        assert sum(by_messages.bytes_received(source, r) for r in ranks) == sum(pieces)
        for rank in ranks:
            assert payload.multicast(rank) <= payload.sent[rank]
            if wire is FLOAT32:
                assert payload.multicast(rank) == 8 * spread.multicast(rank)
    assert Plan.from_dict(plan.to_dict()) == plan


def test_a_plan_keeps_its_format(tmp_path):
    plan = make_plan(mpiconv.load_model("digits"), DIGITS, "kpm", 2, wire="int8")
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").wire == "int8"
    assert "wire int8" in str(plan).splitlines()[0]
    exact = replace(plan, wire="float32")
    assert "wire" not in exact.to_dict(), "read by whoever knows of no formats"
    assert exact.to_dict()["mpiconv_plan"] == PLAN_VERSION
    assert not same_work(plan, exact)
    with pytest.raises(PlanError, match="the wire format 'float8': float32, float16, bfloat16, int8 are known"):
        Plan.from_dict({**plan.to_dict(), "wire": "float8"})


@pytest.mark.parallel([2, 3])
@pytest.mark.parametrize("overlap", ["on", "off"])
def test_bytes_are_counted_as_predicted(overlap):
    """For every format and scheme, changed in the midst of a stream, whose answers are as exact as the format is."""
    root, model = COMM.rank == 0, mpiconv.load_model("digits")
    images = torch.rand(DIGITS, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = model(images)
    schemes = ("kpm", "wpm", "grid", "tiles")
    plans = [make_plan(model, DIGITS, scheme, COMM.size, wire=name) for scheme in schemes for name in WIRES]
    plan, *others = plans
    how = Settings(same_host="messages", overlap=overlap)
    with mpiconv.distribute(model if root else None, plan if root else None, COMM, how) as net:
        for number, output in enumerate(net.stream([images] * 2 * len(plans) if root else None)):
            if number % 2 == 0:
                continue
            record, carried = net.record, schedule(plan, lambda _: MESSAGES, overlap=lambda _: overlap == "on")
            units = range(len(plan.graph.units))
            for counted, predicted in (
                (record.bytes_sent, carried.bytes_sent),
                (record.bytes_received, carried.bytes_received),
            ):
                found = [sum(predicted(source, COMM.rank) for source in plan.incoming(unit)) for unit in units]
                assert counted.ravel().tolist() == found, (plan.scheme, plan.wire)
            if overlap == "off":
                found = [plan.multicast_bytes(unit, COMM.rank) for unit in units]
                assert record.multicast_bytes.ravel().tolist() == found, (plan.scheme, plan.wire)
            if root:
                assert_close(output, wanted, 1e-5 + WIRES[plan.wire].tolerance)
                exact = (output - wanted).abs().max() <= 1e-5 * wanted.abs().max()
                assert exact or plan.wire != "float32"
            if others:
                plan = others.pop(0)
                net.adopt(plan if root else None)
    assert not others


@pytest.mark.parallel([2])
def test_ranks_that_share_memory_exchange_float32():
    root, model = COMM.rank == 0, mpiconv.load_model("digits")
    images = torch.rand(DIGITS, generator=torch.Generator().manual_seed(1))
    plan = make_plan(model, DIGITS, "kpm", 2, wire="int8")
    with mpiconv.distribute(model if root else None, plan if root else None, COMM) as net:
        output = net(images if root else None)
        if net.sharing:
            units = range(len(plan.graph.units))
            exact = replace(plan, wire="float32")
            assert net.record.bytes_sent.ravel().tolist() == [exact.bytes_sent(unit, COMM.rank) for unit in units]
    if root and net.sharing:
        with torch.inference_mode():
            assert_close(output, model(images))
