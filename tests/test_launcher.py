"""What a person sees of a run besides its results: notes past a killed mpirun, and weights on their way."""

from __future__ import annotations

import subprocess
import sys

import pytest
from mpi4py import MPI

import mpiconv
from mpiconv.cli import sending
from tests.conftest import ROOT

CHILD = "from mpiconv.job import launcher as l; l.open_stderr(); l.tell('one'); l.tell('two')"


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize(
    ("name", "theirs", "own"), [("mpirun", "old\none\ntwo\n", ""), ("my-shell", "old\n", "one\ntwo\n")]
)
def test_notes_go_to_the_stderr_of_mpirun(tmp_path, name, theirs, own):
    parent = tmp_path / name
    parent.write_text(f'#!/bin/bash\n"{sys.executable}" -c "{CHILD}" 2>{tmp_path}/own; exit 3\n')
    parent.chmod(0o755)
    (tmp_path / "theirs").write_text("old\n")
    with (tmp_path / "theirs").open("a") as file:
        assert subprocess.run([parent], stderr=file, cwd=ROOT, check=False, timeout=60).returncode == 3
    assert (tmp_path / "theirs").read_text() == theirs
    assert (tmp_path / "own").read_text() == own


@pytest.mark.parametrize(
    ("terminal", "quiet", "seconds", "shown"),
    [(True, False, 0.0, True), (True, True, 0.0, False), (False, False, 0.0, False), (True, False, 60.0, False)],
)
def test_a_bar_while_the_weights_travel(terminal, quiet, seconds, shown, monkeypatch, capsys):
    monkeypatch.setattr(sending, "on_terminal", lambda: terminal)
    monkeypatch.setattr(sending, "SHOWN_AFTER_S", seconds)
    show = sending.sending_bar(quiet=quiet)
    for sent in range(0, 50_000_001, 10_000_000):
        show(sent, 50_000_000)
    text = capsys.readouterr().err
    assert ("sending weights" in text) == shown
    assert ("50.0M" in text and "B/s" in text) == shown


@pytest.mark.parallel([2, 3])
@pytest.mark.parametrize("scheme", ["kpm", "wpm"])
def test_the_root_hears_how_many_bytes_of_weights_are_sent(scheme):
    comm, told = MPI.COMM_WORLD, []
    model = mpiconv.load_model("digits") if comm.rank == 0 else None
    plan = mpiconv.make_plan(model, (1, 1, 32, 32), scheme, comm.size, head="split") if comm.rank == 0 else None
    mpiconv.distribute(model, plan, comm, progress=(lambda *bytes_: told.append(bytes_)) if comm.rank == 0 else None)
    if plan is not None:
        wanted = sum(plan.weight_bytes(u, rank) for u in range(len(plan.graph.body)) for rank in range(1, comm.size))
        assert told[-1] == (wanted, wanted)
        assert [sent for sent, _ in told] == sorted(sent for sent, _ in told)
