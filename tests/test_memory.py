"""The memory that a plan needs on every rank: worked out by hand, against what processes grow by, and kept within."""

from __future__ import annotations

import math
import re
import sys
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

import mpiconv
from mpiconv.cli.memory_limit import asked_limits, memory_limits
from mpiconv.errors import ModelError, MpiconvError, UsageError
from mpiconv.graph.trace import trace
from mpiconv.partition import SCHEMES, make_plan
from mpiconv.partition.holdings import holdings
from mpiconv.partition.plan import at_work
from mpiconv.partition.schedule import schedule
from mpiconv.planner.candidates import candidates
from mpiconv.planner.limits import Limits, limits_for, sized
from mpiconv.planner.memory import CODE_BYTES, PROCESS_BYTES, Memory, compiled, peak_bytes
from mpiconv.runtime.compute.engines import _compiles
from tests.conftest import ROOT, execute
from tests.conftest import mpiconv as run
from tests.random_nets import SHARES, nets
from tests.test_simulation import cluster

MIB = 2**20
STATUS = Path("/proc/self/status")


def of(plan, medium="messages", **how) -> list[Memory]:
    return peak_bytes(schedule(plan, lambda _: medium), **how)


def wide() -> nn.Module:
    """Two convolutions of 512 kernels, 9.4 MB each, which are too large to be compiled."""
    return nn.Sequential(nn.Conv2d(512, 512, 3, padding=1), nn.Conv2d(512, 512, 3, padding=1)).eval()


KERNELS = 4 * 512 * 512 * 9
MAP = 4 * 512 * 10 * 10


@pytest.mark.parametrize("medium", ["messages", "shared"])
def test_halves_of_large_kernels(medium):
    root, helper = of(make_plan(wide(), (1, 512, 10, 10), "kpm", 2), medium)
    assert root.weights_bytes == 2 * (KERNELS + 4 * 512)
    assert helper.weights_bytes == KERNELS + 4 * 512
    assert root.packed_bytes == helper.packed_bytes == KERNELS
    assert helper.packing_bytes == KERNELS + KERNELS // 2
    assert helper.code_bytes == 0
    picture, between, last = MAP, MAP, MAP / 2
    if medium == "messages":
        assert helper.buffers_bytes == picture + between
        assert root.buffers_bytes == between + MAP  # what the helper made of the last map comes to the root
        assert helper.staging_bytes == between  # of channels that lie beside others; those of the last map do not
    else:
        assert helper.buffers_bytes == picture + between + last
        assert helper.staging_bytes == 0
    assert helper.maps_bytes == MAP / 2
    assert helper.peak_bytes == KERNELS + 4 * 512 + max(helper.running_bytes, helper.packing_bytes)


def test_a_compiled_unit_has_two_copies_and_runs_twice():
    model = nn.Sequential(nn.Conv2d(8, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU()).eval()
    _, helper = of(make_plan(model, (2, 8, 10, 10), "wpm", 2))
    assert helper.weights_bytes == 4 * (24 * 8 * 9 + 4 * 24)
    kernels = 4 * 32 * 8 * 9  # 24 are filled up to 32
    assert helper.packed_bytes == 2 * kernels
    assert helper.packing_bytes == 4 * kernels  # once in single and twice in double precision besides
    assert helper.code_bytes == CODE_BYTES
    assert helper.maps_bytes == 2 * (2 * 2 * 4 * 24 * 5 * 10 + kernels)
    assert helper.buffers_bytes == 2 * 4 * 8 * (6 + 1) * 10  # six rows, and one of padding


def test_every_batch_in_flight_has_buffers():
    plan = make_plan(wide(), (1, 512, 10, 10), "kpm", 2)
    one, three = of(plan)[1], of(plan, in_flight=3)[1]
    assert three.buffers_bytes == 3 * one.buffers_bytes
    assert three.staging_bytes == 3 * one.staging_bytes
    assert three.weights_bytes == one.weights_bytes


def test_a_rank_without_work_needs_nothing():
    plan = make_plan(wide(), (1, 512, 10, 10), "kpm", 3, (1, 1, 0))
    assert of(plan)[2] == Memory()
    assert of(plan, "shared")[2] == Memory()


def test_a_tensor_that_two_layers_share_counts_once():
    layer = nn.Conv2d(16, 16, 3, padding=1)
    plan = make_plan(nn.Sequential(layer, layer).eval(), (1, 16, 8, 8), "kpm", 2)
    root, helper = of(plan)
    assert root.weights_bytes == 4 * (16 * 16 * 9 + 16)
    assert helper.weights_bytes == root.weights_bytes / 2


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(nets(), st.sampled_from(sorted(SCHEMES)), SHARES, st.sampled_from(["messages", "shared"]), st.integers(1, 2))
def test_any_plan_of_any_network(net, scheme, shares, medium, batch):
    model, picture = net
    try:
        plan = make_plan(model, (batch, *picture), scheme, len(shares), shares)
    except ModelError:
        assume(False)
    found = of(plan, medium)
    held = holdings(plan)
    for rank, memory in enumerate(found):
        rows = sum(4 * len(spans[rank]) * param.size // param.shape[0] for param, spans in held.items())
        assert memory.weights_bytes >= rows if rank == 0 else memory.weights_bytes == rows
        assert memory.peak_bytes >= memory.weights_bytes
        assert all(value >= 0 for value in vars(memory).values())
    more = of(plan, medium, in_flight=2)
    assert all(a.peak_bytes >= b.peak_bytes for a, b in zip(more, found, strict=True))
    assert [compiled(unit) for unit in plan.graph.units] == [
        _compiles(unit) or _additions(unit) for unit in plan.graph.units
    ]


def _additions(unit) -> bool:
    """Of units without a convolution the runtime compiles none on some processors; they have no kernels."""
    return compiled(unit) and not any(layer.kind == "conv" for layer in unit.layers)


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "mobilenet_v2"])
def test_more_ranks_never_hold_more_weights_in_sum(name):
    model = mpiconv.load_model(name)
    shape = (1, *model.info.input_shape)
    sums = [sum(m.weights_bytes for m in of(make_plan(model, shape, "kpm", ranks))[1:]) for ranks in (2, 4, 8)]
    most = [max(m.weights_bytes for m in of(make_plan(model, shape, "kpm", ranks))[1:]) for ranks in (2, 4, 8)]
    whole = of(make_plan(model, shape, "single", 1))[0].weights_bytes
    assert all(total <= whole for total in sums)
    assert most == sorted(most, reverse=True)


