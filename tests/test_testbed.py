"""The emulated lab: its descriptions, and, where MPICONV_TEST_LAB is set, a real one (root, Linux, tc)."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time

import pytest

from mpiconv.partition.cluster import Cluster
from tests.conftest import ROOT, execute

SCRIPT = ROOT / "scripts" / "testbed.py"
SPEC = importlib.util.spec_from_file_location("testbed", SCRIPT)
testbed = importlib.util.module_from_spec(SPEC)
sys.modules["testbed"] = testbed
SPEC.loader.exec_module(testbed)


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


def lab(*words: object, timeout: float = 60):
    return execute([sys.executable, str(SCRIPT), "--name", "test", *map(str, words)], timeout=timeout)


def test_a_real_lab(tmp_path):
    if not os.environ.get("MPICONV_TEST_LAB"):
        pytest.skip("the emulated lab was not tried: MPICONV_TEST_LAB=1 as root on Linux with tc does")
    assert "is not up" in lab("run", "--", "hostname").err
    try:
        up = lab("up", "--devices", 3, "--rate", 12.5)
        assert up.status == 0, up.err
        assert "already up" in lab("up", "--devices", 2).err
        ended = lab("run", "--", sys.executable, "-m", "mpiconv", "doctor", "--json", timeout=120)
        assert ended.status == 0, ended.err
        found = json.loads(ended.out)
        assert [rank["host"] for rank in found["ranks"]] == ["edge1", "edge2", "edge3"]
        rates = [rate for row in found["bytes_per_s"] for rate in row if rate is not None]
        assert all(11e6 <= rate <= 13e6 for rate in rates), rates
        ended = lab(
            "run", "--", sys.executable, "-m", "mpiconv", "probe", "--quick", "--out", tmp_path / "c.toml", timeout=180
        )
        assert ended.status == 0, ended.err
        cluster = Cluster.load(tmp_path / "c.toml")
        assert cluster.emulated
        assert all(11e6 <= link.beta_bytes_per_s <= 13e6 for link in cluster.links), cluster.links
        before = testbed.link_bytes("mpiconv-test-edge2")
        words = ["run", "--model", "alexnet", "--check", "--json", "--repeats", 20, "--warmup", 0]
        ended = lab("run", "--", sys.executable, "-m", "mpiconv", *words, timeout=120)
        assert ended.status == 0, ended.err
        report = json.loads(ended.out)
        assert report["check"]["equal"]
        moved = [now - then for now, then in zip(testbed.link_bytes("mpiconv-test-edge2"), before, strict=True)]
        weights = report["weight_bytes"][1]
        assert moved[0] == pytest.approx(20 * report["bytes_received"][1] + weights, rel=0.1)
        assert moved[1] == pytest.approx(20 * report["bytes_sent"][1], rel=0.1)
        execute(["ip", "-n", "mpiconv-test-edge2", "link", "set", "eth0", "down"])
        ended = lab("run", "--", "hostname")
        assert ended.status == 1
        assert "the device edge2" in ended.err
        assert ended.seconds < 30
    finally:
        assert lab("down").status == 0
    assert "mpiconv-test-" not in execute(["ip", "netns", "list"]).out
