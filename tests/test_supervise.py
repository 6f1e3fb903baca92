"""What a supervisor decides, without starting anything: the next step, the hosts, the words of the command line."""

from __future__ import annotations

import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiconv.cli.sweep_check import _Parser, run
from mpiconv.errors import MpiconvError
from mpiconv.probe.preflight import SRUN, ask_hosts
from mpiconv.supervise.command import OWN, for_ranks, without
from mpiconv.supervise.deciding import LONGEST_PAUSE_S, Again, Ending, Over, decide, pause_s
from mpiconv.supervise.hosts import NODES, TASKS, expanded, of_hostfile, of_slurm, ranks_left, tasks
from mpiconv.supervise.supervisor import Order

KILLED = Ending(137, "", 0, 5, 10)
NO_PROGRESS = Ending(137, "", 5, 5, 10)


def told(status, said, before=5, after=5, total=10):
    return Ending(status, said, before, after, total)


@pytest.mark.parametrize(
    ("endings", "step"),
    [
        pytest.param([told(0, "")], Over(0), id="done"),
        pytest.param([Ending(0, "", 0, 5, 10, printed=False)], Again(0.0), id="status-0-for-a-lost-host"),
        pytest.param([KILLED], Again(0.0), id="killed-after-answers"),
        pytest.param([told(137, "", 0, 0, None)], Again(0.5), id="killed-at-the-start"),
        pytest.param([KILLED, NO_PROGRESS, NO_PROGRESS], Again(1.0), id="killed-twice-without-an-answer"),
        pytest.param([NO_PROGRESS, NO_PROGRESS, KILLED], Again(0.0), id="an-answer-ends-the-pauses"),
        pytest.param([told(2, "no such model")], Over(2, "no such model"), id="wrong-usage"),
        pytest.param([told(2, "")], Again(0.5), id="mpiruns-own-2"),
        pytest.param([told(1, "differs", 0, 10)], Over(1, "differs"), id="failed-when-all-was-answered"),
        pytest.param([told(1, "odd", 0, 5)], Again(0.0), id="failed-once"),
        pytest.param([told(1, "odd", 0, 5), told(1, "odd")], Over(1, "odd"), id="failed-twice-alike"),
        pytest.param([told(1, "odd", 0, 5), told(1, "even")], Again(0.5), id="failed-twice-otherwise"),
        pytest.param([told(1, "odd"), told(1, "odd", 5, 6)], Again(0.0), id="failed-alike-after-answers"),
        pytest.param([told(1, "rank 1 did not answer")] * 2, Again(1.0), id="a-silent-rank-may-come-back"),
    ],
)
def test_the_next_step(endings, step):
    assert decide(endings, 5) == step


@given(st.integers(0, 5), st.integers(1, 12))
def test_it_is_started_again_so_often_and_no_more(most, count):
    step = decide([KILLED] * count, most)
    assert isinstance(step, Again) == (count <= most)
    if isinstance(step, Over):
        assert step.status == 1
        assert "--max-restarts" in step.why


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_pauses_grow_while_nothing_is_answered(answered):
    endings = [KILLED if each else NO_PROGRESS for each in answered]
    pause = pause_s(endings)
    assert (pause == 0) == answered[-1]
    assert pause <= pause_s([*endings, NO_PROGRESS]) <= LONGEST_PAUSE_S
    assert pause_s([*endings, KILLED]) == 0


@pytest.mark.parametrize(
    ("status", "number"), [(137, 9), (-15, 15), (139, 11), (1, 0), (0, 0), (255, 0)], ids="{0}".format
)
def test_the_signal_behind_a_status(status, number):
    assert told(status, "").number == number


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("", []),
        ("a", ["a"]),
        ("a[1-3,7],b", ["a1", "a2", "a3", "a7", "b"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("r[1-2]n[1-2]-x", ["r1n1-x", "r1n2-x", "r2n1-x", "r2n2-x"]),
    ],
    ids=str,
)
def test_slurms_short_form_of_hosts(text, hosts):
    assert expanded(text) == hosts


def test_an_allocation():
    places = of_slurm({NODES: "a[1-2],b", TASKS: "2(x2),1"})
    assert [(place.host, place.slots, place.line) for place in places] == [
        ("a1", 2, "a1 slots=2"),
        ("a2", 2, "a2 slots=2"),
        ("b", 1, "b slots=1"),
    ]
    assert of_slurm({}) == ()
    assert tasks("", 2) == [1, 1]
    with pytest.raises(MpiconvError, match="numbers like"):
        expanded("a[x]")


