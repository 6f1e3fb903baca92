"""Mistyped commands, options and values: one sentence, and the right word that is nearest."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from mpiconv.cli import main
from mpiconv.errors import UsageError
from mpiconv.job import world
from mpiconv.partition.box import normalised
from mpiconv.words import counted, did_you_mean, seconds


class Ended(BaseException):
    """In place of the end of the process."""


@pytest.fixture
def said(monkeypatch):
    """What a command line ends with: (exit status, sentence)."""

    first = []

    def fail(message, status, _after_s=0.0, **_):
        first.append((status, message))  # the exception here is one more that the command ends with
        raise Ended(*first[0])

    def run(*words):
        first.clear()
        monkeypatch.setattr(world, "fail", fail)
        with pytest.raises(Ended) as caught:
            main(words)
        return caught.value.args

    return run


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("rnu", "unknown command 'rnu': choose from run, model, .*; did you mean 'run'"),
        ("Doktor", "unknown command 'Doktor': .*; did you mean 'doctor'"),
        ("xyzzy", r"unknown command 'xyzzy': choose from run, .*, plan \(see mpiconv --help"),
        ("--hlep", "unknown option --hlep; did you mean --help"),
        ("--vresion run", "unknown option --vresion; did you mean --version"),
        ("--model alexnet run", "unknown option --model; options of a command follow it"),
        ("run --shceme kpm", r"unknown option --shceme; did you mean --scheme\? \(see mpiconv run --help"),
        ("run --ouptut=x.h5", "unknown option --ouptut; did you mean --output"),
        ("run --repeats 3 --zzz", r"unknown option --zzz \(see"),
        ("train --lrr 3", "unknown option --lrr; did you mean --lr"),
        ("doctor -hostfile x", "unknown option -hostfile; did you mean --hostfile"),
        ("run --gather poool", "--gather: unknown value 'poool': choose from conv, pool; did you mean 'pool'"),
        ("run --wire FLOAT16", "choose from float32, float16, bfloat16, int8; did you mean 'float16'"),
        ("model --figure 5", r"unknown value '5': choose from 3, 4, 6, 7 \(see"),
        ("run --name my run", "unexpected 'run': a value with spaces in it wants quotes"),
    ],
)
def test_mistyped(said, line, sentence):
    status, message = said(*line.split())
    assert status == 2
    assert re.search(sentence, message), message


def test_a_shortened_option_and_a_negative_number_are_none(capsys):
    assert main(["plan", "--model", "digits", "--rank", "3", "--seed", "-1"]) == 0
    assert "3 ranks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [(1, "share", "1 share"), (2, "rank", "2 ranks"), (0, "host", "0 hosts"), (3, "batch", "3 batches")],
)
def test_numbers_with_their_nouns(count, noun, text):
    assert counted(count, noun) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1434, "143 ms"), (2e-5, "0.02 ms"), (0.9996, "1 s"), (1.604, "1.6 s"), (999.6, "1000 s"), (12345.6, "12346 s")],
)
def test_times_with_their_units(value, text):
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("shares", "ranks", "sentence"), [([1], 2, "^1 share for 2 ranks: "), ([1, 2], 1, "^2 shares for 1 rank: ")]
)
def test_one_share(shares, ranks, sentence):
    with pytest.raises(UsageError, match=sentence):
        normalised(shares, ranks)


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("KMP", ["kpm", "wpm"], "; did you mean 'kpm'?"),
        ("Kpm", ["KPM"], "; did you mean 'KPM'?"),
        ("--bacth", ["--batch", "--help"], "; did you mean --batch?"),
        ("q", ["kpm"], ""),
        ("", ["kpm"], ""),
    ],
)
def test_the_nearest_word(word, known, hint):
    assert did_you_mean(word, known) == hint


def test_a_reader_that_has_enough_is_no_error():
    plan = [sys.executable, "-m", "mpiconv", "plan", "--model", "digits"]
    with subprocess.Popen(plan, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        job.stdout.close()
        assert job.stderr.read() == ""
