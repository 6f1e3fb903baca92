"""Another plan in the midst of a run: every answer as without it, and only the weights travel that are missing."""

from __future__ import annotations

import gc
import linecache
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, note, settings
from hypothesis import strategies as st
from mpi4py import MPI
from torch import nn

import mpiconv
from mpiconv.errors import ModelError, MpiconvError, PlanError, UsageError
from mpiconv.graph.trace import trace
from mpiconv.job.host import cores_here
from mpiconv.partition import SCHEMES, Plan, Span, make_plan
from mpiconv.partition.holdings import bytes_moved, holdings, travels
from mpiconv.runtime.settings import Settings
from tests.random_nets import SHARES, nets
from tests.simulated import assert_close

COMM = MPI.COMM_WORLD


def drawn_plan(data: st.DataObject, graph: object, shape: tuple[int, ...], ranks: int) -> Plan:
    """Any scheme, shares, gather and head."""
    shares = [data.draw(st.integers(0, 4)) for _ in range(ranks)]
    shares = shares if any(shares) else None
    head = data.draw(st.sampled_from(["root", "split", ranks - 1]))
    scheme, gather = data.draw(st.sampled_from(sorted(SCHEMES))), data.draw(st.sampled_from(["pool", "conv"]))
    return make_plan(graph, shape, scheme, ranks, shares, gather, head)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(nets(), SHARES, st.data())
def test_what_travels_is_what_is_missing(net, shares, data):
    model, picture = net
    try:
        graph = trace(model, picture).layers
    except ModelError:
        assume(False)
    before, after = (holdings(drawn_plan(data, graph, (1, *picture), len(shares))) for _ in range(2))
    assert bytes_moved(after, after) == 0
    missing = 0
    for param, spread in travels(before, after).items():
        width = param.size // param.shape[0]
        assert spread.received(0) == 0, "the root has all"
        for rank, span in enumerate(after[param]):
            had = before.get(param, (Span(),) * len(shares))[rank]
            lacks = 0 if rank == 0 else len(span) - len(span & had)
            assert spread.received(rank) == width * lacks
            missing += 4 * width * lacks
    assert bytes_moved(before, after) == missing
    assert bytes_moved({}, after) >= missing


@pytest.mark.parallel([2, 3, 4])
@settings(
    max_examples=12, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(nets(), st.integers(1, 3), st.sampled_from(["auto", "messages"]), st.data())
def test_any_plan_in_the_midst_of_a_stream(net, in_flight, same_host, data):
    """All ranks draw the same; only rank 0 knows the plans."""
    model, picture = net
    shape, root = (1, *picture), COMM.rank == 0
    try:
        graph = trace(model, picture).layers
    except ModelError:
        assume(False)
    plans = [drawn_plan(data, graph, shape, COMM.size) for _ in range(3)]
    moments = {data.draw(st.integers(0, 8)): plan for plan in plans[1:]}
    note("\n".join(map(str, plans)))
    pictures = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(10)]
    with torch.inference_mode():
        wanted = [model(each.clone()) for each in pictures]
    assume(all(each.isfinite().all() for each in wanted))
    how = Settings(in_flight=in_flight, same_host=same_host, compute=data.draw(st.sampled_from(["eager", "auto"])))
    with mpiconv.distribute(model if root else None, plans[0] if root else None, COMM, how) as run:
        held = holdings(plans[0])
        got = []
        for number, output in enumerate(run.stream(pictures if root else None)):
            got.append(output)
            if root and number in moments:
                moved = run.adopt(moments[number])
                assert moved == bytes_moved(held, holdings(moments[number]))
                held = holdings(moments[number])
                assert run.plan == moments[number]
                assert run.adopt(moments[number]) == 0
            run.adopt(None) if not root else None  # does nothing
        last = run(pictures[0] if root else None)
        received = sum(run.weights_received_bytes)
    assert len(got) == len(pictures)
    if root:
        for mine, whole in zip([*got, last], [*wanted, wanted[0]], strict=True):
            assert_close(mine, whole)
        chain = [holdings(plan) for plan in [plans[0], *(moments[number] for number in sorted(moments))]]
        assert received == sum(bytes_moved(a, b) for a, b in zip([{}, *chain], chain, strict=False))


