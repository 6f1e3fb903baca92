"""The doctor, and the emulation of slower devices."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time

import numpy as np
import pytest

from mpiconv.errors import MpiconvError
from mpiconv.measure import open_results
from mpiconv.measure.record import undilated
from mpiconv.probe.doctor import Findings, _judge
from mpiconv.probe.preflight import read_hosts
from mpiconv.runtime.emulation import Paced
from tests.conftest import ROOT, execute, mpiconv
from tests.test_measure import record


def test_ranks_and_links():
    ended = mpiconv(3, "doctor", "--json")
    assert ended.status == 0, ended.err
    found = ended.json
    assert [rank["mpiconv"] for rank in found["ranks"]] == [found["ranks"][0]["mpiconv"]] * 3
    assert all(rank["conv_gflop_per_s"] > 0 and rank["memory_bytes"] > 0 for rank in found["ranks"])
    for a in range(3):
        for b in range(3):
            assert (found["bytes_per_s"][a][b] is None) == (a == b)
            assert a == b or found["latency_s"][a][b] > 0
    assert found["errors"] == []


def test_table_for_a_person():
    ended = mpiconv(2, "doctor")
    assert ended.status == 0, ended.err
    assert "conv GFLOP/s" in ended.out
    assert "MB/s and one-way latency" in ended.out


FAKE_SSH = """#!/bin/sh
for word; do case $word in
  good) exit 0 ;;
  locked) echo "locked: Permission denied (publickey)." >&2; exit 255 ;;
  mute) exit 3 ;;
