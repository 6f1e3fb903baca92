"""The answers file: every picture's line once, in order, whatever ends the run; and whose answers they are."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mpiconv as mpiconv_package
from mpiconv.data.pictures import PictureFiles, RandomPictures
from mpiconv.errors import MpiconvError
from mpiconv.measure.answers import AnswersFile, Identity, beside, read_answers, read_identity
from mpiconv.models import info_of
from mpiconv.study.answers import identity_of
from tests.conftest import ROOT, execute, mpiconv

OF = Identity("digits", "w", "p", "224", 40)


def line(index):
    return {"index": index, "label": f"class {index % 10}", "score": index / 64}


def written(path, lo, hi, batch=1, **options):
    """Write the answers of some pictures, batch by batch; the file, closed."""
    file = AnswersFile(str(path), OF, **options)
    for start in range(lo, hi, batch):
        file.add([line(index) for index in range(start, min(start + batch, hi))])
    file.close()
    return file


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 40), st.integers(1, 7), st.floats(0, 1), st.binary(max_size=30), st.integers(1, 9))
def test_wherever_it_was_cut(tmp_path, count, batch, part, rubbish, every):
    """It goes on after the last whole line, from the beginning of that picture's batch."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    written(whole, 0, 40, batch)
    written(cut, 0, count)
    size = round(part * cut.stat().st_size)
    os.truncate(cut, size)
    with open(cut, "ab") as file:
        file.write(rubbish.replace(b"\n", b""))
    kept = len(read_answers(cut)[0])
    again = written(cut, kept // batch * batch, 40, batch, resume=True, fsync_every=every)
    assert [each["index"] for each in again.kept] == list(range(kept))
    assert cut.read_bytes() == whole.read_bytes()
    assert read_identity(cut) == OF


@pytest.mark.parametrize(
    ("other", "words"),
    [
        pytest.param({"model": "vgg11"}, "the model vgg11, and this run has digits", id="model"),
        pytest.param({"weights": "x"}, "other weights", id="weights"),
        pytest.param({"pictures": "x"}, "another list of pictures", id="pictures"),
        pytest.param({"count": 41}, "another list of pictures", id="count"),
        pytest.param({"preprocessing": "x"}, "scaled, normalised or labelled in another way", id="preprocessing"),
    ],
)
def test_answers_of_something_else_are_refused(tmp_path, other, words):
    path = tmp_path / "a.jsonl"
    written(path, 0, 3)
    AnswersFile(str(path), replace(OF, **other)).close()  # begins anew
    assert path.read_bytes() == b""
    written(path, 0, 3)
    with open(path, "ab") as file:
        file.write(b"{")
    before = path.read_bytes()
    AnswersFile(str(tmp_path / "b"), replace(OF, **other)).close()
    beside(path).write_bytes(beside(tmp_path / "b").read_bytes())
    with pytest.raises(MpiconvError, match=words):
        AnswersFile(str(path), OF, resume=True)
    assert path.read_bytes() == before


def test_without_the_file_beside_it_nobody_knows_whose_they_are(tmp_path):
    path = tmp_path / "a.jsonl"
    written(path, 0, 3)
    for content in (None, "", "[]", '{"mpiconv_answers": 1}', '{"mpiconv_answers": 99}'):
        beside(path).unlink()
        if content is not None:
            beside(path).write_text(content)
        with pytest.raises(MpiconvError, match=r"there is no .*run that tells"):
            AnswersFile(str(path), OF, resume=True)
        beside(path).touch()
    path.write_bytes(b"")
    assert written(path, 0, 2, resume=True).kept == []


def test_two_runs_do_not_share_a_file(tmp_path):
    path = tmp_path / "a.jsonl"
    file = AnswersFile(str(path), OF)
    file.add([line(0)])
    for resume in (True, False):
        with pytest.raises(MpiconvError, match="another run is writing"):
            AnswersFile(str(path), OF, resume=resume)
    file.close()
    assert len(AnswersFile(str(path), OF, resume=True).kept) == 1


def test_no_answer_comes_before_its_turn(tmp_path):
    file = AnswersFile(str(tmp_path / "a"), OF)
    file.add([line(0)])
    with pytest.raises(ValueError, match="picture 2 came before that of picture 1"):
        file.add([line(2)])
    file.add([line(0), line(1)])
    file.close()
    assert [each["index"] for each in read_answers(tmp_path / "a")[0]] == [0, 1]


DIGITS = ("--model", "digits", "--data", "digits", "--warmup", 0, "--batch", 7)


def test_a_run_goes_on_and_tells_all(tmp_path):
    """Answers, accuracy and the file are those of a run that was not cut; other weights are refused."""
    path = tmp_path / "a.jsonl"
    whole = mpiconv(0, "run", *DIGITS, "--answers", path, "--json")
    content = path.read_bytes()
    assert whole.status == 0, whole.err
    assert len(content.splitlines()) == 360
    os.truncate(path, 9000)
    cut = len(read_answers(path)[0])
    again = mpiconv(0, "run", *DIGITS, "--answers", path, "--resume", "--json", "--check", "--fsync-every", 50)
    assert again.status == 0, again.err
    assert again.json["check"]["equal"]
    assert path.read_bytes() == content
    for name in ("predictions", "accuracy", "answered"):
        assert again.json[name] == whole.json[name]
    assert 0 < cut < 360
    done = mpiconv(0, "run", *DIGITS, "--answers", path, "--resume", "--json")
    assert (done.status, done.json["predictions"]) == (0, whole.json["predictions"])
    assert path.read_bytes() == content


def test_what_answers_depend_on(tmp_path):
    """On weights, pictures and how these are prepared, and on nothing else."""
    model = mpiconv_package.load_model("digits")
    info = info_of(model)
    (tmp_path / "p.png").write_bytes(b"12345")
    files = PictureFiles([tmp_path / "p.png", tmp_path / "none.png"], info)
    mine = [RandomPictures(3, 0, info), RandomPictures(3, 1, info), RandomPictures(4, 0, info), files]
    found = [identity_of(model, info, pictures) for pictures in mine]
    (tmp_path / "p.png").write_bytes(b"123456")
    found += [identity_of(model, info, files), identity_of(model, replace(info, mean=(0.1,)), mine[0])]
    assert identity_of(mpiconv_package.load_model("digits"), info, RandomPictures(3, 0, info)) == found[0]
    with torch.no_grad():
        next(model.parameters()).flatten()[0] += 1
    found.append(identity_of(model, info, mine[0]))
    assert len(set(found)) == len(found)


def test_a_full_disk_leaves_whole_lines(tmp_path):
    """A file may get no larger than 4 KiB here: the write that would is cut within a line."""
    path = tmp_path / "a.jsonl"
    run = [
        sys.executable,
        "-m",
        "mpiconv",
        "run",
        "--model",
        "digits",
        "--random",
        "--repeats",
        "90",
        "--answers",
        path,
    ]
    command = f"ulimit -f 4; exec {shlex.join(map(str, run))}"
    ended = execute(["bash", "-c", command], cwd=ROOT, PYTHONDONTWRITEBYTECODE="1", MPICONV_CACHE=str(tmp_path / "c"))
    assert (ended.status, len(ended.errors)) == (1, 1), ended.err
    assert f"cannot write {path}: File too large" in ended.errors[0]
    lines = path.read_text().splitlines(keepends=True)
    assert all(json.loads(text)["index"] == number for number, text in enumerate(lines))
    assert 4096 - len(lines[-1]) - 2 < path.stat().st_size <= 4096
    assert lines[-1].endswith("\n")


def test_options_about_no_file():
    ended = mpiconv(0, "run", "--model", "digits", "--resume")
    assert (ended.status, len(ended.errors)) == (2, 1)
    assert "wants the file it is about: --answers FILE.jsonl" in ended.errors[0]
