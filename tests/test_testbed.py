"""The emulated lab: its descriptions, and, where MPICONV_TEST_LAB is set, a real one (root, Linux, tc)."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import numpy as np
import pytest

from mpiconv.planner.cluster import Cluster
from mpiconv.study.sweep import why_not_done
from tests.conftest import ROOT, execute, script
from tests.endless import ended, endless_run, measuring, wait_until

pytestmark = pytest.mark.alone
SCRIPT = ROOT / "scripts" / "testbed.py"
testbed = script("testbed")


def test_labs_that_come_along_are_right():
    for path in (ROOT / "hostfiles" / "labs").glob("*.toml"):
        lab = testbed.read_lab(str(path))
        lab.check()
        assert lab.devices


def test_count_and_changes(tmp_path):
    path = tmp_path / "lab.toml"
    path.write_text("rate_mb_per_s = 5\n[[device]]\nname = 'edge'\ncount = 3\npace = 2\nrate_mb_per_s = 7\n")
    lab = testbed.read_lab(str(path))
    assert [(device.name, device.pace) for device in lab.devices] == [("edge1", 2), ("edge2", 2), ("edge3", 2)]
    assert lab.changed(None, None, None) == lab
    assert lab.link_bytes_per_s(lab.devices[0]) == 7e6
    changed = lab.changed(10, "shared", 4)
    assert (changed.medium, changed.dilation) == ("shared", 4)
    assert changed.link_bytes_per_s(changed.devices[0]) == 2.5e6


@pytest.mark.parametrize(
    ("words", "error"),
    [
        pytest.param({"ranks": 4}, "4 ranks: the lab 'x' has 3 devices", id="ranks"),
        pytest.param({"ranks": 3, "hosts": ["a", "b"]}, "3 ranks: --hosts names 2 devices", id="ranks-of-hosts"),
        pytest.param({"ranks": None, "hosts": ["a", "pi"]}, "'pi' is none of a, b, c", id="unknown"),
        pytest.param({"ranks": None, "hosts": ["a", "a"]}, "'a' is asked for twice", id="twice"),
    ],
)
def test_runs_that_are_refused(words, error, tmp_path, monkeypatch):
    monkeypatch.setattr(testbed, "STATE", tmp_path)
    (tmp_path / "x").mkdir()
    lab = {"devices": [{"name": name, "pace": 1} for name in "abc"], "dilation": 1}
    (tmp_path / "x" / "state.json").write_text(json.dumps({"lab": lab, "addresses": dict.fromkeys("abc", "")}))
    with pytest.raises(testbed.LabError, match=error):
        testbed.Testbed("x").run(["true"], **words)


def test_a_job_that_does_not_end():
    begin = time.monotonic()
    with pytest.raises(testbed.LabError, match=r"did not end within 0\.5 s"):
        testbed.run_within([sys.executable, "-c", "import time; time.sleep(60)"], dict(os.environ), 0.5)
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize(
    ("text", "word"),
    [
        pytest.param("mediun = 'switch'", "unknown key 'mediun', is it 'medium'", id="typo"),
        pytest.param("[[device]]\nname = 'a'\npce = 2", "unknown key 'pce', is it 'pace'", id="typo-in-a-device"),
        pytest.param("[[device]]\npace = 2", "name", id="no-name"),
        pytest.param("[[device]]\nname = 'a'\npace = '2'", "pace is '2', a number is wanted", id="text"),
        pytest.param("[[device", "is not TOML", id="toml"),
        pytest.param("", "at least one", id="empty"),
        pytest.param("[[device]]\nname = 'a'\ncount = 1.5", "count is 1.5, a whole number", id="count"),
        pytest.param("[[device]]\nname = 'a'\ncount = 254", "from 1 to 253", id="count-too-many"),
        pytest.param("[[device]]\nname = 'a'\n[[device]]\nname = 'a'", "device name 'a': unique", id="twice"),
        pytest.param("[[device]]\nname = 'A b'", "device name 'A b'", id="name"),
        pytest.param("[[device]]\nname = 'a'\npace = 0.5", "pace 0.5: this core cannot", id="pace"),
        pytest.param(
            "rate_mb_per_s = 0.001\n[[device]]\nname = 'a'", "too slow for the kernel's TBF: 0.02 MB/s", id="rate"
        ),
        pytest.param("medium = 'air'\n[[device]]\nname = 'a'", "medium 'air': switch or shared", id="medium"),
        pytest.param("dilation = 0.1\n[[device]]\nname = 'a'", "dilation 0.1", id="dilation"),
        pytest.param("".join(f"[[device]]\nname = 'd{i}'\n" for i in range(254)), "254 devices", id="too-many"),
    ],
)
def test_labs_that_are_refused(text, word, tmp_path):
    path = tmp_path / "lab.toml"
    path.write_text(text)
    with pytest.raises(testbed.LabError) as caught:
        testbed.read_lab(str(path)).check()
    assert word in str(caught.value)


NAME = "test"
DEVICES = 4
MPICONV = [sys.executable, "-m", "mpiconv"]


def lab(*words: object, timeout: float = 60):
    return execute([sys.executable, str(SCRIPT), "--name", NAME, *map(str, words)], timeout=timeout)


@pytest.fixture(scope="module")
def a_lab():
    """A lab of four devices, taken down at the end whatever happens; every command has a time-out."""
    if not os.environ.get("MPICONV_TEST_LAB"):
        pytest.skip("the emulated lab was not tried: MPICONV_TEST_LAB=1 as root on Linux with tc does")
    assert "is not up" in lab("run", "--", "hostname").err
    try:
        up = lab("up", "--devices", DEVICES, "--rate", 12.5)
        assert up.status == 0, up.err
        yield
    finally:
        assert lab("down").status == 0
    assert f"mpiconv-{NAME}-" not in execute(["ip", "netns", "list"]).out


def in_lab(*words: object, hosts: str = "", timeout: int = 90):
    """``mpiconv WORDS`` on the devices; ended by the testbed itself if it takes too long."""
    chosen = ["--hosts", hosts] if hosts else []
    ended = lab("run", "--timeout", timeout, *chosen, "--", *MPICONV, *words, timeout=timeout + 30)
    assert ended.status == 0, ended.err
    return ended


def test_a_lab_that_is_up_already(a_lab):
    assert "already up" in lab("up", "--devices", 2).err
    assert "'edge9' is none of edge1, edge2, edge3, edge4" in lab("run", "--hosts", "edge9", "--", "true").err


def test_four_hosts_on_slow_links(a_lab):
    found = in_lab("doctor", "--json").json
    assert [rank["host"] for rank in found["ranks"]] == ["edge1", "edge2", "edge3", "edge4"]
    rates = [rate for row in found["bytes_per_s"] for rate in row if rate is not None]
    assert all(11e6 <= rate <= 13e6 for rate in rates), rates


def test_rank_0_is_on_the_first_host(a_lab):
    found = in_lab("doctor", "--json", hosts="edge3,edge1").json
    assert [rank["host"] for rank in found["ranks"]] == ["edge3", "edge1"]


@pytest.mark.parametrize("model", ["alexnet", "vgg11"])
@pytest.mark.parametrize("scheme", ["kpm", "wpm"])
def test_exact_and_bytes_on_the_wire(a_lab, model, scheme):
    """The answers equal the unsplit model's; the links carry the weights, and for every picture what was counted."""
    carried, weights, per_picture = carry(model, scheme, 2)
    assert carried == pytest.approx(2 * per_picture + weights, rel=0.1)
    if (model, scheme) == ("alexnet", "kpm"):  # the pictures alone
        more, *_ = carry(model, scheme, 12)
        assert more - carried == pytest.approx(10 * per_picture, rel=0.1)


