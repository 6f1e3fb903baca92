"""Sweeps: the grid, resuming, failures, and what a wrong file says."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
from argparse import Namespace

import pytest

from mpiconv.cli.sweep_check import OWN, run_options
from mpiconv.cli.sweep_run import progress
from mpiconv.cli.sweep_run import sweep as cli_sweep
from mpiconv.errors import MpiconvError, UsageError
from mpiconv.measure import open_results
from mpiconv.signals import SIGNALS
from mpiconv.study.sweep import read_sweep
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
    sweep = read_sweep(write(tmp_path, SWEEP), run_options())
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
    point = read_sweep(write(tmp_path, text), run_options()).points[0]
    assert point.words == ("--image", "a.png", "b c.png", "--shares", "1,2", "--input-size", "8x8")
    assert point.name == "shares-1-2_input-size-8x8".replace("input-size", "input_size")


def test_every_option_of_run_can_be_swept():
    """Of those in its help, but what a sweep sets itself."""
    ended = mpiconv(0, "run", "--help")
    words = re.findall(r"^ {1,4}(?:-n N, )?--([a-z-]+)", ended.out, re.MULTILINE)
    found = {option.replace("-", "_") for option in words}
    assert found - set(run_options()) == set(OWN) - {"help", "restarted"}
    assert {"compute", "wire", "in_flight", "no_selfcheck", "plan", "weight_cache", "same_host"} <= set(run_options())


def test_run_resume_and_failures(tmp_path):
    text = SWEEP.replace('scheme = ["kpm", "wpm"]', 'input_size = ["32x32", "3x3"]').replace("[1, 2]", "[2]")
    path, out = write(tmp_path, text), tmp_path / "out"
    ended = mpiconv(0, "sweep", path, "--out", out)
    assert (ended.status, len(ended.errors)) == (1, 1)
    assert "1 of 2 runs failed, the first is input_size-3x3_ranks-2: layer features.5" in ended.errors[0]
    assert "1 run, 1 failed, 1 of 2 done" in ended.out
    lines = [line for line in ended.err.splitlines() if line.startswith("run      ")]
    assert [line.split(";")[0].split(maxsplit=1)[1] for line in lines] == [
        "1 of 2, input_size-32x32_ranks-2", "2 of 2, input_size-3x3_ranks-2",
    ]  # fmt: skip
    assert lines[-1].endswith("0:00:00 to go")
    assert open_results(out / "input_size-32x32_ranks-2.h5").attrs["name"] == "input_size-32x32_ranks-2"
    before = os.stat(out / "input_size-32x32_ranks-2.h5").st_mtime_ns
    listed = mpiconv(0, "sweep", path, "--out", out, "--list")
    assert listed.out.splitlines() == ["done   input_size-32x32_ranks-2", "to do  input_size-3x3_ranks-2"]
    ended = mpiconv(0, "sweep", write(tmp_path, text.replace("3x3", "33x33")), "--out", out)
    assert ended.status == 0, ended.err
    assert "2 points, 1 done already" in ended.err
    assert os.stat(out / "input_size-32x32_ranks-2.h5").st_mtime_ns == before, "a finished point was run again"
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
        read_sweep(write(tmp_path, text), run_options())
    assert "sweep.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("fixed", "grid", "sentence"),
    [
        ("", "scheme = ['kpm', 'kmp']", "scheme-kmp: unknown scheme 'kmp': .*did you mean 'kpm'"),
        ("", "gather = ['pool', 'poool']", "gather-poool: --gather: unknown value 'poool': .*did you mean 'pool'"),
        ("", "model = ['digits', 'vgg12']", "model-vgg12: unknown model 'vgg12': .*did you mean 'vgg1"),
        ("", "repeats = [1, 0]", "repeats-0: --repeats: '0' is not a whole number from 1 up"),
        ("energy = 'papr'", "ranks = [1]", "no energy profile 'papr': .*did you mean 'paper'"),
        ("shares = [1, 1]", "ranks = [2, 3]", "ranks-3: 2 shares for 3 ranks"),
        ("offload = 0.5", "ranks = [2, 3]", "ranks-3: --offload is for 2 ranks"),
        ("pace = [2, 2]", "ranks = [2, 1]", "ranks-1: --pace has 2 numbers for 1 rank"),
        ("weights = 'none.pth'", "ranks = [1]", "there is no none.pth"),
        ("", "image = [['none.png']]", "there is no none.png"),
        ("held_out = 2", "ranks = [1]", "--held-out: '2' is not a number from 0 to 1"),
    ],
)
def test_all_values_are_looked_at_before_the_first_run(tmp_path, fixed, grid, sentence):
    launcher = f"touch {tmp_path}/started {{ranks}}"
    path = write(tmp_path, f"launcher = {json.dumps(launcher)}\n[fixed]\n{fixed}\n[grid]\n{grid}")
    with pytest.raises(UsageError, match=sentence) as caught:
        cli_sweep(Namespace(file=str(path), out=tmp_path / "out", part=(1, 1), count=False, again=False, list=False))
    assert "sweep.toml" in str(caught.value)
    assert not (tmp_path / "started").exists()


@pytest.fixture(autouse=True)
def _signals_as_they_were():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "elapsed_s", "text"),
    [
        (1, 10.0, "0:00:10 so far, 0:01:50 to go"),
        (12, 60.0, "0:01:00 so far, 0:00:00 to go"),
        (3, 3600, "3:00:00 to go"),
    ],
)
def test_the_line_in_a_log(number, elapsed_s, text):
    line = progress(number, 12, "scheme-kpm", elapsed_s)
    assert line.startswith(f"run      {number} of 12, scheme-kpm; ")
    assert line.endswith(text)


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
