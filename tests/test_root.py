"""``mpiconv run --root``: any rank may have the pictures; what is read, printed and written is so there."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest

from mpiconv.partition import Plan
from mpiconv.planner.cluster import find_hosts
from mpiconv.planner.estimating import estimate
from tests.conftest import PICTURES, execute, mpiconv
from tests.test_simulation import cluster


def on_three(folders, *words):
    """``mpiconv run WORDS`` on three ranks, each in a folder of its own; stdout says which rank wrote a line."""
    command = [sys.executable, "-m", "mpiconv", "run", *map(str, words)]
    launched = ["mpirun", "--output", "tag"]
    for folder in folders:
        launched += [":"] * (folder is not folders[0]) + ["-n", "1", "--wdir", str(folder), *command]
    return execute(launched)


def test_the_root_alone_reads_answers_and_writes(tmp_path):
    """The shares count the ranks from the root; the devices of a file of other hosts stand in mpirun's order."""
    folders, on = [tmp_path / name for name in "abc"], cluster(50.0, 1.0, 2.0)
    for folder in folders:
        folder.mkdir()
    picture = sorted(PICTURES.iterdir())[0]
    shutil.copy(picture, folders[2] / picture.name)
    on.save(folders[2] / "c.toml")
    words = ("--model", "digits", "--image", picture.name, "--repeats", 4, "--json")
    split = ("--scheme", "wpm", "--shares", "3,2,1", "--cluster", "c.toml")
    ended = on_three(folders, *words, *split, "--root", 2, "--check", "--output", "r.h5")
    assert ended.status == 0, ended.err
    (line,) = (line for line in ended.out.splitlines() if line)
    tag, _, text = line.partition(":")
    assert ",2]" in tag, "the third rank has printed it"
    report = json.loads(text)
    assert report["check"]["max_rel_error"] <= 1e-5
    assert not [*folders[0].iterdir(), *folders[1].iterdir()]
    alone = mpiconv(1, "run", *words, cwd=folders[2]).json
    assert report["predictions"][0]["label"] == alone["predictions"][0]["label"]
    with h5py.File(folders[2] / "r.h5") as file:
        assert (np.diff(file["flops"][:].sum(axis=1)) < 0).all()
        plan = Plan.from_dict(json.loads(file.attrs["plan"]))
    assert "(a, b, c) are not the hosts that run" in ended.err
    assert report["predicted_latency_s"] == pytest.approx(estimate(plan, on.in_order([2, 0, 1])).latency_s)


@pytest.mark.parametrize(
    ("ranks", "root", "message"),
    [(2, "nowhere", "--root nowhere: ranks 0 to 1 run on "), (1, "1", "--root 1: rank 0 alone runs on ")],
)
def test_a_root_that_is_not_there(ranks, root, message):
    ended = mpiconv(ranks, "run", "--model", "digits", "--root", root)
    assert ended.status == 2
    assert len(ended.errors) == 1
    assert message in ended.errors[0]


@pytest.mark.parametrize(
    ("hosts", "wanted"),
    [
        ("abc", [0, 1, 2]),
        ("cab", [2, 0, 1]),
        ("ab", None),
        ("abd", None),
        ("aab", None),
    ],
)
def test_devices_are_found_by_host(hosts, wanted):
    on = cluster(1.0, 2.0, 3.0)
    devices = [replace(device, host=host) for device, host in zip(on.devices, "abc", strict=True)]
    assert find_hosts(devices, list(hosts)) == wanted


def test_devices_of_one_host_are_found_in_their_order():
    devices = [replace(device, host=host) for device, host in zip(cluster(*[1.0] * 4).devices, "abab", strict=True)]
    assert find_hosts(devices, list("bbaa")) == [1, 3, 0, 2]


def test_a_cluster_in_another_order_has_the_same_links():
    on = cluster(1.0, 2.0, 3.0)
    on = replace(on, links=tuple(replace(link, alpha_s=1 + 10 * link.source + link.target) for link in on.links))
    turned = on.in_order([2, 0, 1])
    assert turned.devices == (on.devices[2], on.devices[0], on.devices[1])
    assert turned.link(0, 1).alpha_s == on.link(2, 0).alpha_s
    assert turned.link(2, 1).alpha_s == on.link(1, 0).alpha_s
    assert turned.in_order([1, 2, 0]) == on
