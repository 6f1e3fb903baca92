"""Sweeps: the grid, resuming, failures, and what a wrong file says."""

from __future__ import annotations

import json
import os
import shlex
import sys

import pytest

from mpiconv.errors import MpiconvError, UsageError
from mpiconv.measure import open_results
from mpiconv.study.sweep import OPTIONS, read_sweep
from tests.conftest import mpiconv

SWEEP = """
[fixed]
model = "digits"
repeats = 2
check = true
[grid]
scheme = ["kpm", "wpm"]
ranks = [1, 2]
"""


def write(tmp_path, text):
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    return path


def test_points(tmp_path):
    sweep = read_sweep(write(tmp_path, SWEEP))
    assert [point.name for point in sweep.points] == [
        "scheme-kpm_ranks-1", "scheme-kpm_ranks-2", "scheme-wpm_ranks-1", "scheme-wpm_ranks-2",
    ]  # fmt: skip
    command = sweep.command(sweep.points[3], tmp_path / "x.h5")
    assert command[:4] == ["mpirun", "-n", "2", sys.executable]
    assert "--model digits --repeats 2 --check --scheme wpm" in shlex.join(command)


def test_lists_and_switches(tmp_path):
    text = (
        '[fixed]\nimage = ["a.png", "b c.png"]\ncheck = false\n[grid]\nshares = [[1, 2], [2, 1]]\ninput_size = ["8x8"]'
    )
    point = read_sweep(write(tmp_path, text)).points[0]
    assert point.words == ("--image", "a.png", "b c.png", "--shares", "1,2", "--input-size", "8x8")
    assert point.name == "shares-1-2_input-size-8x8".replace("input-size", "input_size")


def test_every_option_is_one_of_run():
    ended = mpiconv(0, "run", "--help")
    assert all(f"--{option.replace('_', '-')}" in ended.out for option in OPTIONS if option != "ranks")


def test_run_resume_and_failures(tmp_path):
    text = SWEEP.replace('["kpm", "wpm"]', '["kpm", "nonsense"]').replace("[1, 2]", "[2]")
    path, out = write(tmp_path, text), tmp_path / "out"
    ended = mpiconv(0, "sweep", path, "--out", out)
    assert (ended.status, len(ended.errors)) == (1, 1)
    assert "1 of 2 runs failed, the first is scheme-nonsense_ranks-2: unknown scheme 'nonsense'" in ended.errors[0]
    assert "1 run, 1 failed, 1 of 2 done" in ended.out
    assert open_results(out / "scheme-kpm_ranks-2.h5").attrs["name"] == "scheme-kpm_ranks-2"
    before = os.stat(out / "scheme-kpm_ranks-2.h5").st_mtime_ns
    listed = mpiconv(0, "sweep", path, "--out", out, "--list")
    assert listed.out.splitlines() == ["done   scheme-kpm_ranks-2", "to do  scheme-nonsense_ranks-2"]
    ended = mpiconv(0, "sweep", write(tmp_path, text.replace("nonsense", "single")), "--out", out)
    assert ended.status == 0, ended.err
    assert "2 points, 1 done already" in ended.err
    assert os.stat(out / "scheme-kpm_ranks-2.h5").st_mtime_ns == before, "a finished point was run again"
    assert mpiconv(0, "sweep", path, "--out", out, "--part", "1/2").status == 0


@pytest.mark.parametrize(
    ("text", "kind", "word"),
    [
        ("[gird]\nranks = [1]", UsageError, "unknown key 'gird'; did you mean 'grid'"),
        ("[grid]\nshceme = ['kpm']", UsageError, "unknown key 'shceme'; did you mean 'scheme'"),
        ("[fixed]\nmodel = 'digits'", UsageError, r"a table \[grid\] with at least one option"),
        ("[grid]\nranks = 2", UsageError, "ranks in .* is 2: a list of values"),
        ("[grid]\nranks = ['2']", UsageError, "ranks is '2': a whole number"),
        ("[grid]\nranks = [2, 2]", UsageError, "a value stands twice"),
        ("[fixed]\nranks = 2\n[grid]\nranks = [2]", UsageError, "ranks is both in"),
        ("launcher = 'mpirun'\n[grid]\nranks = [2]", UsageError, r"a command with \{ranks\} in it"),
        ("timeout_s = 0\n[grid]\nranks = [2]", UsageError, "timeout_s is 0"),
        ("[grid", MpiconvError, "is not TOML"),
    ],
)
def test_wrong_files(tmp_path, text, kind, word):
    with pytest.raises(kind, match=word) as caught:
        read_sweep(write(tmp_path, text))
    assert "sweep.toml" in str(caught.value)


def test_wrong_commands(tmp_path):
    ended = mpiconv(0, "sweep", tmp_path / "none.toml")
    assert (ended.status, len(ended.errors)) == (1, 1)
    assert "none.toml: No such file" in ended.errors[0]
    assert "'3/2' is not I/N" in mpiconv(0, "sweep", write(tmp_path, SWEEP), "--part", "3/2").errors[0]


@pytest.mark.parametrize(
    ("launcher", "word"),
    [
        (f"{sys.executable} -c 'import time; time.sleep(60)' {{ranks}}", "did not end within 1 s"),
        ("nowhere {ranks}", "cannot start nowhere"),
    ],
)
def test_a_job_that_hangs_or_cannot_start(tmp_path, launcher, word):
    path = write(tmp_path, f"launcher = {json.dumps(launcher)}\ntimeout_s = 1\n[grid]\nranks = [1]")
    ended = mpiconv(0, "sweep", path, "--out", tmp_path / "out", timeout=30)
    assert word in ended.errors[0]
