"""What the probe measures, what it makes of it, and the file that it writes."""

from __future__ import annotations

import sys

import pytest
import torch

from mpiconv.measure.estimate import fit_link, scatter, undisturbed
from mpiconv.planner.cluster import UNIT_KINDS, Cluster
from mpiconv.probe.speed import CASES, make_work
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
    assert cluster.medium_reason.startswith(f"{ranks} ranks" if ranks < 4 else "the ranks are on 1 hosts")
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
        (0, "mpiconv.planner.cluster:Cluster.save"),
    ],
)
def test_a_failure_on_any_rank_ends_all(rank, place, tmp_path):
    words = ["probe", "--repeats", "1", "--out", str(tmp_path / "c.toml")]
    ended = execute(
        ["mpirun", "-n", "3", sys.executable, "-m", "tests.broken_rank", str(rank), place, *words], cwd=ROOT
    )
    assert (ended.status, len(ended.errors)) == (1, 1), ended.err
    assert f"rank {rank}: RuntimeError" in ended.errors[0]
    assert not (tmp_path / "c.toml").exists()