def test_every_candidate_keeps_within_the_limits():
    graph = trace(wide(), (512, 10, 10)).layers
    on = cluster(1.0, 1.0, 1.0, rate=1e9)
    free = candidates(graph, on)
    needed = sorted({max(m.peak_bytes for m in c.memory[1:]) for c in free})
    for limit in (needed[1], needed[len(needed) // 2], needed[-1]):
        found = candidates(graph, on, memory_limits=[None, limit, limit])
        assert all(m.peak_bytes <= limit for c in found for m in c.memory[1:])
        assert any(len(at_work(c.plan)) > 1 for c in found)
        assert found[0].most_memory == (0, max(m.peak_bytes for m in found[0].memory))


def test_little_memory_is_given_little_to_hold():
    """Half of the kernels do not fit the second device, a fifth does."""
    graph = trace(wide(), (512, 10, 10)).layers
    told = []
    found = candidates(graph, cluster(1.0, 1.0, rate=1e9), memory_limits=[math.inf, 10 * MIB], tell=told.append)
    split = next(c for c in found if at_work(c.plan) == [0, 1])
    assert split.memory[1].peak_bytes <= 10 * MIB
    assert told == []


def test_where_no_split_fits_one_device_does_all_and_it_is_said():
    graph = trace(wide(), (512, 10, 10)).layers
    told = []
    found = candidates(graph, cluster(1.0, 1.0), memory_limits=[None, 1000], tell=told.append)
    assert [c.name for c in found] == ["all on a"]
    assert re.fullmatch(
        r"no split of Sequential keeps b within 1000 B: the nearest, .+, needs [\d.]+ (K|M)iB there", told[0]
    )


def test_where_no_plan_fits_the_nearest_is_named():
    graph = trace(wide(), (512, 10, 10)).layers
    with pytest.raises(MpiconvError, match=r"no plan for Sequential keeps a within 8 MiB: the nearest, .+, needs"):
        candidates(graph, cluster(1.0, 1.0), memory_limits=[8 * MIB, None])


def test_what_devices_can_give_by_themselves():
    on = cluster(1.0, 1.0, 1.0, hosts="aab").to_dict()
    for device, memory in zip(on["device"], (2 * 2**30, 2 * 2**30, 0), strict=True):
        device["memory_bytes"] = memory
    found = limits_for(type(cluster(1.0)).from_dict(on), "abc")
    assert found.most_bytes == (2**30 - PROCESS_BYTES, 2**30 - PROCESS_BYTES, math.inf)
    assert limits_for(cluster(1.0, 1.0), "ab", [None, 5]).most_bytes == (math.inf, 5)


def test_the_worst_is_the_largest_multiple_of_its_limit():
    limits = Limits((100.0, 10.0, math.inf), ("a", "b", "c"))
    assert limits.broken([Memory(100), Memory(10), Memory(10**9)]) is None
    assert limits.broken([Memory(150), Memory(16), Memory()]) == 1
    assert Limits((0.0,), ("a",)).broken([Memory()]) is None
    assert Limits((0.0,), ("a",)).broken([Memory(1)]) == 0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("64MiB", [64 * MIB]),
        ("-", [math.inf]),
        ("-,1GiB,1.5 KiB", [math.inf, 2**30, 1536]),
        ("67108864, 2MB", [64 * MIB, 2e6]),
        ("0", [0]),
    ],
)
def test_amounts_of_memory(text, wanted):
    assert memory_limits(text) == wanted


