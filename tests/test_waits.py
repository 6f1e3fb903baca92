"""Ranks that are stopped, exceptions on one rank in plain Python, streams left early: nobody waits for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, execute
from tests.endless import ended, endless_run, measuring, started, wait_until
from tests.test_errors import assert_fails


def ranks_of(process: subprocess.Popen) -> list[int]:
    """The process ids of mpirun's ranks, by rank."""
    found = {}
    for path in os.listdir("/proc"):
        try:
            with open(f"/proc/{path}/stat") as file, open(f"/proc/{path}/environ", "rb") as environ:
                parent = int(file.read().rpartition(")")[2].split()[1])
                words = dict(word.partition(b"=")[::2] for word in environ.read().split(b"\0"))
        except (OSError, ValueError):
            continue
        if parent == process.pid and b"OMPI_COMM_WORLD_RANK" in words:
            found[int(words[b"OMPI_COMM_WORLD_RANK"])] = int(path)
    return [found[rank] for rank in sorted(found)]


@pytest.mark.alone
@pytest.mark.parametrize("stopped", [0, 2])
def test_a_stopped_rank_is_named_and_the_others_can_be_ended(stopped, tmp_path):
    with endless_run(tmp_path, "mpirun", "-n", 3) as process:
        wait_until(lambda: measuring(tmp_path))
        ranks = ranks_of(process)
        os.kill(ranks[stopped], signal.SIGSTOP)
        line = wait_until(process.stderr.readline, 30)
        while "waiting" not in line:
            line = process.stderr.readline()
        assert line.startswith(f"mpiconv: waiting 10 s for rank {stopped} (host "), line
        assert ") in unit " in line or ") in the start of" in line
        begin = time.monotonic()
        os.kill(ranks[1], signal.SIGTERM)
        done = ended(process)
    assert done.status != 0
    assert time.monotonic() - begin < 5 + 3
    assert f"ended by SIGTERM while waiting for rank {stopped} (host " in done.errors[0], done.err
    wait_until(lambda: not [pid for pid in ranks if os.path.exists(f"/proc/{pid}")], 3)


@pytest.mark.alone
@pytest.mark.parametrize("words", [[], ["--same-host", "messages", "--in-flight", "2"]])
def test_a_rank_timeout_ends_the_job(words, tmp_path):
    command = ["mpirun", "-n", "3", sys.executable, "-m", "mpiconv", "run", "--model", "digits", "--repeats", "1000000"]
    command += ["--answers", str(tmp_path / "a"), "--rank-timeout", "2", *words]
    with started(command) as process:
        wait_until(lambda: measuring(tmp_path))
        os.kill(ranks_of(process)[2], signal.SIGSTOP)
        done = ended(process, 30)
    assert_fails(done, 1, "rank 2 (host ", "did not answer for 2 s", "--rank-timeout SECONDS waits longer")


STREAMS = """
import sys, torch, mpiconv
from mpi4py import MPI
from mpiconv.runtime.settings import Settings
comm = MPI.COMM_WORLD
root, model = comm.rank == 0, mpiconv.load_model("digits")
plan = mpiconv.make_plan(model, (1, 1, 32, 32), ranks=comm.size)
settings = Settings(in_flight=int(sys.argv[1]), same_host=sys.argv[2])
pool = torch.randn(12, 1, 1, 32, 32, generator=torch.Generator().manual_seed(1))

def failing():
    yield from pool[:3]
    raise KeyError("the camera is gone")

def right(index, output):
    with torch.inference_mode():
        return not root or float((model(pool[index]) - output).abs().max()) < 1e-4

with mpiconv.distribute(model if root else None, plan if root else None, comm, settings) as net:
    for how in ("break", "consumer", "source", "shape", "unused", "open", "other") * 2:
        got = []
        if how == "break":
            for output in net.stream(pool if root else None):
                got.append(output)
                if root and len(got) == 2:
                    break
        elif how == "consumer":
            try:
                for output in net.stream(pool if root else None):
                    got.append(output)
                    if root and len(got) == 2:
                        raise KeyError("mine")
            except KeyError:
                pass
        elif how == "source":
            try:
                for output in net.stream(failing() if root else None):
                    got.append(output)
                assert not root
            except KeyError as error:
                assert "camera" in str(error) and len(got) == 3, got
        elif how == "shape":
            try:
                for output in net.stream([*pool[:3], torch.zeros(1, 2), pool[3]] if root else None):
                    got.append(output)
                assert not root
            except mpiconv.MpiconvError as error:
                assert "rank 0 was given" in str(error) and len(got) == 3, got
        elif how == "unused":
            net.stream(pool if root else None)
        elif how == "open":
            stream = net.stream(pool if root else None)
            if root:
                got += [next(stream), next(stream)]
        elif how == "other":
            for output in net.stream(pool[:7] if root else None):
                got.append(output)
                if not root and len(got) == 2:
                    break
            assert not root or len(got) == 7
        assert all(right(i, output) for i, output in enumerate(got))
        assert right(5, net(pool[5] if root else None))
        outputs = list(net.stream(pool if root else None))
        assert not root or (len(outputs) == 12 and all(right(i, output) for i, output in enumerate(outputs)))
    net.collect()
print("rank", comm.rank, "done")
"""


