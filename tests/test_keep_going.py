"""``mpiconv run --keep-going``: whatever is killed, every picture has its answer, and no process is left over."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from mpiconv.measure.answers import read_answers
from tests.conftest import ROOT, clean_environment, mpiconv, script
from tests.endless import ended, started, wait_until

DIGITS = ("--model", "digits", "--scheme", "kpm", "--random")


def supervised(path, *words, ranks=2, **environment):
    command = [sys.executable, "-m", "mpiconv", "run", "--keep-going", "-n", ranks, *DIGITS, "--answers", path, *words]
    return started(command, **environment)


def alive(path):
    """Processes of a run, its supervisor apart, by the name of its answers file."""
    found = script("chaos").processes("MPICONV_TEST", path.parent.name, "mpiconv")
    return [pid for pid in found if "--keep-going" not in Path(f"/proc/{pid}/cmdline").read_text()]


def test_the_root_is_killed(monkeypatch, tmp_path):
    """The quick form of scripts/chaos.py: one after another, at random moments; the answers as by the unsplit model."""
    chaos = script("chaos")
    for name, value in clean_environment().items():
        monkeypatch.setenv(name, value)
    options = chaos.parser().parse_args(["--mode=root", "--deaths=2", "--pictures=800", "--ranks=2", "--seed=3"])
    found = chaos.run(tmp_path, "root", 3, options)
    assert found.wrong == [], found.lines
    assert found.restarts == len(found.took["next answer"]) == 2


def test_a_signal_ends_all_of_it(tmp_path):
    path = tmp_path / "a.jsonl"
    with supervised(path, "--repeats", 10**6, MPICONV_TEST=tmp_path.name) as process:
        wait_until(lambda: path.exists() and path.stat().st_size > 0)
        ranks = alive(path)
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        done = ended(process)
        assert time.monotonic() - begin < 5
        assert len(ranks) >= 3
        assert alive(path) == []
    assert done.status == 143, done.err
    answers, size = read_answers(path)
    assert f"ended by SIGTERM with {len(answers)} of 1000000 pictures answered" in done.errors[0]
    assert size == path.stat().st_size


def test_without_a_supervisor_the_answers_stay(tmp_path):
    """No fault tolerance is asked of MPI: a rank is killed, all others are gone within 5 s."""
    path = tmp_path / "a.jsonl"
    command = [
        "mpirun",
        "-n",
        3,
        sys.executable,
        "-m",
        "mpiconv",
        "run",
        *DIGITS,
        "--repeats",
        10**6,
        "--answers",
        path,
    ]
    with started(command, MPICONV_TEST=tmp_path.name) as process:
        wait_until(lambda: path.exists() and path.stat().st_size > 0)
        victim = next(script("chaos").processes("OMPI_COMM_WORLD_RANK", "1", path.parent.name))
        before = len(read_answers(path)[0])
        os.kill(victim, signal.SIGKILL)
        done = ended(process, 5)
        assert done.status != 0
        wait_until(lambda: not alive(path), 5)
    answers = read_answers(path)[0]
    assert len(answers) >= before > 0


FAKE_SSH = "#!/bin/sh\n[ -e {folder}/gone ] && exit 255\nexit 0\n"
FAKE_MPIRUN = """#!{python}
import os, sys
words = sys.argv[1:]
place = words.index("--hostfile")
lines = open(words[place + 1]).read().split()
with open("{folder}/starts", "a") as file:
    print(words[:words.index("--hostfile")], lines, "--plan" in words, file=file)
del words[place : place + 2]
os.environ["PATH"] = os.environ["PATH"].partition(":")[2]
os.execvp("mpirun", ["mpirun", *words])
"""


def test_a_host_that_is_gone_is_done_without(tmp_path):
    """As ssh says when asked; with fewer ranks a plan for all of them is left out."""
    for name, text in (("ssh", FAKE_SSH), ("mpirun", FAKE_MPIRUN)):
        (tmp_path / name).write_text(text.format(folder=tmp_path, python=sys.executable))
        (tmp_path / name).chmod(0o755)
    (tmp_path / "hosts").write_text("localhost slots=1\nfar slots=1  # by ssh\n")
    plan, path = tmp_path / "plan.json", tmp_path / "a.jsonl"
    assert mpiconv(0, "plan", "--model", "digits", "--scheme", "wpm", "--ranks", 2, "--save", plan).status == 0
    words = ["--model", "digits", "--random", "--repeats", 400, "--answers", path, "--plan", plan, "--json"]
    command = [
        sys.executable,
        "-m",
        "mpiconv",
        "run",
        "--keep-going",
        "-n",
        2,
        "--hostfile",
        tmp_path / "hosts",
        *words,
    ]
    with started(command, PATH=f"{tmp_path}:{os.environ['PATH']}") as process:
        wait_until(lambda: path.exists() and path.stat().st_size > 0, every_s=0.01)
        (tmp_path / "gone").touch()
        os.kill(next(script("chaos").processes("OMPI_COMM_WORLD_RANK", "1", path.parent.name)), signal.SIGKILL)
        done = ended(process)
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert (found["restarts"], found["ranks"], len(found["predictions"])) == (1, 1, 400)
    assert "1 of 2 hosts left" in done.err
    assert "without --plan" in done.err
    starts = (tmp_path / "starts").read_text().splitlines()
    assert starts == [
        "['-n', '2'] ['localhost', 'slots=1', 'far', 'slots=1', '#', 'by', 'ssh'] True",
        "['-n', '1'] ['localhost', 'slots=1'] False",
    ]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--ranks", 2], 2, "--ranks is for --keep-going"),
        (["--keep-going", "--launcher", "'"], 2, "no closing quotation"),
        (["--keep-going", "--launcher", "/nosuch/mpirun"], 1, "cannot start /nosuch/mpirun: No such file"),
        (["--keep-going", "--hostfile", "/nosuch/hosts"], 1, "cannot read the hostfile"),
        (["--keep-going", "--max-restarts", "x"], 2, "not a whole number"),
        (["--keep-going", "-n", 2, "--model", "nosuch", "--quiet"], 2, "nosuch"),
    ],
    ids=lambda value: str(value)[-30:],
)
def test_what_no_restart_mends(words, status, said):
    done = mpiconv(0, "run", *words)
    assert (done.status, len(done.errors)) == (status, 1), done.err
    assert said in done.errors[0]


def test_not_under_mpirun():
    done = mpiconv(2, "run", "--keep-going", cwd=ROOT)
    assert (done.status, len(done.errors)) == (2, 1), done.err
    assert "leave out the mpirun in front" in done.errors[0]
