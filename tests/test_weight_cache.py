"""Slices of weights on a device's own disk: what is found again, what is not, and what a second start sends."""

from __future__ import annotations

import os
import stat

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpi4py import MPI
from safetensors.torch import load_file, save_file

import mpiconv
from mpiconv.files import ENDING
from mpiconv.graph.form import Param
from mpiconv.job.seats import Seat
from mpiconv.job.team import Team
from mpiconv.partition import Span, make_plan
from mpiconv.runtime.settings import Settings
from mpiconv.runtime.weight_cache import WeightCache, hashes_of, users
from tests.conftest import mpiconv as run

COMM = MPI.COMM_WORLD
TENSOR = torch.arange(60.0).reshape(20, 3)
MARK = hashes_of([Param("", "t", (20, 3))], {"t": TENSOR})[0]


def kept(folder: object, *spans: tuple[int, int], most_bytes: int = 10**6) -> WeightCache:
    """A cache into which these rows came one after the other, opened anew."""
    for lo, hi in spans:
        WeightCache(folder, most_bytes).keep({MARK: (Span(lo, hi), TENSOR[lo:hi])})
    return WeightCache(folder, most_bytes)


@pytest.mark.parametrize(
    ("there", "wanted", "found"),
    [
        pytest.param([(4, 9)], (4, 9), (4, 9), id="the-same"),
        pytest.param([(4, 9)], (5, 8), (5, 8), id="within"),
        pytest.param([(4, 9)], (0, 20), (4, 9), id="a-part"),
        pytest.param([(4, 9), (9, 12)], (0, 20), (4, 12), id="side-by-side"),
        pytest.param([(9, 12), (4, 10)], (6, 11), (6, 11), id="overlapping"),
        pytest.param([(0, 2), (10, 15)], (0, 20), (10, 15), id="the-longer-of-two"),
        pytest.param([(0, 2)], (2, 4), None, id="none-of-them"),
        pytest.param([], (2, 4), None, id="empty"),
    ],
)
def test_rows_that_are_there(there, wanted, found, tmp_path):
    got = kept(tmp_path, *there).find(MARK, (20, 3), Span(*wanted))
    assert (got and (got[0].lo, got[0].hi)) == found
    if got:
        assert torch.equal(got[1], TENSOR[found[0] : found[1]])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(1, 20)), max_size=4), st.integers(0, 19), st.integers(1, 20))
def test_whatever_is_found_is_right(spans, lo, hi):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        got = kept(folder, *(each for each in spans if each[0] < each[1])).find(MARK, (20, 3), Span(lo, hi))
    if got is not None:
        assert got[0] in Span(lo, hi)
        assert torch.equal(got[1], TENSOR[got[0].lo : got[0].hi])


def test_another_tensor_is_not_found(tmp_path):
    cache = kept(tmp_path, (0, 20))
    assert cache.find("0" * 64, (20, 3), Span(0, 20)) is None
    assert cache.find(MARK, (20, 4), Span(0, 20)) is None


def test_what_a_memory_card_has_spoilt_is_as_if_it_were_not_there(tmp_path):
    cache = kept(tmp_path, (0, 5), (5, 20))
    first = next(path for path in tmp_path.iterdir() if f"{MARK}:0:5" in load_file(path))
    data = bytearray(first.read_bytes())
    data[-3] ^= 16
    first.write_bytes(data)
    assert cache.find(MARK, (20, 3), Span(0, 20))[0] == Span(5, 20)
    for broken in (b"", b"x" * 100, bytes(data[:-10])):
        first.write_bytes(broken)
        assert WeightCache(tmp_path, 10**6).find(MARK, (20, 3), Span(0, 20))[0] == Span(5, 20)
    first.unlink()
    assert cache.find(MARK, (20, 3), Span(0, 20))[0] == Span(5, 20)