@pytest.mark.parametrize(("in_flight", "same_host"), [(1, "auto"), (3, "messages"), (2, "auto")])
def test_streams_left_early_leave_the_network_usable(in_flight, same_host):
    command = ["mpirun", "-n", "2", sys.executable, "-c", STREAMS, str(in_flight), same_host]
    done = execute(command, cwd=ROOT, timeout=60)
    assert done.status == 0, done.err
    assert done.out.count("done") == 2


FAILING = """
import sys, torch, mpiconv
from mpi4py import MPI
from mpiconv.runtime.compute import local as compute
from mpiconv.runtime import weights
comm = MPI.COMM_WORLD
class Cancelled(BaseException): pass
def broken(*_):
    raise Cancelled("stopped")
root, model = comm.rank == 0, mpiconv.load_model("digits")
plan = mpiconv.make_plan(model, (1, 1, 32, 32), "wpm", ranks=comm.size)
if sys.argv[2] == "distribute" and comm.rank == int(sys.argv[1]):
    weights.Weights.adopt = broken
net = mpiconv.distribute(model if root else None, plan if root else None, comm)
net(torch.zeros(1, 1, 32, 32))
if comm.rank == int(sys.argv[1]):
    compute.LocalUnit.__call__ = broken
try:
    net(torch.zeros(1, 1, 32, 32))
except BaseException as error:
    try:
        net(torch.zeros(1, 1, 32, 32))
    except mpiconv.MpiconvError as after:
        print("rank", comm.rank, "after:", after)
    raise
"""


@pytest.mark.parametrize(
    ("rank", "phase", "launch"),
    [(0, "call", []), (2, "call", []), (1, "distribute", []), (2, "call", ["-m", "mpi4py"])],
)
def test_the_others_hear_of_an_exception_in_plain_python(rank, phase, launch, tmp_path):
    script = tmp_path / "s.py"
    script.write_text(FAILING)
    done = execute(["mpirun", "-n", "3", sys.executable, *launch, str(script), str(rank), phase], timeout=60, cwd=ROOT)
    assert done.status == 1
    if launch:
        return
    assert done.err.count("Cancelled: stopped") >= 1, done.err
    assert done.err.count(f"PeerError: rank {rank}: Cancelled: stopped") == 2, done.err
    if phase == "call":
        assert done.out.count("this network cannot be used any more: rank") == 3


def test_memory_is_level_and_answers_right_over_many_frames():
    """The quick form; scripts/soak.py as it is runs 100 000."""
    words = [ROOT / "scripts" / "soak.py", "--frames", 600, "--same-host", "messages"]
    done = execute(["mpirun", "-n", "2", sys.executable, "-m", "mpi4py", *map(str, words)], cwd=ROOT)
    assert done.status == 0, done.out + done.err
    assert "600 frames in" in done.out
    assert ", 0 wrong; memory" in done.out
