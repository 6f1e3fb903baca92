"""The batch scripts on a real SLURM, where MPICONV_TEST_SLURM names its slurm.conf (scripts/slurm/setup.sh)."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import pytest

from mpiconv.measure import open_results
from mpiconv.study.sweep import is_done
from tests.conftest import ROOT, execute, mpiconv
from tests.endless import REPEATS, EndlessSweep, wait_until

pytestmark = pytest.mark.alone
CONF = os.environ.get("MPICONV_TEST_SLURM", "")
SCRIPTS = ROOT / "scripts" / "slurm"
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")

needs_slurm = pytest.mark.skipif(not CONF, reason="no SLURM was tried: MPICONV_TEST_SLURM is not set")


def slurm(*words, **environment):
    """A SLURM command, its output; the variables go into the job."""
    bin_folder = os.path.dirname(sys.executable)
    environment |= {"SLURM_CONF": CONF, "PATH": os.pathsep.join([bin_folder, os.environ["PATH"]])}
    if os.path.exists(os.path.join(bin_folder, "activate")):
        environment["VENV"] = os.path.dirname(bin_folder)
    environment["OMPI_MCA_mpi_yield_when_idle"] = "1"  # the jobs share a few cores
    ended = execute([str(word) for word in words], cwd=ROOT, **environment)
    assert ended.status == 0, ended.err
    return ended.out.strip()


def tasks(job):
    """What scontrol knows of a job: a dictionary for each of its array tasks, or one."""
    lines = slurm("scontrol", "show", "job", "--oneliner", job).splitlines()
    return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]


def wait_for(job, timeout_s=300):
    """The tasks of a job, when all are over."""

    def over():
        found = tasks(job)
        return found if all(task["JobState"] in OVER for task in found) else None

    return wait_until(over, timeout_s, 0.5)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """All jobs of this file, submitted at once: the one that has to wait for its time limit leaves time for the others.

    Their names and numbers, and the folder of their files.
    """
    folder: Path = tmp_path_factory.mktemp("slurm")
    sweep = EndlessSweep(folder, ["kpm", "wpm"])
    grid = folder / "grid.toml"
    grid.write_text("[fixed]\nmodel = 'digits'\nrepeats = 2\n[grid]\nscheme = ['kpm', 'wpm']\nranks = [1, 2]")

    def submit(script, *words, options=(), **environment):
        command = ("sbatch", "--parsable", f"--output={folder}/%x-%A_%a.log", *options, SCRIPTS / script, *words)
        return slurm(*command, **environment)

    # SLURM looks at the time every 30 s, so the signal comes 10 to 40 s before the limit. By then two runs have to be
    # through or measuring, beside the other jobs; on a machine that is busy now that takes another minute or more.
    one_run_s = mpiconv(2, "run", "--model", "digits", "--repeats", REPEATS, "--quiet").seconds
    minutes = math.ceil((40 + 5 * one_run_s) / 60)
    limit = ("--job-name=limit", "--array=1", f"--time={minutes}", "--signal=B:USR1@10")
    made = {
        "limit": submit("sweep.sbatch", sweep.toml, "--out", sweep.out, options=limit),
        "run": submit("run.sbatch", "--model", "digits", "--check", "--repeats", 7, OUTPUT=str(folder / "run.h5")),
        "array": submit("sweep.sbatch", grid, "--out", folder / "array", options=("--array=1-2%2", "--job-name=array")),
    }
    yield made, folder, sweep
    slurm("scancel", *made.values())


def log(folder, name):
    return "".join(path.read_text() for path in sorted(folder.glob(f"{name}-*.log")))


@needs_slurm
def test_run(jobs):
    made, folder, _ = jobs
    (task,) = wait_for(made["run"])
    assert (task["JobState"], task["ExitCode"]) == ("COMPLETED", "0:0"), log(folder, "mpiconv")
    run = open_results(folder / "run.h5")
    assert run.sizes["rank"] == 2
    assert (run.attrs["repeats"], run.attrs["ended_early"]) == (7, "")
    assert run.attrs["check_equal"]
    assert "check    passed" in log(folder, "mpiconv")


@needs_slurm
def test_array(jobs):
    made, folder, _ = jobs
    states = [task["JobState"] for task in wait_for(made["array"])]
    assert states == ["COMPLETED", "COMPLETED"], log(folder, "array")
    points = sorted((folder / "array").glob("*.h5"))
    assert len(points) == 4
    assert all(is_done(point) for point in points)
    for number in (1, 2):
        said = (folder / f"array-{made['array']}_{number}.log").read_text()
        assert "2 points, 0 done already" in said
        assert "2 run, 0 failed, 2 of 2 done" in said


@needs_slurm
def test_a_time_limit_is_met_and_the_job_goes_on_later(jobs):
    made, folder, sweep = jobs
    wait_until(sweep.result("wpm").exists, 600)
    early = open_results(sweep.result("wpm"))
    assert early.attrs["ended_early"] == "SIGUSR1", "it was not SLURM's signal that ended it"
    assert len(early.latency) == early.attrs["repeats"] > 0
    before = os.stat(sweep.result("kpm")).st_mtime_ns
    (task,) = wait_for(made["limit"])
    said = log(folder, "limit")
    assert (task["JobState"], task["Restarts"]) == ("COMPLETED", "1"), said
    assert "1 points of part 1/1 are left; this job is queued again" in said
    assert "2 points, 1 done already" in said
    assert os.stat(sweep.result("kpm")).st_mtime_ns == before, "a finished point was run again"
    assert is_done(sweep.result("wpm"))
    assert open_results(sweep.result("wpm")).attrs["repeats"] == REPEATS