def test_files_of_others_do_no_harm(tmp_path):
    save_file({"weight": torch.ones(3), f"{MARK}:x:4": torch.ones(3)}, tmp_path / "mine.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    assert kept(tmp_path, (3, 6)).find(MARK, (20, 3), Span(0, 20))[0] == Span(3, 6)


def test_the_least_lately_used_goes(tmp_path):
    cache = kept(tmp_path, (0, 5), (5, 10))
    paths = {next(iter(load_file(path))): path for path in tmp_path.iterdir()}
    for age, name in enumerate(sorted(paths)):
        os.utime(paths[name], (1000 + age, 1000 + age))
    cache.find(MARK, (20, 3), Span(0, 5))
    room = sum(path.stat().st_size for path in paths.values()) + 20
    cache = kept(tmp_path, (10, 15), most_bytes=room)
    left = {name for path in tmp_path.iterdir() for name in load_file(path)}
    assert left == {f"{MARK}:0:5", f"{MARK}:10:15"}
    kept(tmp_path, (0, 20), most_bytes=100)
    assert {name for path in tmp_path.iterdir() for name in load_file(path)} == left, "one that is too large itself"


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert kept(tmp_path / "file" / "cache", (0, 5)).find(MARK, (20, 3), Span(0, 5)) is None


def test_a_file_that_was_left_half_written_goes(tmp_path):
    (tmp_path / f".x.{'0' * 16}{ENDING}").write_text("")
    kept(tmp_path, (0, 5))
    assert [stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()] == [0o600]


@pytest.mark.parametrize(
    ("setting", "ranks"), [("off", ()), ("auto", (2, 3)), ("somewhere", (1, 2, 3))], ids=["off", "auto", "folder"]
)
def test_who_keeps_slices(setting, ranks):
    team = Team(COMM, None, range(4), [Seat(host, 0, (0,), True) for host in ("a", "a", "b", "c")])
    team.size = 4
    assert users(team, setting) == ranks


@pytest.mark.parallel([3])
@pytest.mark.parametrize("compute", ["eager", "auto"])
def test_a_second_start_sends_hashes(compute, tmp_path):
    root = COMM.rank == 0
    folder = COMM.bcast(str(tmp_path))
    model = mpiconv.load_model("digits") if root else None
    images = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1)) if root else None
    shares = (1, 1, 1), (1, 1, 1), (1, 2, 1)
    plans = [make_plan(model, (1, 1, 32, 32), "kpm", 3, each) if root else None for each in shares]
    outputs, moved, stored = [], [], []
    for plan in plans:
        how = Settings(compute=compute, weight_cache=f"{folder}/{compute}")
        with mpiconv.distribute(model, plan, COMM, how) as net:
            outputs.append(net(images))
            moved.append(net.weights_received_bytes)
            stored.append(net.weights_stored_bytes)
        COMM.Barrier()
    assert stored[0] == (0, 0, 0)
    assert moved[0][0] == moved[1][0] == 0
    assert moved[1] == (0, 0, 0)
    assert stored[1] == moved[0]
    assert 0 < sum(moved[2]) < 0.5 * sum(stored[2])
    if root:
        assert torch.equal(outputs[0], outputs[1])


def test_run_says_what_was_sent(tmp_path):
    kernels = ["run", "--model", "digits", "--scheme", "kpm", "--repeats", "2"]
    words = [*kernels, "--check", "--json", "--weight-cache", tmp_path / "cache"]
    first, second = (run(2, *words) for _ in range(2))
    for ended in (first, second):
        assert ended.status == 0, ended.err
        assert ended.json["check"]["equal"]
    sent = first.json["weights_received_bytes"]
    assert sent[0] == 0 < sent[1]
    assert second.json["weights_received_bytes"] == [0, 0]
    assert second.json["weights_stored_bytes"] == sent
    told = run(2, *kernels, "--weight-cache", tmp_path / "cache")
    assert "read from their own disks" in told.out
    wrong = run(2, *words[:-2], "--weight-cache-size", "4GB")
    assert "'4GB' is not a size in GB" in wrong.err
