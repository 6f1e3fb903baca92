"""Schemes x nets x ranks over real MPI: the same numbers as the unsplit model, and the traffic that the boxes say.

Run by scripts/test.sh as ``mpirun -n N pytest -m parallel[N]``; every rank runs every case.
"""

from __future__ import annotations

import sys
from functools import cache
from time import sleep

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from mpi4py import MPI
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

import mpiconv
from mpiconv.errors import ModelError, MpiconvError, UsageError
from mpiconv.job import shared_memory
from mpiconv.job.progress import Progress
from mpiconv.job.waiting import Awaited
from mpiconv.measure.record import peak_rss_bytes
from mpiconv.partition import SCHEMES
from mpiconv.partition.wire import WIRES
from mpiconv.runtime import DistributedNet
from mpiconv.runtime.exchange import collective
from mpiconv.runtime.settings import Settings
from tests.random_nets import Attention, Cat, Excited, ExcitedByFC, Lasting, Net, Outputs, Shuffled, Sum, nets
from tests.simulated import assert_close

COMM = MPI.COMM_WORLD
RANKS = [2, 3, 4, 6]


def small() -> nn.Module:
    """Stride 4, an even kernel, groups, a dilated and a depthwise conv, ceil_mode, an overlapping pool, a head."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, 4, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(8, 12, 4, padding="same", groups=2),
        nn.LeakyReLU(0.2),
        nn.Conv2d(12, 12, 3, padding=2, dilation=2, groups=12),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        nn.Conv2d(12, 5, 1),
        nn.Flatten(),
        nn.LazyLinear(4),
    )


def branches() -> nn.Module:
    """A residual block, then a concatenation, no classifier."""
    left = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3, padding=1))
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1),
        nn.ReLU(inplace=True),
        Sum(left, nn.Identity()),
        nn.ReLU(),
        Cat(nn.Conv2d(6, 3, 1), nn.Conv2d(6, 4, 5, padding=2)),
        nn.MaxPool2d(2),
        nn.Conv2d(13, 7, 3),
    )


def odd() -> nn.Module:
    """What the paper's networks do not have; self-attention is for the root alone."""
    return Net(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish()),
        nn.ConvTranspose2d(8, 12, 4, 2, 1, groups=2),
        Shuffled(12, 3),
        nn.GroupNorm(3, 12),
        Excited(12, nn.Sigmoid),
        ExcitedByFC(12, nn.Hardsigmoid),
        nn.Sequential(nn.AvgPool2d(2), nn.PReLU(12), nn.ReflectionPad2d(1)),
        Attention(12),
        Lasting(12),
        nn.Conv2d(12, 12, 3, 2, groups=12),
        Outputs(12),
    )


NETS = {
    "odd": (odd, (3, 21, 26)),
    "small": (small, (3, 61, 45)),
    "branches": (branches, (3, 17, 12)),
    "digits": (lambda: mpiconv.load_model("digits"), (1, 32, 32)),
}


