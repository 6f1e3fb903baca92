"""SIGUSR1 and SIGTERM: a run ends early and whole, a sweep leaves the rest, the batch scripts queue again."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager

import pytest

from mpiconv.errors import MpiconvError
from mpiconv.measure import open_results
from mpiconv.runtime.trials import WARM
from mpiconv.study.sweep import is_done, why_not_done
from tests.conftest import ROOT, execute, mpiconv
from tests.endless import REPEATS, EndlessSweep, ended, endless_run, measuring, started, wait_until

FRAME = "mpiconv.runtime.frames:Slot.run"


def signalled(ranks, rank, name, place, call, *words):
    """A run of which one rank signals itself at the n-th call of a function."""
    launcher = ["mpirun", "-n", ranks, sys.executable, "-m", "tests.injected"]
    return execute([str(w) for w in (*launcher, rank, name, place, call, "run", "--model", "digits", *words)], cwd=ROOT)


@pytest.mark.parametrize(
    ("ranks", "rank", "name", "words"),
    [
        pytest.param(3, 2, "SIGUSR1", ["--scheme", "kpm"], id="last-rank"),
        pytest.param(3, 1, "SIGTERM", ["--scheme", "wpm", "--shares", "1,0,1"], id="idle-rank"),
        pytest.param(3, 0, "SIGTERM", ["--scheme", "kpm"], id="root"),
    ],
)
def test_a_rank_is_signalled(ranks, rank, name, words, tmp_path):
    out, call, warmup = tmp_path / "r.h5", 6, 2
    words = [*words, "--warmup", warmup, "--repeats", 5000, "--output", out, "--check", "--json"]
    done = signalled(ranks, rank, name, FRAME, call, *words)
    assert done.status == 0, done.err
    repeats = call - warmup
    run = open_results(out)
    found = run.attrs["repeats"]
    assert found == repeats or (rank and repeats < found < 5000), "not after the current repeat"
    assert run.latency.shape == (found,)
    assert run.compute_time.shape == (found, ranks, 4)
    assert run.attrs["ended_early"] == name
    assert done.err.count(f"mpiconv: note: ended by {name} after {found} of 5000 repeats") == 1
    assert done.json["check"]["equal"] or "wpm" in words
    assert len(done.json["predictions"]) == found


def test_while_plans_are_tried(file_of, tmp_path):
    """What the last plan was measured to take is written, under its scheme."""
    out, (warmup, warm, timed) = tmp_path / "r.h5", (2, WARM, 3)
    words = ["--scheme", "auto", "--cluster", file_of(2), "--repeats", 5000, "--warmup", warmup, "--output", out]
    done = signalled(2, 0, "SIGUSR1", FRAME, warmup + warm + timed, *words, "--check", "--json")
    assert done.status == 0, done.err
    assert done.json["scheme"] == "single"
    run = open_results(out)
    assert (run.attrs["ended_early"], run.attrs["scheme"]) == ("SIGUSR1", "single")
    assert len(run.latency) == warm + timed


def test_pictures_without_an_answer_are_counted(tmp_path):
    words = ["--data", ROOT / "scripts" / "pictures", "--batch", 2, "--repeats", 1, "--warmup", 0]
    done = signalled(2, 0, "SIGUSR1", FRAME, 2, *words, "--answers", tmp_path / "a.jsonl")
    assert done.status == 0, done.err
    assert "after 2 of 6 repeats; 7 of 11 pictures have no answer" in done.err
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("rank", "place", "call"),
    [
        pytest.param(1, "mpiconv.runtime.weights:Weights._moved", 1, id="weights"),
        pytest.param(0, FRAME, 1, id="warm-up"),
    ],
)
def test_before_the_first_repeat(rank, place, call, tmp_path):
    done = signalled(2, rank, "SIGUSR1", place, call, "--warmup", 1000, "--output", tmp_path / "r.h5")
    assert (done.status, len(done.errors)) == (1, 1), done.err
    assert "ended by SIGUSR1 before the first repeat: nothing was measured" in done.errors[0]
    assert list(tmp_path.iterdir()) == []


def test_after_the_last_repeat_nothing_is_lost(tmp_path):
    write, out = "mpiconv.cli.inference:write_results", tmp_path / "r.h5"
    done = signalled(2, 0, "SIGTERM", write, 1, "--repeats", 3, "--output", out)
    assert done.status == 0, done.err
    assert (open_results(out).attrs["repeats"], is_done(out)) == (3, True)


def test_mpirun_hands_sigusr1_to_the_ranks(tmp_path):
    with endless_run(tmp_path, "mpirun", "-n", 3) as process:
        wait_until(lambda: measuring(tmp_path))
        process.send_signal(signal.SIGUSR1)
        done = ended(process)
    assert done.status == 0, done.err
    assert f"({open_results(tmp_path / 'r.h5').attrs['repeats']} repeats)" in done.out
    assert why_not_done(tmp_path / "r.h5") == "ended early by SIGUSR1"


def test_mpirun_ends_at_sigterm_and_leaves_no_broken_file(tmp_path):
    """Open MPI kills the ranks half a second after it: they may or may not get to write their results."""
    with endless_run(tmp_path, "mpirun", "-n", 3) as process:
        wait_until(lambda: measuring(tmp_path))
        process.send_signal(signal.SIGTERM)
        assert ended(process).status != 0
    if (tmp_path / "r.h5").exists():
        assert why_not_done(tmp_path / "r.h5") == "ended early by SIGTERM"


def test_a_sweep_leaves_the_rest_and_goes_on_later(tmp_path):
    """Also at SIGTERM, which mpirun alone would not survive: the sweep passes it on as SIGUSR1."""
    sweep = EndlessSweep(tmp_path, ["kpm", "wpm", "single"])
    command = [sys.executable, "-m", "mpiconv", "sweep", sweep.toml, "--out", sweep.out]
    with started(command) as process:
        sweep.wait_until_it_measures()
        process.send_signal(signal.SIGTERM)
        done = ended(process)
    assert (done.status, len(done.errors)) == (1, 1), done.err
    left = "ended by SIGTERM with 2 of 3 runs left (scheme-wpm, scheme-single); run the same again to go on"
    assert left in done.errors[0]
    assert "1 run, 0 failed, 1 of 3 done" in done.out
    early = open_results(sweep.result("wpm"))
    assert early.attrs["ended_early"] == "SIGUSR1"
    assert len(early.latency) == early.attrs["repeats"] > 0
    assert not sweep.result("single").exists()
    before = os.stat(sweep.result("kpm")).st_mtime_ns
    listed = mpiconv(0, "sweep", sweep.toml, "--out", sweep.out, "--list").out.split("\n")
    assert listed[:3] == ["done   scheme-kpm", "to do  scheme-wpm", "to do  scheme-single"]
    again = mpiconv(0, "sweep", sweep.toml, "--out", sweep.out)
    assert again.status == 0, again.err
    assert os.stat(sweep.result("kpm")).st_mtime_ns == before, "a finished point was run again"
    assert open_results(sweep.result("wpm")).attrs["repeats"] == REPEATS


def test_a_launcher_that_dies_of_the_signal(tmp_path):
    """It passed nothing on: what it started is ended all the same, and the point is to be done again."""
    pid = tmp_path / "pid"
    launcher = f"bash -c 'sleep 300 & echo $! > {pid}; wait' {{ranks}}"
    (tmp_path / "s.toml").write_text(f'launcher = "{launcher}"\n[grid]\nranks = [1]')
    with started([sys.executable, "-m", "mpiconv", "sweep", tmp_path / "s.toml", "--out", tmp_path]) as process:
        wait_until(lambda: pid.exists() and pid.read_text().strip())
        process.send_signal(signal.SIGUSR1)
        assert "with 1 of 1 runs left (ranks-1)" in ended(process).errors[0]
    with pytest.raises(ProcessLookupError):
        wait_until(lambda: os.kill(int(pid.read_text()), 0), 10)


def test_counting(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text("[grid]\nranks = [1, 2, 3]\nscheme = ['kpm']")
    assert mpiconv(0, "sweep", path, "--count").out == "3\n"
    assert mpiconv(0, "sweep", path, "--count", "--part", "2/2").out == "1\n"


def test_why_not_done(tmp_path):
    assert "no such file" in why_not_done(tmp_path / "none.h5")
    with pytest.raises(MpiconvError):
        open_results(tmp_path / "none.h5")


@contextmanager
def batch_script(tmp_path, name, *words, **environment):
    """A batch script as SLURM would start it, but for a scontrol that writes down what it is asked."""
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "scontrol"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    fake.chmod(0o755)
    (tmp_path / "bin" / "mpiconv").symlink_to(os.path.join(os.path.dirname(sys.executable), "mpiconv"))
    path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
    variables = {"PATH": path, "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(ROOT), **environment}
    with started(["bash", ROOT / "scripts" / "slurm" / name, *words], **variables) as process:
        yield process


def test_the_script_of_a_run_ends_with_its_status(tmp_path):
    words = ["--model", "digits", "--scheme", "kpm", "--repeats", 1000000, "--answers", tmp_path / "a"]
    with batch_script(
        tmp_path, "run.sbatch", *words, OUTPUT=str(tmp_path / "r.h5"), MPIRUN="mpirun -n 2", SLURM_CPUS_PER_TASK="2"
    ) as process:
        wait_until(lambda: measuring(tmp_path))
        process.send_signal(signal.SIGUSR1)
        assert ended(process).status == 0
    run = open_results(tmp_path / "r.h5")
    assert (run.attrs["ended_early"], run.threads.values.tolist()) == ("SIGUSR1", [2, 2])
    assert not (tmp_path / "asked").exists(), "a run that ended early has its results; the same again gives no more"


@pytest.mark.parametrize(
    ("schemes", "status", "requeued", "word"),
    [
        pytest.param(["kpm", "wpm"], 0, ["requeue 7"], "1 points of part 1/1 are left", id="work-left"),
        pytest.param(
            ["wpm", "kpm"], 1, [], "no point of part 1/1 was finished within the time limit", id="no-progress"
        ),
    ],
)
def test_the_script_of_a_sweep_queues_again_where_it_got_on(schemes, status, requeued, word, tmp_path):
    sweep = EndlessSweep(tmp_path, schemes)
    with batch_script(tmp_path, "sweep.sbatch", sweep.toml, "--out", sweep.out) as process:
        sweep.wait_until_it_measures()
        process.send_signal(signal.SIGUSR1)
        done = ended(process)
    assert done.status == status, done.err
    assert word in done.err
    asked = (tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").exists() else []
    assert asked == requeued


@pytest.mark.parametrize(
    ("variables", "status", "word"),
    [
        pytest.param({"VENV": "/nowhere"}, 1, "no virtual environment in /nowhere", id="venv"),
        pytest.param({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "4"}, 2, "'0/4' is not I/N", id="from-0"),
    ],
)
def test_the_script_of_a_sweep_refuses(variables, status, word, tmp_path):
    sweep = EndlessSweep(tmp_path, ["kpm"])
    with batch_script(tmp_path, "sweep.sbatch", sweep.toml, **variables) as process:
        done = ended(process)
    assert done.status == status
    assert word in done.err