@pytest.mark.parallel([2])
def test_a_tenth_of_the_shares_moves_a_tenth_of_the_weights():
    root = COMM.rank == 0
    model = mpiconv.load_model("vgg11") if root else None
    plans = [make_plan(model, (1, 3, 64, 64), "kpm", 2, shares) for shares in ((5, 5), (4, 6))] if root else [None] * 2
    with mpiconv.distribute(model, plans[0], COMM) as net:
        moved = net.adopt(plans[1])
        again = net.adopt(plans[1])
        output = net(torch.ones(1, 3, 64, 64) if root else None)
    if root:
        whole = sum(4 * param.size for unit in plans[0].graph.body for param in unit.params)
        assert moved / whole == pytest.approx(0.1, abs=0.001)
        assert again == 0
        with torch.inference_mode():
            assert_close(output, model(torch.ones(1, 3, 64, 64)))


@pytest.mark.parallel([2, 4])
def test_units_of_which_a_rank_does_what_it_did_are_not_made_anew(monkeypatch):
    made = []
    monkeypatch.setattr("mpiconv.runtime.units.local_unit", counting("mpiconv.runtime.units", "local_unit", made))
    root = COMM.rank == 0
    model = mpiconv.load_model("alexnet") if root else None
    heads = ("root", "split") if root else ()
    plans = [make_plan(model, (1, 3, 227, 227), "kpm", COMM.size, head=head) for head in heads]
    with mpiconv.distribute(model, plans[0] if root else None, COMM) as net:
        first = len(made)
        if root:
            net.adopt(plans[1])
        output = net(torch.ones(1, 3, 227, 227) if root else None)
    assert [unit.name for unit, *_ in made[first:]] == ["linear1", "linear2", "linear3"][: 3 if COMM.rank < 1 else 2]
    if root:
        with torch.inference_mode():
            assert_close(output, model(torch.ones(1, 3, 227, 227)))


def counting(module: str, name: str, calls: list) -> object:
    """The function of a module, each call of which is noted with its arguments."""
    function = getattr(__import__(module, fromlist=[name]), name)

    def run(*arguments, **options):
        calls.append(arguments)
        return function(*arguments, **options)

    return run


@pytest.mark.parallel([3])
def test_ranks_that_follow_adopt_what_rank_0_does():
    root = COMM.rank == 0
    model = mpiconv.load_model("digits") if root else None
    images = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    schemes = ["kpm", "wpm", "grid", "single", "fused", "kpm"]
    plans = [make_plan(model, (1, 1, 32, 32), scheme, 3) for scheme in schemes] if root else [None]
    with mpiconv.distribute(model, plans[0], COMM) as net:
        if not root:
            assert net.follow() == 1
            assert net.plan.scheme == "kpm"
        else:
            with torch.inference_mode():
                wanted = model(images)
            for plan in plans[1:]:
                net.adopt(plan)
                assert_close(net(images), wanted)
                assert net.record.flops.tolist() == [[plan.flops(u, 0) for u in range(len(plan.graph.units))]]
            assert net.record.latency_s.shape == (1,), "of this plan alone"
            net.dismiss()


@pytest.mark.parallel([2])
def test_a_plan_that_does_not_fit_is_refused_and_the_old_one_goes_on():
    root = COMM.rank == 0
    model = mpiconv.load_model("digits")
    plan = make_plan(model, (1, 1, 32, 32), "kpm", 2)
    wrong = {
        "for 3 ranks and 2 are running": make_plan(model, (1, 1, 32, 32), "kpm", 3),
        "batches of 2 pictures": make_plan(model, (2, 1, 32, 32), "kpm", 2),
        "another network": make_plan(nn.Sequential(nn.Conv2d(1, 2, 3)), (1, 1, 32, 32), "kpm", 2),
    }
    with mpiconv.distribute(model if root else None, plan if root else None, COMM) as net:
        if root:
            for words, other in wrong.items():
                with pytest.raises((PlanError, UsageError), match=words):
                    net.adopt(other)
            with pytest.raises(UsageError, match="rank 0 has to pass the plan"):
                net.adopt()
        outputs = list(net.stream([torch.zeros(1, 1, 32, 32)] * 3 if root else None))
        assert net.plan == plan
    assert len(outputs) == 3


