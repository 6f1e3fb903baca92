"""The emulated lab: its descriptions, and, where MPICONV_TEST_LAB is set, a real one (root, Linux, tc)."""

from __future__ import annotations

import importlib.util
import json
import os
import sys

import pytest

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


@pytest.mark.parametrize(
    ("text", "word"),
    [
        pytest.param("mediun = 'switch'", "unknown key 'mediun', is it 'medium'", id="typo"),
        pytest.param("[[device]]\nname = 'a'\npce = 2", "unknown key 'pce', is it 'pace'", id="typo-in-a-device"),
        pytest.param("[[device]]\npace = 2", "name", id="no-name"),
        pytest.param("[[device]]\nname = 'a'\npace = '2'", "pace is '2', a number is wanted", id="text"),
        pytest.param("[[device", "is not TOML", id="toml"),
        pytest.param("", "at least one", id="empty"),
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


def test_a_real_lab():
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
    finally:
        assert lab("down").status == 0
    assert "mpiconv-test-" not in execute(["ip", "netns", "list"]).out
