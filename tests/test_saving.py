"""A finished measurement is never lost: odd names, full disks, closed pipes, kills, and ``--save-every``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from argparse import ArgumentTypeError

import numpy as np
import pytest

from mpiconv.cli.options import Every
from mpiconv.measure import open_results
from mpiconv.study.sweep import why_not_done
from tests.conftest import PICTURES, ROOT, clean_environment, execute, mpiconv
from tests.endless import ended, endless_run, wait_until

ODD = os.fsdecode(b"caf\xe9\x01")
RUN = ["run", "--model", "digits", "--repeats", "2"]


def failing(code, *words):
    """A command after some code of ours."""
    program = f"import sys; {code}; from mpiconv.cli import main; sys.exit(main(sys.argv[1:]))"
    return execute([sys.executable, "-c", program, *map(str, words)], cwd=ROOT)


NO_ROOM = (
    "import errno, os, mpiconv.files as files\n"
    "def fail(*_): raise OSError(errno.ENOSPC, 'No space left on device')\n"
    "files.os = type('Full', (), {**vars(os), 'fsync': staticmethod(fail)})"
)


def test_odd_names_are_no_reason_to_lose_results(tmp_path):
    picture, out, answers = (tmp_path / f"{ODD}{end}" for end in (".png", ".h5", ".jsonl"))
    picture.write_bytes((PICTURES / "digit-3.png").read_bytes())
    words = [*RUN, "--image", picture, "--output", out, "--answers", answers, "--name", ODD]
    done = mpiconv(2, *words, "--check")
    assert done.status == 0, done.err
    assert r"caf\xe9\x01.png  3" in done.out
    assert open_results(out).attrs["name"] == r"caf\xe9\x01"
    assert json.loads(answers.read_text())["label"] == "3"
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    report = mpiconv(0, "report", out, "--out", tmp_path / f"{ODD}.html", **ascii_only)
    assert report.status == 0, report.err
    assert r"caf\xe9\x01" in (tmp_path / f"{ODD}.html").read_text()
    plain = mpiconv(0, *words, "--json", PYTHONIOENCODING="latin-1")
    assert plain.json["predictions"][0]["image"].endswith(r"caf\xe9\x01.png")


@pytest.mark.parametrize("words", [[], ["--json"], ["--check", "--quiet"]])
def test_a_full_disk_takes_the_file_and_not_the_summary(tmp_path, words):
    out = tmp_path / "r.h5"
    done = failing(NO_ROOM, *RUN, "--output", out, *words)
    assert (done.status, len(done.errors)) == (1, 1), done.err
    assert f"cannot write {out}: No space left on device" in done.errors[0]
    assert done.json["output"] is None if "--json" in words else "latency  median" in done.out
    assert os.listdir(tmp_path) == []


def test_a_folder_that_vanishes_is_made_again(tmp_path):
    folder = tmp_path / "results"
    vanish = "import shutil, mpiconv.runtime.net as e; f = e.DistributedNet.collect\n"
    vanish += f"e.DistributedNet.collect = lambda self: (shutil.rmtree({str(folder)!r}), f(self))[1]"
    done = failing(vanish, *RUN, "--output", folder / "r.h5")
    assert done.status == 0, done.err
    assert open_results(folder / "r.h5").attrs["repeats"] == 2


def test_answers_that_cannot_be_written(tmp_path):
    out = tmp_path / "r.h5"
    fail = "import types, mpiconv.measure.answers as a\ndef fail(*_): raise OSError(28, 'No space left on device')\n"
    fail += "a.os = types.SimpleNamespace(**{**vars(a.os), 'write': fail})"
    done = failing(fail, *RUN, "--output", out, "--answers", tmp_path / "a.jsonl")
    assert (done.status, len(done.errors)) == (1, 1), done.err
    assert "a.jsonl: No space left on device" in done.errors[0]
    assert "latency  median" in done.out
    assert open_results(out).attrs["repeats"] == 2


def test_results_are_there_when_the_check_fails(tmp_path):
    out = tmp_path / "r.h5"
    fail = "import mpiconv.cli.inference as i\ndef fail(*_): raise KeyError('odd')\ni.compared = fail"
    done = failing(fail, *RUN, "--output", out, "--check")
    assert done.status == 1
    assert (open_results(out).attrs["repeats"], why_not_done(out)) == (2, "")


@pytest.mark.parametrize(
    "words", [["plan", "--model", "digits", "--ranks", "9"], ["--help"], ["model", "--json"], ["run", "--help"]]
)
def test_nobody_reads(words):
    command = [sys.executable, "-m", "mpiconv", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment()) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode in (0, 128 + signal.SIGPIPE)


def test_streams_that_are_closed(tmp_path):
    command = f"exec {sys.executable} -m mpiconv {' '.join(RUN)} --output {tmp_path}/r.h5 <&- >&- 2>&-"
    assert execute(["bash", "-c", command]).status == 0
    assert open_results(tmp_path / "r.h5").attrs["repeats"] == 2


@pytest.mark.parametrize(
    ("words", "status", "word"),
    [
        (["--output", "/dev/null"], 1, "cannot write /dev/null: it is a device, name a file"),
        (["--answers", "/dev/full"], 1, "cannot write /dev/full: it is a device, name a file"),
        (["--output", "x.h5", "--answers", "./x.h5"], 2, "--output and --answers are both x.h5"),
        (["--save-every", "5"], 2, "--save-every wants a file to write"),
        (["--save-every", "5m"], 2, "'5m' is neither a number of inferences like 100 nor seconds like 30s"),
    ],
)
def test_refused_before_the_run(words, status, word, tmp_path):
    done = mpiconv(2, *RUN, *words, cwd=tmp_path)
    assert (done.status, len(done.errors)) == (status, 1), done.err
    assert word in done.errors[0]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "every"),
    [("100", Every(100)), ("30s", Every(seconds=30)), ("0.5s", Every(seconds=0.5)), ("1", Every(1))],
)
def test_every(text, every):
    assert Every.of(text) == every
    assert every.over(every.inferences, every.seconds)
    assert not every.over(every.inferences - 1, every.seconds / 2)


@pytest.mark.parametrize(
    "text", ["0", "0s", "s", "-1", "1e3", "nan", "\N{ARABIC-INDIC DIGIT ONE}", "1 s", "9" * 99, ""]
)
def test_no_every(text):
    with pytest.raises(ArgumentTypeError, match="is neither a number"):
        Every.of(text)


@pytest.mark.parametrize("words", [["--in-flight", "1", "--scheme", "kpm"], ["--in-flight", "3", "--scheme", "wpm"]])
def test_what_is_saved_between_counts_once(tmp_path, words):
    out, answers = tmp_path / "r.h5", tmp_path / "a.jsonl"
    words = ["--model", "digits", "--repeats", 23, *words, "--output", out, "--answers", answers, "--json"]
    done = mpiconv(3, "run", *words, "--save-every", 5, "--check")
    assert done.status == 0, done.err
    assert done.json["check"]["max_rel_error"] <= 1e-5
    assert [line["image"] for line in done.json["predictions"]] == [f"random:{i}" for i in range(23)]
    assert [json.loads(line)["index"] for line in answers.read_text().splitlines()] == list(range(23))
    data = open_results(out)
    assert (data.attrs["repeats"], data.attrs["ended_early"], data.latency.shape) == (23, "", (23,))
    begins = data.exchange_start.values[:, 0, 0]
    assert (np.diff(begins) > 0).all()
    assert begins[0] == 0


def test_a_killed_run_leaves_what_it_saved(tmp_path):
    out = tmp_path / "r.h5"
    with endless_run(tmp_path, "mpirun", "-n", 2, more=["--save-every", "20"]) as process:
        wait_until(out.exists)
        os.killpg(process.pid, signal.SIGKILL)
        ended(process)
    data = open_results(out)
    assert (data.attrs["repeats"] % 20, data.attrs["ended_early"]) == (0, "still running")
    assert data.compute_time.shape == (data.attrs["repeats"], 2, 4)
    assert why_not_done(out) == "was still running when it was written last"
    done = mpiconv(2, *RUN, "--output", out)
    assert done.status == 0, done.err
    assert (open_results(out).attrs["repeats"], why_not_done(out)) == (2, "")
    assert [name for name in os.listdir(tmp_path) if name.startswith(".r.h5")] == []