@pytest.mark.parametrize("text", ["", "64MiB,", "x", "-1", "64 mib", "1e9", "nan", "64MiBs", "--", "٣"])
def test_no_amounts_of_memory(text):
    with pytest.raises(ArgumentTypeError, match="is no amount of memory like 64MiB, 1GiB, 67108864 or -"):
        memory_limits(text)


def test_one_limit_is_for_all_but_the_root():
    assert asked_limits(Namespace(memory_limit=None), 3) is None
    assert asked_limits(Namespace(memory_limit=[5.0]), 3) == [None, 5.0, 5.0]
    assert asked_limits(Namespace(memory_limit=[5.0]), 1) == [5.0]
    assert asked_limits(Namespace(memory_limit=[1.0, 2.0]), 2) == [1.0, 2.0]
    with pytest.raises(UsageError, match="--memory-limit has 2 amounts for 3 ranks: give one for every rank but 0"):
        asked_limits(Namespace(memory_limit=[1.0, 2.0]), 3)


def test_amounts_are_said_in_the_largest_unit():
    assert [sized(n) for n in (0, 999, 64 * MIB, 1.5 * 2**30, 2000)] == [
        "0 B",
        "999 B",
        "64 MiB",
        "1.5 GiB",
        "1.95 KiB",
    ]


def test_a_named_plan_that_needs_more_is_refused():
    ended = run(0, "plan", "--model", "resnet18", "--scheme", "wpm", "--ranks", "3", "--memory-limit", "64MiB")
    assert ended.status == 1
    assert re.search(r"wpm over 3 ranks needs [\d.]+ MiB on rank \d, where the memory limit is 64 MiB", ended.errors[0])


def test_where_no_split_fits_it_is_said_on_the_command_line(tmp_path):
    cluster(1.0, 1.0).save(tmp_path / "two.toml")
    ended = run(0, "plan", "--model", "digits", "--cluster", tmp_path / "two.toml", "--memory-limit", "100KiB")
    assert ended.out.startswith("Do not split")
    assert "mpiconv: note: no split of digits keeps b within 100 KiB: the nearest, " in ended.err


def test_vgg11_on_helpers_of_64_mib():
    """Rows alone need more, and the fully connected layers find room on the root alone."""
    model = mpiconv.load_model("vgg11")
    graph = trace(model, (3, 224, 224)).layers
    limits = [None] + [64 * MIB] * 4
    found = candidates(graph, cluster(*[10.0] * 5, rate=1e8, alpha=1e-4), memory_limits=limits)
    best = found[0]
    assert best.name.startswith("unit by unit: ")
    assert set(best.plan.schemes) >= {"wpm", "kpm", "root"}
    assert all(16 * MIB < memory.peak_bytes <= 64 * MIB for memory in best.memory[1:])


@pytest.mark.skipif(not STATUS.exists(), reason="no /proc here: what trim_heap returns was NOT looked at")
def test_freed_memory_between_what_is_in_use_is_returned():
    """In a process of its own, whose heap nobody has used before."""
    ended = execute([sys.executable, "-m", "tests.growing"], cwd=ROOT)
    assert ended.status == 0, ended.err
    assert ended.json["returned"] > 30 * MIB


@pytest.mark.parametrize("scheme", ["kpm", "wpm"])
def test_a_helper_grows_by_what_the_model_says(scheme):
    """In a job of its own: what other tests have left in memory counts otherwise."""
    if not STATUS.exists():
        pytest.skip("no /proc here: the growth of a process was NOT compared with the model")
    command = ["mpirun", "-n", "2", sys.executable, "-m", "mpi4py", "-m", "tests.growing", "vgg11", scheme]
    ended = execute(command, cwd=ROOT)
    assert ended.status == 0, ended.err
    measured, modelled = ended.json["measured"], ended.json["modelled"]
    assert abs(measured - modelled) <= 0.3 * modelled, (measured, modelled)