def test_a_hostfile_line_by_line(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# lab\na slots=2\nb:3\n\nc  # alone\n::1 slots = 4\n")
    places = of_hostfile(path)
    assert [(place.host, place.slots) for place in places] == [("a", 2), ("b", 3), ("c", 1), ("::1", 4)]
    assert [place.line for place in places] == ["a slots=2", "b:3", "c", "::1 slots = 4"]


@pytest.mark.parametrize(
    ("ranks", "living", "left"),
    [
        (None, "abc", [0, 1, 2, 3]),
        (None, "ac", [0, 1, 3]),
        (3, "bc", [2]),
        (8, "b", [4, 5]),
        (None, "", []),
    ],
    ids=str,
)
def test_the_ranks_that_are_left(ranks, living, left, tmp_path):
    (tmp_path / "hosts").write_text("a slots=2\nb slots=1\nc slots=1\n")
    assert ranks_left(of_hostfile(tmp_path / "hosts"), set(living), ranks) == left


@pytest.fixture(scope="module")
def known():
    parser = _Parser("mpiconv run")
    run.add_arguments(parser)
    return tuple(parser._option_string_actions)


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("--keep-going -n 3 --model digits", "--model digits"),
        ("-n3 --model digits --ranks=4 --keep", "--model digits"),
        ("--model digits --answers a.jsonl --resume --answ=b --batch 2", "--model digits --batch 2"),
        ("--image a.png -n 2", "--image a.png"),
        ("--repeats 5 --rank-timeout 3 --hostf x --max-r 3 --launch mpirun", "--repeats 5 --rank-timeout 3"),
    ],
    ids=str,
)
def test_its_own_options_are_taken_out(words, left, known):
    assert without(words.split(), OWN, known) == left.split()


@pytest.mark.parametrize(
    ("words", "fits", "told"),
    [
        ("--scheme kpm --batch 2", "--scheme kpm --batch 2", ""),
        ("--shares 3,2,1 --pace=1,2,4", "--shares 3,1 --pace=1,4", ""),
        ("--pace 2 --shares 3,2", "--pace 2 --shares 3,2", ""),
        ("--plan p.json --check", "--check", "--plan"),
        ("--mem=-,1MiB,2MiB --plan=p.json", "--mem=-,2MiB", "--plan"),
    ],
    ids=str,
)
def test_words_for_fewer_ranks(words, fits, told, known):
    assert for_ranks(words.split(), [0, 2], 3, known) == (fits.split(), told)
    assert for_ranks(words.split(), [0, 1, 2], 3, known) == (words.split(), "")


def test_hosts_of_an_allocation_are_asked_by_srun(tmp_path, monkeypatch):
    """A stand-in for it: there is no SLURM here."""
    text = '#!/bin/sh\ncase "$*" in *"--nodelist good true") exit 0;; esac\necho down >&2; exit 1\n'
    (tmp_path / "srun").write_text(text)
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert ask_hosts(["good", "bad"], SRUN) == {"good": "", "bad": "down"}
    monkeypatch.setenv("PATH", "/nosuch")
    with pytest.raises(MpiconvError, match="there is no srun here"):
        ask_hosts(["good"], SRUN)


def test_the_command_line_of_a_start(tmp_path, known):
    (tmp_path / "hosts").write_text("a slots=2\nb slots=1\n")
    words = ["--model", "digits", "--shares", "1,2,3"]
    order = Order(words, known, ["mpirun"], None, of_hostfile(tmp_path / "hosts"), "hosts", "a.jsonl", False, 3)
    start = [sys.executable, "-m", "mpiconv", "run", "--model", "digits", "--shares"]
    whole, told = order.command({"a", "b"}, 0, tmp_path, resume=False)
    assert (whole, told) == (["mpirun", "--hostfile", "hosts", *start, "1,2,3", *OWN_WORDS, "0"], "")
    fewer, told = order.command({"a"}, 4, tmp_path, resume=True)
    own = ["--answers", "a.jsonl", "--resume", "--restarted", "4"]
    assert (fewer, told) == (["mpirun", "-n", "2", "--hostfile", str(tmp_path / "hosts"), *start, "1,2", *own], "")
    assert (tmp_path / "hosts").read_text() == "a slots=2\n"


OWN_WORDS = ("--answers", "a.jsonl", "--restarted")