def test_a_second_start_sends_hashes(a_lab, tmp_path):
    """By rows every rank has all kernels; of the links' bytes each counts at both of its ends."""
    words = ["--model", "vgg11", "--scheme", "wpm", "--repeats", 1, "--warmup", 0, "--check", "--json"]
    carried, reports = [], []
    for _ in range(2):
        before = traffic()
        reports.append(in_lab("run", *words, "--weight-cache", tmp_path / "cache", timeout=150).json)
        carried.append((traffic() - before).sum() - sum(reports[-1]["bytes_received"]) - sum(reports[-1]["bytes_sent"]))
    assert all(report["check"]["max_rel_error"] <= 1e-5 for report in reports)
    weights = sum(reports[0]["weights_received_bytes"])
    assert weights == sum(reports[0]["weight_bytes"][1:])
    assert sum(reports[1]["weights_received_bytes"]) == 0
    print(
        f"first start {carried[0] / 2 / weights:.4f} of the weights on the links, second {carried[1] / 2 / weights:.4f}"
    )
    assert carried[1] < 0.01 * carried[0]


def carry(model: str, scheme: str, repeats: int) -> tuple[float, float, float]:
    """Run and check; B that the links carried, of weights, and of one picture as counted. Each link counts its end."""
    before = traffic()
    words = ["--model", model, "--scheme", scheme, "--repeats", repeats, "--warmup", 0, "--check", "--json"]
    words += ["--weight-cache", "off"]
    report = in_lab("run", *words, timeout=150).json
    assert report["check"]["max_rel_error"] <= 1e-5
    counted = sum(report["bytes_received"]) + sum(report["bytes_sent"])
    return float((traffic() - before).sum()), 2.0 * sum(report["weight_bytes"][1:]), counted