esac; done
"""


def test_hosts_are_asked_before_mpirun(tmp_path):
    """Which hosts of a hostfile ssh cannot reach, in the words of ssh; a stand-in for it, as no other host is here."""
    ssh = tmp_path / "ssh"
    ssh.write_text(FAKE_SSH)
    ssh.chmod(0o755)
    (tmp_path / "hosts").write_text("# a lab\nlocalhost slots=2\ngood:2\n\nlocked slots=1 # no key\nmute\ngood:1\n")
    path = f"{tmp_path}:{os.environ['PATH']}"
    ended = mpiconv(0, "doctor", "--hostfile", tmp_path / "hosts", PATH=path)
    assert (ended.status, len(ended.errors)) == (1, 1)
    assert "mpirun cannot start ranks on locked, mute: mend the name" in ended.errors[0]
    assert [line.split(None, 1) for line in ended.out.splitlines()] == [
        ["localhost", "answers"],
        ["good", "answers"],
        ["locked", "locked: Permission denied (publickey)."],
        ["mute", "ssh ended with status 3"],
    ]
    (tmp_path / "hosts").write_text("good\nlocalhost\n")
    ended = mpiconv(0, "doctor", "--hostfile", tmp_path / "hosts", "--json", PATH=path)
    assert (ended.status, ended.json) == (0, {"good": "", "localhost": ""})


def test_a_host_that_nobody_knows(tmp_path):
    (tmp_path / "hosts").write_text("nosuchhost.invalid slots=1\n")
    ended = mpiconv(0, "doctor", "--hostfile", tmp_path / "hosts")
    assert (ended.status, len(ended.errors)) == (1, 1)
    if shutil.which("ssh") is None:
        assert "there is no ssh here" in ended.errors[0]
    else:
        assert "nosuchhost.invalid" in ended.errors[0]
        assert "resolve" in ended.out


@pytest.mark.parametrize(
    ("content", "word"),
    [
        pytest.param(None, "cannot read the hostfile", id="missing"),
        pytest.param(b"# nothing\n\n", "names no host", id="empty"),
        pytest.param(b"\xff\xfe", "is no hostfile", id="binary"),
        pytest.param("a slots=2\n".encode("utf-16"), "is no hostfile", id="utf-16"),
        pytest.param(b"a\0 slots=2\n", "is no hostfile", id="nul"),
        pytest.param(b"\xef\xbb\xbfa slots=2\n", "begins with a byte order mark, which mpirun refuses", id="bom"),
        pytest.param(b"# x\r\na\nb slots=1\r\n", "line 3: it ends as on Windows (CR LF)", id="crlf"),
        pytest.param(b"a\rb\r", "line 1: it ends as on Windows", id="old-mac"),
        pytest.param("a\u00a0slots=2".encode(), r"line 1: it has the letter '\xa0'", id="no-break-space"),
        pytest.param(b"a slot=2", "line 1: mpirun refuses slot=2: did you mean slots=N?", id="slot"),
        pytest.param(b"a SLOTS=2", "line 1: mpirun refuses SLOTS=2: did you mean slots=N?", id="large"),
        pytest.param(b"a max_slot=2", "refuses max_slot=2: did you mean max_slots=N?", id="max-slot"),
        pytest.param(b"a slots=-1", "slots=-1 gives no number of slots", id="negative"),
        pytest.param(b"a slots = two", "slots=two gives no number of slots", id="word"),
        pytest.param(b"a slots=1.5", "slots=1.5 gives no number of slots", id="fraction"),
        pytest.param(b"a slots=0", "slots=0 gives no number of slots", id="none"),
        pytest.param(b"a slots", "slots gives no number of slots", id="bare"),
        pytest.param(b"a b slots=1", "mpirun refuses b behind a: one host a line", id="two-hosts"),
        pytest.param(b"a slots=1\nb\na slots=1", "line 3: a has slots= for the second time", id="twice"),
        pytest.param(b"a=2", "a=2 is no name of a host: like a slots=2", id="equals"),
    ],
)
def test_hostfiles_that_are_refused(content, word, tmp_path):
    if content is not None:
        (tmp_path / "hosts").write_bytes(content)
    with pytest.raises(MpiconvError, match=re.escape(word)):
        read_hosts(tmp_path / "hosts")


def test_a_hostfile_from_windows(tmp_path):
    (tmp_path / "hosts").write_bytes(b"localhost slots=2\r\n")
    ended = mpiconv(0, "doctor", "--hostfile", tmp_path / "hosts")
    assert (ended.status, ended.out, len(ended.errors)) == (1, "", 1)
    assert "hosts, line 1: it ends as on Windows (CR LF), which mpirun refuses" in ended.errors[0]


def test_hostfiles_that_mpirun_takes(tmp_path):
    text = "  a\tslots = 2 # two\n\nb cpu=2 max-slots=4\nroot@c\nc:2\na\n127.0.0.1 slots=1\n::1\n# end"
    (tmp_path / "hosts").write_text(text)
    assert read_hosts(tmp_path / "hosts") == ["a", "b", "root@c", "c", "127.0.0.1", "::1"]


def test_different_versions_are_shown_and_fail():
    command = ["mpirun", "-n", "2", sys.executable, "-m", "tests.broken_rank", "1", "version", "doctor"]
    ended = execute(command, cwd=ROOT)
    assert (ended.status, len(ended.errors)) == (1, 1)
    assert "mpiconv differs: rank 0 has 0.1.0, rank 1 has 0.0.0; install one version" in ended.errors[0]
    assert "conv GFLOP/s" in ended.out


def rank(**changes: object) -> dict[str, object]:
    usual = {"host": "a", "machine": "x86_64", "cores": 2, "threads": 1, "memory_bytes": 1, "python": "3.11.7"}
    return usual | {"mpiconv": "1", "torch": "2", "mpi": "Open MPI v5", "conv_gflop_per_s": 10.0} | changes


@pytest.mark.parametrize(
    ("ranks", "links", "error", "warning"),
    [
        pytest.param([rank(), rank(host="b")], None, "", "", id="well"),
        pytest.param([rank(), rank(mpi="MPICH")], None, "Open MPI v5, rank 1 has MPICH", "", id="mpi"),
        pytest.param([rank(), rank(torch="3")], None, "", "torch differs", id="torch"),
        pytest.param([rank(cores=1)] * 3, [[9.0] * 3] * 3, "", "", id="bound-to-a-core-each"),
        pytest.param([rank(threads=4)], None, "", "rank 0 has 4 threads on 2 cores: use --threads 2", id="threads"),
        pytest.param(
            [rank(), rank(conv_gflop_per_s=2.5)], None, "", "rank 1 computes 4.0 times slower than rank 0",
            id="slow-rank",
        ),
        pytest.param(
            [rank()] * 2 + [rank(host="b")], [[np.nan, 9e6, 9e6], [9e6, np.nan, 9e6], [9e6, 1e6, np.nan]], "",
            "the link from rank 2 to 1 has 1.0 MB/s, the others 9.0", id="slow-link",
        ),
    ],
)  # fmt: skip
def test_what_disagrees_is_named_with_the_fix(ranks, links, error, warning):
    links = links or [[np.nan] * len(ranks)] * len(ranks)
    found = Findings(ranks, [0.0] * len(ranks), links, links)
    _judge(found)
    for texts, word in ((found.errors, error), (found.warnings, warning)):
        assert len(texts) == bool(word), texts
        assert not word or word in texts[0]


def test_a_paced_computation_takes_its_time():
    def busy() -> str:
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass
        return "done"

    paced = Paced(busy, 4)
    begin = time.perf_counter()
    assert paced() == "done"
    assert time.perf_counter() - begin >= 0.08
    assert paced.calls == 0, "the first ones are for finding out how long it takes"


def test_times_are_given_undilated():
    slow = record()
    assert np.allclose(undilated(slow, 8).latency_s, slow.latency_s / 8)
    assert np.allclose(undilated(slow, 8).compute_time_s, slow.compute_time_s / 8)


def test_pace_and_dilation_are_in_the_results(tmp_path):
    path = tmp_path / "r.h5"
    words = ["--model", "digits", "--repeats", 3, "--check", "--output", path, "--pace", "2,4", "--dilation", 2]
    ended = mpiconv(2, "run", *words)
    assert ended.status == 0, ended.err
    data = open_results(path)
    assert data.pace.values.tolist() == [2, 4]
    assert data.attrs["dilation"] == 2
    assert data.attrs["emulated"] == "yes"
    assert ((data.pace_overrun >= 0) & (data.pace_overrun <= 1)).all()


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["--pace", "1,2,3"], "--pace has 3 numbers for 2 ranks"),
        (["--pace", "0.5"], "a pace or dilation of 0.5: 1 is the least"),
        (["--dilation", "0"], "a pace or dilation of 0: 1 is the least"),
    ],
)
def test_paces_that_are_refused(words, word):
    ended = mpiconv(2, "run", "--model", "digits", "--repeats", 1, *words)
    assert (ended.status, len(ended.errors)) == (2, 1)
    assert word in ended.errors[0]
