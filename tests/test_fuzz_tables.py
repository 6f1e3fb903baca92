"""Damaged plans, clusters, sweeps, energy profiles and labs: a sentence or a right answer, soon and in little room."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiconv.cli.sweep_check import run_options
from mpiconv.errors import MpiconvError
from mpiconv.measure.energy import load_profile
from mpiconv.partition import Plan, make_plan
from mpiconv.planner.cluster import UNIT_KINDS, Cluster, Device, Link
from mpiconv.study.sweep import read_sweep
from tests.conftest import ROOT
from tests.fuzzing import changed, damaged, fuzzed, sentence_or_answer, toml
from tests.test_measure import record
from tests.test_plan import skeleton

sys.path.insert(0, str(ROOT / "scripts"))
import testbed

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PLANS = [
    json.loads(make_plan(skeleton("digits"), (2, 1, 32, 32), scheme, 3, shares).to_json())
    for scheme, shares in (("kpm", None), ("wpm", [1, 0, 2]), ("grid", [3, 1, 2]))
]
DEVICES = tuple(Device(f"h{i}", 4, 1, 10**9, dict.fromkeys(UNIT_KINDS, 3.5), 2e9) for i in range(3))
CLUSTER = Cluster(DEVICES, tuple(Link(a, b, 1e-4, 1e8) for a in range(3) for b in range(3) if a != b), "switch", 0.9)
SWEEP = {
    "launcher": "mpirun -n {ranks}",
    "timeout_s": 60,
    "fixed": {"model": "digits", "repeats": 2, "check": True, "image": ["a.png", "b c.png"]},
    "grid": {"scheme": ["kpm", "wpm"], "ranks": [1, 2], "shares": [[1, 2], [0.5, 0.5]]},
}
PROFILES = {
    "board": {"compute_power_w": 5, "transfer_power_w": 1.5, "traffic": "multicast", "source": "a"},
    "other": {"k": 1e-27, "frequency_hz": 1e9, "transfer_power_w": 1},
}
ONE_PROFILE = {"board": PROFILES["board"]}
LAB = {
    "medium": "switch",
    "rate_mb_per_s": 12.5,
    "dilation": 2.0,
    "device": [
        {"name": "pi", "count": 2, "pace": 4, "memory_mb": 500},
        {"name": "nx", "latency_ms": 1, "loss_percent": 0.5},
    ],
}


def use_plan(plan):
    assert "rank" in str(plan)
    assert Plan.from_dict(json.loads(plan.to_json())) == plan
    assert sum(plan.shares) > 0


def use_cluster(cluster):
    assert all(cluster.link(link.source, link.target) is link and link.seconds(1e6) > 0 for link in cluster.links)
    assert tomllib.loads(cluster.to_toml())["medium"] == cluster.medium


def use_sweep(sweep):
    for point in sweep.points[:50]:
        assert shlex.join(sweep.command(point, Path("x.h5")))
        assert "/" not in point.name
        assert 0 < len(point.name) < 250


def use_profile(profile):
    for joules in (profile.compute_joules(record()), profile.transfer_joules(record())):
        assert np.isfinite(joules).all()
        assert (joules >= 0).all()


def use_lab(lab):
    try:
        lab.check()
    except testbed.LabError:
        return
    assert all(lab.link_bytes_per_s(device) >= testbed.LEAST_BYTES_PER_S for device in lab.devices)


KINDS = {
    "plan": (PLANS, json.dumps, Plan.load, use_plan, MpiconvError),
    "cluster": ([CLUSTER.to_dict()], toml, Cluster.load, use_cluster, MpiconvError),
    "sweep": ([SWEEP], toml, lambda path: read_sweep(path, run_options()), use_sweep, MpiconvError),
    "energy": (
        [PROFILES, ONE_PROFILE],
        toml,
        lambda p: load_profile(str(p)),
        use_profile,
        MpiconvError,
    ),
    "energy-named": ([PROFILES], toml, lambda p: load_profile(f"{p}:board"), use_profile, MpiconvError),
    "lab": ([LAB], toml, lambda p: testbed.read_lab(str(p)), use_lab, testbed.LabError),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "file.toml"


@pytest.mark.parametrize("kind", KINDS)
def test_whole_files_are_right(kind, path):
    found, text, read, use, error = KINDS[kind]
    path.write_text(text(found[-1]))
    assert sentence_or_answer(lambda: read(path), use, error) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_changed_values(kind, path):
    wholes, text, read, use, error = KINDS[kind]

    @fuzzed()
    @given(st.sampled_from(wholes).flatmap(changed))
    def trial(data):
        path.write_text(text(data))
        sentence_or_answer(lambda: read(path), use, error)

    trial()


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_bytes(kind, path):
    wholes, text, read, use, error = KINDS[kind]

    @fuzzed()
    @given(damaged(text(wholes[0]).encode()))
    def trial(data):
        path.write_bytes(data)
        sentence_or_answer(lambda: read(path), use, error)

    trial()