def traffic() -> np.ndarray:
    """B over each device's link so far, both ways."""
    return np.array([sum(testbed.link_bytes(f"mpiconv-{NAME}-edge{i}")) for i in range(1, DEVICES + 1)])


def test_probe_finds_the_links(a_lab, tmp_path):
    in_lab("probe", "--quick", "--out", tmp_path / "c.toml", timeout=180)
    cluster = Cluster.load(tmp_path / "c.toml")
    assert cluster.emulated
    assert all(11e6 <= link.beta_bytes_per_s <= 13e6 for link in cluster.links), cluster.links


@pytest.mark.parametrize("medium", ["switch", "shared"])
def test_three_devices_tell_the_medium(medium, tmp_path):
    if not os.environ.get("MPICONV_TEST_LAB"):
        pytest.skip("the emulated lab was not tried: MPICONV_TEST_LAB=1 as root on Linux with tc does")
    three = [sys.executable, str(SCRIPT), "--name", f"{NAME}3"]
    try:
        up = execute([*three, "up", "--devices", "3", "--rate", "12.5", "--medium", medium])
        assert up.status == 0, up.err
        words = ["run", "--timeout", "60", "--", *MPICONV, "probe", "--quick", "--json"]
        probed = execute([*three, *words, "--out", str(tmp_path / "c.toml")])
        assert probed.status == 0, probed.err
    finally:
        execute([*three, "down"])
    assert probed.json["medium"] == medium
    assert probed.json["medium_ratio"] == pytest.approx(1 if medium == "switch" else 1 / 3, rel=0.25)


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_a_signal_ends_a_run_with_its_results(a_lab, tmp_path, name):
    with endless_run(tmp_path, sys.executable, SCRIPT, "--name", NAME, "run", "-n", 2, "--") as process:
        wait_until(lambda: measuring(tmp_path))
        process.send_signal(signal.Signals[name])
        done = ended(process)
    assert done.status == 0, done.err
    assert why_not_done(tmp_path / "r.h5") == "ended early by SIGUSR1"


def test_a_device_that_went_silent_is_named(a_lab):
    """The last one, for it leaves the lab without that device."""
    execute(["ip", "-n", f"mpiconv-{NAME}-edge2", "link", "set", "eth0", "down"])
    ended = lab("run", "--", "hostname")
    assert ended.status == 1
    assert "the device edge2" in ended.err
    assert ended.seconds < 30
