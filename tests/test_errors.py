"""Every error: one line that says what is wrong and what would be right, the exit status, and nobody left waiting."""

from __future__ import annotations

import sys

import pytest
import torch

import mpiconv as package
from tests.conftest import PICTURES, ROOT, Ended, execute, mpiconv

SECONDS_TO_END = 5  # beyond the usual time, twice for the tests that run beside this one


@pytest.fixture(scope="module")
def start_up() -> float:
    """Seconds that a small job takes here when nothing is wrong: what an error may take is counted on top."""
    return max(mpiconv(3, "run", "--model", "digits", "--repeats", 1, "--quiet").seconds for _ in range(2))


def assert_fails(ended: Ended, status: int, *words: str) -> None:
    assert ended.status == status, ended.err
    assert len(ended.errors) == 1, ended.err
    for word in words:
        assert word in ended.errors[0]
    assert "Traceback" not in ended.err


FEW = ["--model", "digits", "--repeats", "1", "--scheme", "kpm"]


@pytest.mark.parametrize(
    ("words", "status", "wanted"),
    [
        pytest.param(
            ["--image", "none.png"], 1, ["cannot read the picture none.png: No such file"], id="missing-picture"
        ),
        pytest.param(["--image", __file__], 1, ["test_errors.py is no picture or a broken one"], id="broken-picture"),
        pytest.param(["--data", "/nowhere"], 2, ["/nowhere is not a folder"], id="missing-folder"),
        pytest.param(["--model", "alexnt"], 2, ["unknown model 'alexnt'", "did you mean 'alexnet'"], id="model"),
        pytest.param(["--scheme", "kmp"], 2, ["unknown scheme 'kmp'", "did you mean 'kpm'"], id="scheme"),
        pytest.param(["--shares", "1,1,1"], 2, ["3 shares for 2 ranks"], id="shares-length"),
        pytest.param(["--shares", "1,-1"], 2, ["share of rank 1 is -1"], id="shares-negative"),
        pytest.param(["--shares", "1,a"], 2, ["'1,a' is not a list of numbers"], id="shares-words"),
        pytest.param(["--offload", "1.5"], 2, ["'1.5' is not a number from 0 to 1"], id="offload-range"),
        pytest.param(["--offload", "1", "--shares", "1,1"], 2, ["leave --shares out"], id="offload-and-shares"),
        pytest.param(["--output", "/proc/x.h5"], 1, ["cannot write to the folder /proc"], id="output"),
        pytest.param(["--output", "/tmp"], 1, ["/tmp: it is a folder"], id="output-is-a-folder"),
        pytest.param(["--answers", "/proc/x"], 1, ["cannot write to the folder /proc"], id="answers"),
        pytest.param(["--plan", "none.json"], 1, ["cannot read the plan none.json"], id="plan"),
        pytest.param(["--input-size", "227"], 2, ["'227' is not rows x columns, like 227x227"], id="input-size"),
        pytest.param(["--input-size", "3x3"], 1, ["layer features.5: its kernel does not fit"], id="too-small"),
        pytest.param(["--repeats", "0"], 2, ["'0' is not a whole number from 1 up"], id="repeats"),
        pytest.param(["--sheme", "kpm"], 2, ["unknown option --sheme; did you mean --scheme?"], id="option"),
        pytest.param(["--link-rate", "0"], 2, ["'0' is not a rate in MB/s"], id="rate"),
    ],
)
def test_wrong_input(words, status, wanted, start_up):
    ended = mpiconv(2, "run", *FEW, *words)
    assert_fails(ended, status, *wanted)
    assert ended.seconds < 2 * start_up + SECONDS_TO_END
    assert ended.out == "", "something was computed before the error was found"


def test_offload_is_for_two():
    ended = mpiconv(3, "run", *FEW, "--offload", 0.5)
    assert_fails(ended, 2, "--offload is for 2 ranks and 3 are running")


def test_weights_of_another_shape(tmp_path):
    path = tmp_path / "w.pth"
    state = package.load_model("digits").state_dict()
    torch.save({**state, "features.3.weight": torch.zeros(32, 16, 5, 5)}, path)
    ended = mpiconv(2, "run", *FEW, "--weights", path)
    assert_fails(ended, 1, "features.3.weight has shape (32, 16, 5, 5)", "w.pth", "the model wants (32, 16, 3, 3)")


