"""Several plans by which batches go in turn: every answer as without them, in order, and all counts are right."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, note, settings
from hypothesis import strategies as st
from mpi4py import MPI
from torch import nn

import mpiconv
from mpiconv.errors import ModelError, MpiconvError, PlanError, UsageError
from mpiconv.graph.trace import trace
from mpiconv.partition import SCHEMES, Turns, make_plan, make_turns
from mpiconv.partition.holdings import bytes_moved, holdings
from mpiconv.partition.plan import at_work, plans_of, same_work
from mpiconv.partition.schedule import schedule
from mpiconv.partition.turns import any_plan_of, in_turn, load_any
from mpiconv.planner.candidates import Candidate, candidates
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.memory import peak_bytes
from mpiconv.planner.objective import OBJECTIVES
from mpiconv.planner.turns import TakingTurns, taking_turns
from mpiconv.runtime.settings import Settings
from tests.random_nets import nets
from tests.simulated import assert_close
from tests.test_simulation import cluster

COMM = MPI.COMM_WORLD
SHAPE = (1, 3, 16, 16)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(1152, 4)).eval()


def whole(ranks: int = 2) -> Turns:
    return make_turns(small(), SHAPE, ranks)


def drawn_turns(data: st.DataObject, graph, shape: tuple[int, ...], ranks: int) -> Turns:
    """All on each rank, or some plans of any scheme and shares beside each other."""
    if data.draw(st.booleans()):
        return make_turns(graph, shape, ranks)
    gather, head = data.draw(st.sampled_from(["pool", "conv"])), data.draw(st.sampled_from(["root", "split"]))
    plans = []
    for _ in range(data.draw(st.integers(1, 3))):
        shares = [data.draw(st.integers(0, 3)) for _ in range(ranks)]
        scheme = data.draw(st.sampled_from(sorted(SCHEMES)))
        plans.append(make_plan(graph, shape, scheme, ranks, shares if any(shares) else None, gather, head))
    return Turns(tuple(plans))


def test_whole_pictures_go_to_every_rank():
    turns = make_turns(small(), (2, 3, 16, 16), 3)
    assert [at_work(plan) for plan in turns.plans] == [[0], [1], [2]]
    assert turns.input_shape == (2, 3, 16, 16)
    assert turns.shares == pytest.approx((1 / 3,) * 3)
    assert (turns.scheme, turns.head, turns.ranks) == ("turns", "mixed", 3)
    assert str(turns).splitlines()[1:] == [f"turn {rank}: all on rank {rank}" for rank in range(3)]
    assert in_turn(turns.plans) == turns
    assert in_turn(turns.plans[:1]) is turns.plans[0]


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(nets(), st.integers(2, 4), st.data())
def test_holdings_are_what_any_of_the_plans_needs(net, ranks, data):
    model, picture = net
    try:
        graph = trace(model, picture).layers
    except ModelError:
        assume(False)
    turns = drawn_turns(data, graph, (1, *picture), ranks)
    together = holdings(turns)
    for plan in turns.plans:
        for param, spans in holdings(plan).items():
            for rank, span in enumerate(spans):
                assert span & together[param][rank] == span
        assert bytes_moved(together, holdings(plan)) == 0, "no weights travel from all of them to one"
    again = any_plan_of(json.loads(turns.to_json()))
    assert again == turns
    assert same_work(again, turns)
    assert same_work(turns, turns.plans[0]) == (len(turns.plans) == 1)


def test_a_file_is_read_as_what_it_holds(tmp_path):
    turns, path, other = whole(), tmp_path / "turns.json", tmp_path / "plan.json"
    turns.save(path)
    turns.plans[1].save(other)
    assert load_any(path) == Turns.load(path) == turns
    assert load_any(other) == turns.plans[1]
    with pytest.raises(PlanError, match=rf"{path}: several plans in turn, which mpiconv.Turns.load reads"):
        mpiconv.Plan.load(path)
    with pytest.raises(PlanError, match=f"{other}: not several plans in turn"):
        Turns.load(other)


@pytest.mark.parametrize("turns", [[], {}, None, 3, [1], [{}], [{"boxes": 1}], ["x"]])
def test_broken_files(turns, tmp_path):
    path = tmp_path / "turns.json"
    path.write_text(json.dumps(whole().to_dict() | {"turns": turns}))
    with pytest.raises(PlanError, match=re.escape(str(path))):
        load_any(path)


@pytest.mark.parametrize(
    ("plans", "words"),
    [
        ((), "no plans"),
        ((make_plan(small(), SHAPE, "kpm", 2), make_plan(small(), SHAPE, "kpm", 3)), "plan 1 is for 3 ranks, plan 0"),
        (
            (make_plan(small(), SHAPE, "kpm", 2), make_plan(small(), (4, *SHAPE[1:]), "kpm", 2)),
            "plan 1 is for 4 pictures a batch, plan 0 for 1",
        ),
        (
            (make_plan(small(), SHAPE, "kpm", 2), make_plan(small(), SHAPE, "kpm", 2, head="split")),
            "plan 1 has other units than plan 0",
        ),
        ((replace(make_plan(small(), SHAPE, "kpm", 2), threads=(2, 1)),), "plan 0 gives ranks other threads"),
    ],
    ids=["none", "ranks", "batch", "units", "threads"],
)
def test_plans_that_cannot_take_turns(plans, words):
    with pytest.raises(PlanError, match=words):
        Turns(plans)


@pytest.mark.parallel([2, 3, 4])
@settings(
    max_examples=6, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(nets(), st.integers(-1, 3), st.sampled_from(["auto", "messages"]), st.data())
def test_every_answer_as_unsplit_and_in_order(net, more, same_host, data):
    """All ranks draw the same. From one plan to turns, to other turns and back, in the midst of a stream."""
    model, picture = net
    shape, root = (1, *picture), COMM.rank == 0
    try:
        graph = trace(model, picture).layers
    except ModelError:
        assume(False)
    plans = [drawn_turns(data, graph, shape, COMM.size), drawn_turns(data, graph, shape, COMM.size)]
    plans += [make_plan(graph, shape, "kpm", COMM.size), plans[0]]
    most = max(len(plans_of(plan)) for plan in plans)
    note("\n".join(map(str, plans)))
    pictures = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(14)]
    with torch.inference_mode():
        wanted = [model(each.clone()) for each in pictures]
    assume(all(each.isfinite().all() for each in wanted))
    in_flight = max(most + more, 1)
    how = Settings(in_flight=in_flight, same_host=same_host, compute=data.draw(st.sampled_from(["eager", "auto"])))
    if in_flight < len(plans_of(plans[0])):
        with pytest.raises(MpiconvError, match="plans in turn need at least"):
            mpiconv.distribute(model if root else None, plans[0] if root else None, COMM, how)
        return
    with mpiconv.distribute(model if root else None, plans[0] if root else None, COMM, how) as run:
        got, now = [], plans[0]
        for number, output in enumerate(run.stream(pictures if root else None)):
            got.append(output)
            if root and number in (2, 5, 9):
                then = plans[(2, 5, 9).index(number) + 1]
                if in_flight < len(plans_of(then)):
                    with pytest.raises(UsageError, match="plans in turn need at least"):
                        run.adopt(then)
                else:
                    assert run.adopt(then) == bytes_moved(holdings(now), holdings(then))
                    assert run.plan == then
                    now = then
        last = run(pictures[0] if root else None)
    assert len(got) == len(pictures)
    if root:
        for mine, unsplit in zip([*got, last], [*wanted, wanted[0]], strict=True):
            assert_close(mine, unsplit)


@pytest.mark.parallel([2, 3])
@pytest.mark.parametrize("same_host", ["auto", "messages"])
def test_bytes_and_flops_are_means_over_the_batches(same_host):
    """A whole number of batches went by each plan, and bytes, messages and FLOPs tell the same numbers."""
    root, ranks, frames = COMM.rank == 0, COMM.size, 13
    plans = [*whole(ranks).plans, make_plan(small(), SHAPE, "kpm", ranks, head="split")]
    images = [torch.rand(SHAPE)] * frames
    how = Settings(in_flight=2 * len(plans), same_host=same_host)
    with mpiconv.distribute(small() if root else None, plans if root else None, COMM, how) as net:
        for _ in net.stream(images[:4] if root else None):
            pass
        net.reset()
        for _ in net.stream(images if root else None):
            pass
        record = net.collect()
        held = net.weights_received_bytes
    if not root:
        return
    units = range(len(plans[0].graph.units))

    def of(count):
        return np.array([[[count(plan, u, rank) for u in units] for rank in range(ranks)] for plan in plans])

    computed = record.compute_time_s.sum(axis=2) > 2e-5
    assert computed.shape == (frames, ranks)
    flops = of(lambda plan, u, rank: plan.flops(u, rank))
    ran = np.linalg.lstsq(flops.reshape(len(plans), -1).T, record.flops.ravel() * frames, rcond=None)[0]
    assert ran == pytest.approx(np.round(ran), abs=1e-6)
    assert ran.sum() == pytest.approx(frames)
    assert (np.round(ran) > 0).all(), "each plan had a batch: there are more than slots"
    for name in ("bytes_sent", "bytes_received"):
        each = of(lambda plan, u, rank, name=name: getattr(plan, name)(u, rank))
        assert np.tensordot(ran, each, 1) / frames == pytest.approx(getattr(record, name))
    assert record.bytes_sent_by_kind.sum() == pytest.approx(record.bytes_sent.sum())
    assert sum(held) == bytes_moved({}, holdings(Turns(tuple(plans))))
    assert record.weight_bytes.tolist() == [4 * sum(p.numel() for p in small().parameters())] * ranks


@pytest.mark.parallel([2])
def test_what_a_rank_does_by_several_plans_is_made_once(monkeypatch):
    made = []
    import mpiconv.runtime.units as units

    real = units.local_unit
    monkeypatch.setattr(units, "local_unit", lambda *a, **k: made.append(a[0].name) or real(*a, **k))
    root = COMM.rank == 0
    model = mpiconv.load_model("digits")
    half, first = (make_plan(model, (1, 1, 32, 32), "kpm", 2, shares) for shares in ((1, 1), (1, 0)))
    plans = [half, replace(half, shares=(0.5, 0.5)), first] if root else None
    with mpiconv.distribute(model if root else None, plans, COMM, Settings(in_flight=3)) as net:
        count = len(made)
        net.adopt(plans[:2] if root else None)
        net(torch.rand(1, 1, 32, 32) if root else None)
        assert len(made) == count, "nothing is made anew for fewer plans"
    twice = sum(made.count(name) == 2 for name in set(made))
    assert max(map(made.count, made)) == (2 if root else 1)
    assert not root or twice == sum(not unit.opaque and bool(unit.params) for unit in half.graph.body)


@pytest.mark.parallel([2])
def test_a_quick_device_gets_more_of_the_pictures():
    root = COMM.rank == 0
    how = Settings(in_flight=4, pace=1 if root else 30, compute="eager")
    model = mpiconv.load_model("vgg11") if root else None
    turns = make_turns(model, (1, 3, 32, 32), 2) if root else None
    images = [torch.full((1, 3, 32, 32), float(i)) for i in range(16)]
    with mpiconv.distribute(model, turns, COMM, how) as net:
        order = list(net.stream(images if root else None))
        record = net.collect()
    if root:
        busy = record.compute_time_s.sum(axis=2)
        by_root = int((busy.argmax(axis=1) == 0).sum())
        assert by_root > len(images) / 2, "rank 1 is 30 times slower"
        with torch.inference_mode():
            for image, output in zip(images, order, strict=True):
                assert_close(output, model(image))


def wide() -> nn.Module:
    """Two convolutions of 9.4 MB each, which are too large to be compiled."""
    return nn.Sequential(nn.Conv2d(512, 512, 3, padding=1), nn.Conv2d(512, 512, 3, padding=1)).eval()


WEIGHTS, PICTURE = 2 * 4 * (512 * 512 * 9 + 512), 4 * 512 * 100


@pytest.mark.parametrize(("in_flight", "own"), [(2, 1), (3, 1), (4, 2)])
def test_memory_weights_once_and_buffers_for_each_in_flight(in_flight, own):
    graph = trace(wide(), (512, 10, 10)).layers
    turns = make_turns(graph, (1, 512, 10, 10), 2)
    carried = [schedule(plan, lambda _: "messages") for plan in turns.plans]
    root, helper = peak_bytes(carried, in_flight=in_flight)
    assert root.weights_bytes == helper.weights_bytes == WEIGHTS
    assert root.packed_bytes == helper.packed_bytes
    assert helper.buffers_bytes == own * PICTURE, "that of the batches that it computes"
    assert root.buffers_bytes == own * PICTURE, "their answers"


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(nets(), st.integers(2, 4), st.integers(1, 2), st.data())
def test_memory_is_no_less_than_by_any_of_the_plans(net, ranks, times, data):
    model, picture = net
    try:
        graph = trace(model, picture).layers
    except ModelError:
        assume(False)
    turns = drawn_turns(data, graph, (1, *picture), ranks)
    carried = [schedule(plan, lambda _: "messages") for plan in turns.plans]
    together = peak_bytes(carried, in_flight=times * len(carried))
    each = [peak_bytes(one, in_flight=times) for one in carried]
    held = holdings(turns)
    for rank in range(ranks):
        apart = [memory[rank] for memory in each]
        assert together[rank].buffers_bytes == sum(memory.buffers_bytes for memory in apart)
        assert together[rank].staging_bytes == sum(memory.staging_bytes for memory in apart)
        for name in ("weights_bytes", "packed_bytes", "maps_bytes"):
            most = max(getattr(memory, name) for memory in apart)
            assert most <= getattr(together[rank], name) <= sum(getattr(memory, name) for memory in apart)
        if rank:
            rows = sum(param.size // param.shape[0] * len(spans[rank]) for param, spans in held.items())
            assert together[rank].weights_bytes == 4 * rows
    twice = peak_bytes([carried[0]] * 2, in_flight=2)
    once = peak_bytes(carried[0], in_flight=2)
    assert [m.packed_bytes for m in twice] == [m.packed_bytes for m in once]
    assert [m.buffers_bytes for m in twice] == [m.buffers_bytes for m in once]


def estimated(on: Cluster, in_flight: int) -> TakingTurns:
    return taking_turns(trace(wide(), (512, 10, 10)).layers, on, in_flight=in_flight)


def test_devices_manage_together_what_each_does_alone():
    """Links that cost nothing: in time of their own, so that the slow one holds up nobody."""
    on = cluster(100.0, 100.0, 25.0, rate=1e12, alpha=0.0)
    found = estimated(on, 6)
    alone = [1 / timeline.latency_s for timeline in found.timelines]
    assert found.pictures_per_s(on) == pytest.approx(sum(alone), rel=1e-2)
    assert found.latency_s == pytest.approx(1 / min(alone), rel=1e-2)
    assert found.weight_bytes == [WEIGHTS] * 3


@pytest.mark.parametrize("medium", ["switch", "shared"])
def test_a_slow_link_bounds_what_is_sent(medium):
    on = cluster(100.0, 100.0, 100.0, rate=1e6, medium=medium)
    found = estimated(on, 6)
    own, *others = found.rates(on)
    assert own == pytest.approx(1 / found.timelines[0].latency_s)
    moved = PICTURE if medium == "switch" else 2 * PICTURE
    assert sum(others) == pytest.approx(1e6 / moved), "the root's link has a picture after the other, and answers"
    quick = cluster(100.0, 100.0, 100.0, rate=1e9, medium=medium)
    assert estimated(quick, 6).pictures_per_s(quick) > own + sum(others)


def test_with_one_batch_each_devices_wait_for_the_next():
    on = cluster(100.0, 100.0, rate=1e8)
    found, more = estimated(on, 2), estimated(on, 4)
    assert found.rates(on)[1] == pytest.approx(1 / found.timelines[1].latency_s)
    assert more.rates(on)[1] == pytest.approx(1 / more.timelines[1].compute_s.max())
    assert estimated(on, 1).in_flight == 2, "there cannot be fewer"


def test_turns_compete_for_pictures_per_second():
    """On slow links nothing that is split keeps up; with one batch in flight, or for latency, there are none."""
    graph, on = trace(wide(), (512, 10, 10)).layers, cluster(100.0, 100.0, 50.0, rate=1e6)

    def found(objective: str, in_flight: int | None = None) -> list[Candidate]:
        some = candidates(graph, on, objective=OBJECTIVES[objective], in_flight=in_flight, search=False)
        return [each for each in some if each.turns is not None]

    (turns,) = found("throughput")
    assert turns.flow is not None
    assert turns.flow.in_flight == 6
    assert isinstance(turns.runs, Turns)
    assert turns.plan in turns.runs.plans
    assert not turns.divided
    assert turns.weight_bytes == [WEIGHTS] * 3
    assert turns.latency_s == max(timeline.latency_s for timeline in turns.turns.timelines)
    assert turns.pictures_per_s(on) == turns.turns.pictures_per_s(on)
    assert not found("throughput", 2)
    assert not found("latency")
    with pytest.raises(MpiconvError, match="no plan"):
        candidates(graph, on, objective=OBJECTIVES["throughput"], memory_limits=[1.0] * 3, search=False)