@cache
def built(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    make, picture = NETS[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = make().eval()
        model(torch.zeros(1, *picture))
    return model, picture


def compare(model: nn.Module, shape: tuple[int, ...], settings: Settings | None = None, **options: object) -> bool:
    """Distribute, run two pictures, and compare on rank 0; a failure is told to all ranks so that none waits.

    With several in flight they come again and again, so that a slot sees more than one. Returns whether this rank
    shares memory with others.
    """
    root = COMM.rank == 0
    plan = mpiconv.make_plan(model, shape, ranks=COMM.size, **options) if root else None
    images = torch.randn(shape, generator=torch.Generator().manual_seed(3)) if root else None
    net = mpiconv.distribute(model if root else None, plan, COMM, settings)
    zeros, turns = torch.zeros(shape) if root else None, net.settings.in_flight
    if turns > 1:
        before, *others, output = net.stream([zeros, images] * turns if root else None)
        kept = others[1]
    else:
        before = net(zeros)
        kept = tree_map(torch.clone, before) if root else None
        output = net(images)
    record = net.collect()
    failure = ""
    if root:
        try:
            with torch.inference_mode():
                tolerance = 1e-5 + WIRES[plan.wire].tolerance
                for mine, wanted in zip(tree_leaves(output), tree_leaves(model(images)), strict=True):
                    assert_close(mine, wanted, tolerance)
            for mine, wanted in zip(tree_leaves(before), tree_leaves(kept), strict=True):
                assert torch.equal(mine, wanted), "an answer changed when the next one was computed"
            for rank in range(COMM.size):
                for u in range(len(plan.graph.units)):
                    assert record.bytes_received[rank, u] == plan.bytes_received(u, rank), (rank, u)
                    assert record.bytes_sent[rank, u] == plan.bytes_sent(u, rank), (rank, u)
                    assert record.multicast_bytes[rank, u] == plan.multicast_bytes(u, rank), (rank, u)
                if rank:
                    assert record.weight_bytes[rank] == sum(plan.weight_bytes(u, rank) for u in range(len(plan.boxes)))
            assert record.compute_time_s.shape == (2 * turns, COMM.size, len(plan.graph.units))
        except AssertionError as error:
            failure = f"{net.settings} {options}: {error}"
    else:
        assert output is None
        assert record is None
    failure = COMM.bcast(failure)
    assert not failure
    return net.sharing


@pytest.mark.parallel(RANKS)
@pytest.mark.parametrize("scheme", sorted(SCHEMES))
@pytest.mark.parametrize("name", sorted(NETS))
def test_split_equals_unsplit(name, scheme):
    model, picture = built(name)
    ranks = COMM.size
    messages = {"same_host": "messages"}
    settings = [
        Settings(),
        Settings(compute="eager", **messages),
        Settings(overlap="on"),
        Settings(wait="sleep", in_flight=2, **messages),
    ]
    for turn, shares in enumerate(
        (None, [0.7, 0.2, 0.1, 0.4, 0.3, 0.6][:ranks], [1, *[0] * (ranks - 1)], [0, *[1] * (ranks - 1)])
    ):
        for gather in ("pool", "conv"):
            compare(model, (1, *picture), settings[turn], scheme=scheme, shares=shares, gather=gather)
    compare(model, (3, *picture), scheme=scheme)
    compare(model, (2, *picture), Settings(overlap="on", **messages), scheme=scheme)


@pytest.mark.parallel(RANKS)
@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_split_head_equals_unsplit(scheme):
    model, picture = built("digits")
    for shares in (None, [0, *[1] * (COMM.size - 1)]):
        compare(model, (2, *picture), scheme=scheme, shares=shares, head="split")
    settings = Settings(overlap="on", same_host="messages")
    compare(model, (1, *picture), settings, scheme=scheme, gather="conv", head="split")


@pytest.mark.parallel([3])
@pytest.mark.parametrize("compute", ["auto", "eager"])
@pytest.mark.parametrize("wire", sorted(WIRES))
def test_wire_formats_within_their_error(wire, compute):
    model, picture = built("digits")
    for scheme in ("kpm", "wpm", "grid"):
        compare(model, (2, *picture), Settings(same_host="messages", compute=compute), scheme=scheme, wire=wire)


@pytest.mark.parallel([3])
def test_without_persistent_collectives(monkeypatch):
    """As on an MPI of before version 4."""
    model, picture = built("digits")
    monkeypatch.setattr(collective, "_persistent", lambda *_: [])
    compare(model, (1, *picture), Settings(same_host="messages"), scheme="kpm")


@pytest.mark.parallel([3, 6])
@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_two_hosts(scheme, monkeypatch):
    """The first two ranks on one, the rest on another: shared memory within, messages between."""
    model, picture = built("branches")
    monkeypatch.setattr(MPI, "Get_processor_name", lambda: "one" if COMM.rank < 2 else "other")
    compare(model, (1, *picture), scheme=scheme)
    sharing = compare(model, (2, *picture), scheme=scheme, shares=[1, 1, *[0] * (COMM.size - 2)])
    assert sharing == (COMM.rank < 2 and scheme not in ("single",))
    compare(model, (1, *picture), Settings(overlap="on", in_flight=2), scheme=scheme, gather="conv")


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("why", ["no folder", "no room", "other processor"])
def test_memory_that_one_rank_cannot_share(why, monkeypatch):
    """Then all send messages."""
    model, picture = built("digits")
    if COMM.rank == (0 if why == "no room" else 1):
        if why == "no folder":
            monkeypatch.setattr(shared_memory.mmap, "mmap", refuse)
        elif why == "no room":
            monkeypatch.setattr(shared_memory.os, "posix_fallocate", refuse)
        else:
            monkeypatch.setattr(shared_memory.platform, "machine", lambda: "aarch64")
    sharing = compare(model, (1, *picture), scheme="wpm", shares=[1, 1, *[0] * (COMM.size - 2)])
    assert not sharing


def refuse(*_: object, **__: object) -> None:
    raise OSError("there is none")


@pytest.mark.parallel(RANKS)
@pytest.mark.parametrize("scheme", sorted(SCHEMES))
@pytest.mark.parametrize(("in_flight", "same_host"), [(1, "auto"), (3, "auto"), (3, "messages")])
def test_stream(scheme, in_flight, same_host):
    """Any number of batches, also fewer than are in flight and none, in order, with every one recorded."""
    model, picture = built("branches")
    root, settings = COMM.rank == 0, Settings(in_flight=in_flight, overlap="on", same_host=same_host)
    plan = mpiconv.make_plan(model, (1, *picture), scheme, COMM.size) if root else None
    net = mpiconv.distribute(model if root else None, plan, COMM, settings)
    failure = ""
    for count in (0, 1, in_flight, 7):
        images = torch.randn(count, 1, *picture, generator=torch.Generator().manual_seed(count)) if root else None
        outputs = list(net.stream(images))
        record = net.collect() if count == 7 else None
        if root:
            try:
                assert len(outputs) == count
                with torch.inference_mode():
                    for image, output in zip(images, outputs, strict=True):
                        assert_close(output, model(image))
                if record:
                    assert len(record.latency_s) == 7
                    assert record.stamps_s.shape[:2] == (7, COMM.size)
            except AssertionError as error:
                failure = f"{count}: {error}"
        net.reset()
    failure = COMM.bcast(failure)
    assert not failure


@pytest.mark.parallel([2])
@pytest.mark.parametrize("wanted", [True, False])
def test_messages_move_while_ranks_compute(wanted):
    """A message too large to be sent at once is all there before the receiver looks, if the thread runs."""
    data = np.full(2**25, COMM.rank == 0, np.uint8)
    with Progress(wanted=wanted):
        request = COMM.Isend(data, 1) if COMM.rank == 0 else COMM.Irecv(data, 0)
        sleep(0.5)  # lets go of Python's lock as torch does
        there = bool(data.all())
    request.Wait()
    assert there == (wanted or COMM.rank == 0)
    assert data.all()


@pytest.mark.parallel([2])
def test_the_next_picture_is_on_its_way_while_the_last_unit_computes():
    model, picture = built("digits")
    root, settings = COMM.rank == 0, Settings(in_flight=2, same_host="messages")
    plan = mpiconv.make_plan(model, (1, *picture), "kpm", 2) if root else None
    net = mpiconv.distribute(model if root else None, plan, COMM, settings)
    list(net.stream([torch.zeros(1, *picture)] * 8 if root else None))
    stamps = net.record.stamps_s[:, 0]
    if root:
        starts, arrived, ends = (np.sort(s) for s in (stamps[:, 0, 0], stamps[:, 0, 2], stamps[:, -1, 2]))
        assert sum(starts[2:] < ends[:-2]) == 6  # each comes in before the one whose buffers it takes is through
        assert sum(arrived[2:] < ends[:-2]) == 6  # and the root does not wait for it to arrive


@pytest.mark.parallel([2])
@pytest.mark.parametrize(
    ("name", "scheme"), [("branches", "fused"), ("branches", "kpm"), ("odd", "wpm"), ("small", "kpm"), ("small", "wpm")]
)
def test_the_next_picture_waits_for_the_last_unit_before_it(name, scheme, monkeypatch):
    """It comes into the buffers of a frame that is not through, also where all that it waits for is there at once."""
    look = Awaited.done

    def at_once(awaited: Awaited) -> bool:
        return any(look(awaited) for _ in range(1000))

    monkeypatch.setattr(Awaited, "done", at_once)
    model, picture = built(name)
    root, settings = COMM.rank == 0, Settings(in_flight=2, same_host="messages")
    plan = mpiconv.make_plan(model, (1, *picture), scheme, COMM.size) if root else None
    net = mpiconv.distribute(model if root else None, plan, COMM, settings)
    images = torch.randn(9, 1, *picture, generator=torch.Generator().manual_seed(5)) if root else None
    outputs = list(net.stream(images))
    with torch.inference_mode():
        pairs = [(tree_leaves(outputs[i]), tree_leaves(model(images[i]))) for i in range(9)] if root else []
        wrong = [
            i for i, pair in enumerate(pairs) if any((a - b).abs().max() > 1e-4 for a, b in zip(*pair, strict=True))
        ]
    assert not COMM.bcast(wrong)


@pytest.mark.parallel(RANKS)
def test_random_nets(monkeypatch):
    failures = []

    @settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(
        nets(),
        st.sampled_from(sorted(SCHEMES)),
        st.lists(st.sampled_from([0, 0.3, 1, 2.5]), min_size=COMM.size, max_size=COMM.size).filter(any),
        st.sampled_from(["pool", "conv"]),
        st.integers(1, 2),
        st.builds(
            Settings,
            compute=st.sampled_from(["auto", "auto", "eager"]),
            overlap=st.sampled_from(["auto", "on"]),
            wait=st.sampled_from(["spin", "sleep"]),
            same_host=st.sampled_from(["auto", "messages"]),
            in_flight=st.sampled_from([1, 2]),
        ),
        st.sampled_from([COMM.size, (COMM.size + 1) // 2]),
    )
    def every_rank_draws_the_same(net, scheme, shares, gather, batch, settings, ranks_per_host):
        model, picture = net
        try:
            mpiconv.make_plan(model, (batch, *picture))
            with torch.inference_mode():
                images = torch.randn(batch, *picture, generator=torch.Generator().manual_seed(3))
                assume(model(images).isfinite().all())
        except ModelError:
            assume(False)
        monkeypatch.setattr(MPI, "Get_processor_name", lambda: f"host {COMM.rank // ranks_per_host}")
        try:
            compare(model, (batch, *picture), settings, scheme=scheme, shares=shares, gather=gather)
        except AssertionError as error:
            failures.append(f"{model} {picture} {scheme} {shares} {gather}: {error}")

    every_rank_draws_the_same()
    assert not failures


@pytest.mark.parallel([2, 3])
def test_every_rank_hears_of_an_error_on_the_root():
    model, picture = built("digits")
    root = COMM.rank == 0
    plan = mpiconv.make_plan(model, (1, *picture), "kpm", COMM.size + 1) if root else None
    with pytest.raises(MpiconvError, match=f"the plan is for {COMM.size + 1} ranks and {COMM.size} are running"):
        mpiconv.distribute(model if root else None, plan, COMM)
    other, other_picture = built("small")
    plan = mpiconv.make_plan(other, (1, *other_picture), "kpm", COMM.size) if root else None
    with pytest.raises(MpiconvError, match=r"wants 1 channels|made for another network"):
        mpiconv.distribute(model if root else None, plan, COMM)
    with pytest.raises(MpiconvError, match="rank 0 has to pass"):
        mpiconv.distribute(None, None, COMM)


@pytest.mark.parallel([4])
def test_no_rank_but_the_root_holds_a_full_layer_under_kpm():
    root = COMM.rank == 0
    model = mpiconv.load_model("alexnet") if root else None
    plan = mpiconv.make_plan(model, (1, 3, 227, 227), "kpm", 4) if root else None
    net = mpiconv.distribute(model, plan, COMM)
    conv = [(unit, sum(4 * param.size for param in unit.params)) for unit in net.plan.graph.body]
    one_kernel_each = sum(whole // unit.out_shape[0] for unit, whole in conv)
    if not root:
        assert 0 < net.weight_bytes <= sum(whole for _, whole in conv) / 4 + one_kernel_each


@pytest.mark.parallel([2])
def test_wrong_pictures_are_refused_on_all_ranks_and_right_ones_run():
    model, picture = built("digits")
    plan = mpiconv.make_plan(model, (1, *picture), "wpm", 2)
    net = mpiconv.distribute(model if COMM.rank == 0 else None, plan if COMM.rank == 0 else None, COMM)
    for wrong in (None, torch.zeros(2, 1, 32, 32), torch.zeros(1, 1, 32, 32, dtype=torch.float64)):
        with pytest.raises(UsageError, match=r"of shape \(1, 1, 32, 32\), rank 0 was given"):
            net(wrong)
    image = torch.randn(1, *picture)
    output = net(image)
    if COMM.rank == 0:
        with torch.inference_mode():
            assert_close(output, model(image))


@pytest.mark.parallel([4])
@pytest.mark.parametrize("compute", ["eager", "auto"])
def test_peak_memory_grows_by_the_slice_alone(compute):
    """Receiving a slice costs a rank no more memory than the slice, compared with receiving nothing.

    Reordering the weights unit by unit can at most double that.
    """
    if not sys.platform.startswith("linux"):
        return  # the peak cannot be reset in between elsewhere; CI runs this on Linux
    root = COMM.rank == 0

    def growth(name: str, scheme: str) -> tuple[int, DistributedNet]:
        model = mpiconv.load_model(name) if root else None
        plan = mpiconv.make_plan(model, (1, *model.info.input_shape), scheme, 4) if root else None
        COMM.Barrier()
        before = peak_rss_bytes()
        net = mpiconv.distribute(model, plan, COMM, Settings(compute=compute))
        return peak_rss_bytes() - before, net

    growth("digits", "kpm")  # loads the code of MPI and torch that every rank needs
    idle, _ = growth("vgg11", "single")
    grown, net = growth("vgg11", "kpm")
    conv = [(unit, sum(4 * param.size for param in unit.params)) for unit in net.plan.graph.body]
    bound = sum(whole for _, whole in conv) / 4 + sum(whole // unit.out_shape[0] for unit, whole in conv)
    room = 2**18 if compute == "eager" else bound + 2**21
    if not root:
        print(f"rank {COMM.rank}: peak RSS +{grown} B, idle +{idle} B, slice {net.weight_bytes} B, bound {bound:.0f} B")
        assert net.weight_bytes <= bound
        assert grown - idle <= bound + room, "allocator and MPI bookkeeping is well below that"