PLACES = {
    "joining": "mpiconv.cli.place:join_world",
    "weights": "mpiconv.runtime.weights:Weights._moved",
    "preparing": "mpiconv.runtime.units:local_unit",
    "messages": "mpiconv.runtime.exchange.collective:Collective._post",
    "exchange": "mpiconv.runtime.exchange.shared:SharedExchanger.start",
    "compute": "mpiconv.runtime.compute.local:LocalUnit.__call__",
    "collecting": "mpiconv.runtime.recording:peak_rss_bytes",
}


@pytest.mark.parametrize(
    ("phase", "rank"), [(phase, rank) for i, phase in enumerate(PLACES) for rank in (0, 1 + i % 2)]
)
def test_an_exception_on_any_rank_in_any_phase(phase, rank, start_up):
    ranks = "3" if rank else "2"
    command = ["mpirun", "-n", ranks, sys.executable, "-m", "tests.broken_rank", str(rank), PLACES[phase], "run", *FEW]
    if phase == "messages":
        command += ["--same-host", "messages"]
    ended = execute(command, cwd=ROOT, timeout=60)
    assert_fails(ended, 1, f"rank {rank}: RuntimeError:", "is broken here")
    assert ended.seconds < 2 * start_up + SECONDS_TO_END


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("mpiconv.cli.inference:prepare", id="loading"),
        pytest.param("mpiconv.cli.inference:write_results", id="writing"),
        pytest.param("mpiconv.cli.inference:summary", id="printing"),
    ],
)
def test_an_exception_where_only_the_root_works(place, start_up, tmp_path):
    words = ["run", *FEW, "--output", str(tmp_path / "x.h5")]
    ended = execute(["mpirun", "-n", "3", sys.executable, "-m", "tests.broken_rank", "0", place, *words], cwd=ROOT)
    assert_fails(ended, 1, "rank 0: RuntimeError:")
    assert ended.seconds < 2 * start_up + SECONDS_TO_END


def test_a_picture_that_breaks_while_running(tmp_path):
    """Only the first of a folder's pictures is looked at before; a later one is named as well."""
    (tmp_path / "a.png").write_bytes((PICTURES / "digit-1.png").read_bytes())
    (tmp_path / "b.png").write_bytes(b"no picture")
    ended = mpiconv(2, "run", *FEW, "--data", tmp_path)
    assert_fails(ended, 1, "b.png is no picture")


def test_different_versions_are_named():
    command = ["mpirun", "-n", "3", sys.executable, "-m", "tests.broken_rank", "1", "version", "run", *FEW]
    ended = execute(command, cwd=ROOT)
    assert_fails(ended, 1, "rank 0 has 0.", "rank 1 has 0.0.0", "install one version")


@pytest.mark.parametrize(("rank", "word"), [(1, "rank 1 did not answer rank 0"), (0, "rank 0 did not answer rank ")])
def test_a_rank_that_never_answers_is_named(rank, word, start_up):
    command = ["mpirun", "-n", "3", sys.executable, "-m", "tests.broken_rank", str(rank), "silent", "run", *FEW]
    ended = execute(command, cwd=ROOT, MPICONV_JOIN_S="1")
    assert_fails(ended, 1, word, "within 1 s", "MPICONV_JOIN_S=SECONDS waits longer")
    assert ended.seconds < 2 * start_up + 3 + SECONDS_TO_END


def test_a_time_to_join_that_is_none():
    assert_fails(mpiconv(2, "run", *FEW, MPICONV_JOIN_S="soon"), 2, "MPICONV_JOIN_S is 'soon': a number of seconds")


def test_a_launcher_that_starts_singletons():
    ended = mpiconv(0, "run", *FEW, SLURM_NTASKS="4")
    assert_fails(ended, 1, "SLURM_NTASKS is 4, but MPI sees one rank", "srun --mpi=pmix")


def test_wrong_commands():
    assert_fails(mpiconv(0), 2, "the following arguments are required: COMMAND (see mpiconv --help)")
    assert_fails(mpiconv(0, "rnu"), 2, "unknown command 'rnu': choose from run, ")
    assert_fails(mpiconv(2, "rnu"), 2, "unknown command 'rnu': choose from run, ")


def test_a_failed_check_is_exit_status_1():
    command = ["mpirun", "-n", "2", sys.executable, "-m", "tests.wrong_answer", "run", *FEW, "--check"]
    ended = execute(command, cwd=ROOT)
    assert_fails(ended, 1, "the split output differs from the unsplit one by")
    assert "check    FAILED" in ended.out