@pytest.mark.parallel([2, 3])
def test_a_rank_that_fails_while_it_adopts_ends_all(monkeypatch):
    root, last = COMM.rank == 0, COMM.rank == COMM.size - 1
    model = mpiconv.load_model("digits") if root else None
    plans = [make_plan(model, (1, 1, 32, 32), scheme, COMM.size) for scheme in ("kpm", "wpm")] if root else [None] * 2
    net = mpiconv.distribute(model, plans[0], COMM, Settings(rank_timeout_s=20))
    net(torch.zeros(1, 1, 32, 32) if root else None)
    if last:

        def broken(*_words, **_options):
            raise MpiconvError("no memory is left")

        monkeypatch.setattr("mpiconv.runtime.builder.Slot", broken)

    def adopt_and_run():
        net.adopt(plans[1])
        net(torch.zeros(1, 1, 32, 32) if root else None)

    with pytest.raises(MpiconvError, match="no memory is left"):
        adopt_and_run()
    with pytest.raises(MpiconvError, match="cannot be used any more"):
        net(torch.zeros(1, 1, 32, 32) if root else None)
    COMM.Barrier()


def resources() -> dict[str, int]:
    """Open files, threads and pieces of shared memory of this process."""
    here = Path("/proc/self")
    maps = sum("memfd:mpiconv" in line for line in (here / "maps").read_text().splitlines())
    return {"files": len(list((here / "fd").iterdir())), "threads": len(list((here / "task").iterdir())), "maps": maps}


@pytest.mark.parallel([2])
def test_two_hundred_plans_leave_nothing_behind():
    if not sys.platform.startswith("linux"):
        return  # counted in /proc; CI runs this on Linux
    root, random_order = COMM.rank == 0, random.Random(0)
    model = mpiconv.load_model("digits") if root else None
    schemes = ["kpm", "wpm", "grid", "single", "fused"]
    plans = [make_plan(model, (1, 1, 32, 32), scheme, 2) for scheme in schemes] if root else [None]
    with mpiconv.distribute(model, plans[0], COMM, Settings(in_flight=2)) as net:
        if not root:
            net.follow()
        for turn in range(200 if root else 0):
            net.adopt(random_order.choice(plans))
            list(net.stream([torch.zeros(1, 1, 32, 32)] * 2))
            if turn == 40:
                before = resources()
        if root:
            after = resources()
            net.dismiss()
            assert after == before


@pytest.mark.parallel([2])
def test_a_thousand_networks_leave_nothing_behind():
    """The garbage collector has nothing to find: what a closed network had is free at once."""
    if not sys.platform.startswith("linux"):
        return  # counted in /proc; CI runs this on Linux
    root, counts = COMM.rank == 0, []
    model = mpiconv.load_model("digits") if root else None
    plan = make_plan(model, (1, 1, 32, 32), "kpm", 2) if root else None
    images = torch.zeros(1, 1, 32, 32) if root else None
    for turn in range(1000):
        with mpiconv.distribute(model, plan, COMM) as net:
            net(images)
        if turn % 499 == 1:
            counts.append(resources())
            gc.collect()
            counts[-1] |= {"texts": len(linecache.cache), "objects": len(gc.get_objects())}
    first, *_, last = counts
    grown = last.pop("objects") - first.pop("objects")
    assert last == first
    assert grown < 500


@pytest.mark.parallel([2, 3])
def test_idle_ranks_of_a_host_lend_their_cores():
    """Rank 0 computes with as many threads as there are ranks, then again as it was started; answers stay exact."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.MaxPool2d(2)).eval()
    shape, root = (1, 3, 40, 40), COMM.rank == 0
    picture, cores = torch.rand(shape, generator=torch.Generator().manual_seed(0)), cores_here()
    with torch.inference_mode():
        answer = model(picture)
    single = make_plan(model, shape, "single", COMM.size)
    lent = replace(single, threads=(COMM.size, *[1] * (COMM.size - 1)))
    with mpiconv.distribute(model if root else None, lent if root else None, COMM, Settings(wait="spin")) as net:
        for plan in (None, make_plan(model, shape, "kpm", COMM.size), lent, single):
            if plan is not None:
                net.adopt(plan if root else None)
            found = net(picture if root else None)
            threads = net.plan.threads[COMM.rank] if net.plan.threads else 1
            assert torch.get_num_threads() == threads
            assert net._engine._waiting._mode == ("sleep" if net.plan.threads and not root else "spin")
            if root:
                assert_close(found, answer)
        net.adopt(lent if root else None)
        if root:
            assert set(cores).issubset(cores_here())
        net(picture if root else None)
    assert torch.get_num_threads() == 1
    assert cores_here() == cores
