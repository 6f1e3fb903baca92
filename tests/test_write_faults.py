"""At every call that writes, in every writer: a full disk, a failure, a loss of power. A file is whole, old or new."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mpiconv
from mpiconv.errors import MpiconvError
from mpiconv.files import write_csv, write_text
from mpiconv.graph.form import Param
from mpiconv.measure.answers import AnswersFile, Identity, read_answers, read_identity
from mpiconv.measure.hdf5 import opened, write_hdf5
from mpiconv.models import slices
from mpiconv.models.weights import load_saved
from mpiconv.partition import Plan, Span, make_plan
from mpiconv.planner import wisdom
from mpiconv.planner.cluster import Cluster
from mpiconv.runtime.weight_cache import WeightCache, hashes_of
from mpiconv.training.checkpoint import Checkpoint, read_checkpoint, write_weights
from mpiconv.training.settings import Settings
from tests.test_simulation import cluster
from tests.write_faults import KINDS, fault

MOST_CALLS = 400
LEAST = {
    "results": 48,
    "plan": 36,
    "cluster": 54,
    "report": 60,
    "table": 48,
    "checkpoint": 60,
    "weights": 48,
    "hash": 24,
    "wisdom": 24,
    "slices": 30,
    "answers 1": 200,
    "answers 4": 140,
}
"""How many faults each writer meets in its tests together."""

BASIS = wisdom.Basis("cpu", 1, "2.13")
PLANS = [make_plan(mpiconv.load_model("digits"), (1, 1, 32, 32), "kpm", 2, [1, share]) for share in (1, 3)]
CLUSTERS = [cluster(*[1.0] * 12, rate=rate) for rate in (1e8, 2e8)]
TENSORS = [torch.full((40, 16, 4), float(version)) for version in (0, 1)]
MARKS = [hashes_of([Param("", "t", (40, 16, 4))], {"t": tensor})[0] for tensor in TENSORS]
PAGES = [f"{version} ä\n" * 3000 for version in (0, 1)]
TRAINED = Settings("digits", "digits")


def hdf5_of(path: Path) -> int:
    with opened(path) as file:
        return int(file["x"][-1])


def checkpoint(version: int) -> Checkpoint:
    return Checkpoint(replace(TRAINED, seed=version), {}, {"w": TENSORS[version]}, {}, ())


def checkpoint_of(path: Path) -> int:
    version = int(load_saved(path)["settings"]["seed"])
    found = read_checkpoint(path, replace(TRAINED, seed=version), {})
    assert torch.equal(found.model["w"], TENSORS[version])
    return version


def wisdom_of(path: Path) -> int:
    times, problem = wisdom.load(path.parent, BASIS)
    assert not problem
    return max(int(version) for version in times)


def save_wisdom(path: Path, version: int) -> None:
    times = {str(each): ((1, 1, 1, 1, 0.5),) for each in range(version + 1)}
    problem = wisdom.save(path.parent, BASIS, times)
    if problem:
        raise MpiconvError(problem)


WRITERS = {
    "results": (lambda p, v: write_hdf5(p, lambda file: file.create_dataset("x", data=np.full(900, v))), hdf5_of),
    "plan": (lambda p, v: PLANS[v].save(p), lambda p: PLANS.index(Plan.load(p))),
    "cluster": (lambda p, v: CLUSTERS[v].save(p), lambda p: CLUSTERS.index(Cluster.load(p))),
    "report": (lambda p, v: write_text(p, PAGES[v]), lambda p: PAGES.index(p.read_text())),
    "table": (lambda p, v: write_csv(p, [{"a": v, "b": "x" * 30}] * 300), lambda p: int(p.read_text()[-33])),
    "checkpoint": (lambda p, v: checkpoint(v).write(p), checkpoint_of),
    "weights": (lambda p, v: write_weights(p, {"w": TENSORS[v]}, {}), lambda p: int(load_file(p)["w"].max())),
    "hash": (lambda p, v: slices._keep(p, str(v) * 9), lambda p: ["0" * 9, "1" * 9].index(p.read_text())),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("there", [True, False], ids=["old", "none"])
def test_a_file_is_old_or_new(name, there, tmp_path):
    write, read = WRITERS[name]
    every_call(name, there, tmp_path, "file", write, read, silent=name == "hash")


@pytest.mark.parametrize("there", [True, False], ids=["old", "none"])
def test_measured_times(there, tmp_path):
    every_call("wisdom", there, tmp_path, BASIS.path(tmp_path).name, save_wisdom, wisdom_of)


def enough(name: str, points: int, tests: int) -> None:
    """See that a test met its part of the faults of a writer."""
    assert tests * points >= LEAST[name]


def every_call(name, there, tmp_path, file, write, read, *, silent=False):
    """Have each kind of fault at the first call, at the second, and so on until none is left."""
    points = 0
    for kind in KINDS:
        for at in range(1, MOST_CALLS):
            folder = tmp_path / f"{kind}{at}"
            folder.mkdir()
            path = folder / file
            if there:
                write(path, 0)
            failed = False
            with fault(kind, at) as disk:
                try:
                    write(path, 1)
                except MpiconvError:
                    failed = True
            assert path.exists() or not there
            found = read(path) if path.exists() else None
            assert found in (0 if there else None, 1)
            assert failed or silent or found == 1
            write(path, 1)
            assert read(path) == 1
            assert os.listdir(folder) == [file], "something is left over"
            if disk.calls < at:
                break
            points += 1
    enough(name, points, 2)


def test_slices_of_weights(tmp_path):
    """They are not waited for, so what a loss of power tears must not be taken for a slice."""
    points = 0
    for kind in KINDS:
        for at in range(1, MOST_CALLS):
            folder = tmp_path / f"{kind}{at}"
            rows = [{mark: (Span(0, 40), tensor)} for mark, tensor in zip(MARKS, TENSORS, strict=True)]
            WeightCache(folder, 10**6).keep(rows[0])
            with fault(kind, at) as disk:
                WeightCache(folder, 10**6).keep(rows[1])
                with suppress(MpiconvError):
                    write_text(tmp_path / "other", "later")
            found = [WeightCache(folder, 10**6).find(mark, (40, 16, 4), Span(0, 40)) for mark in MARKS]
            assert found[0] is not None
            for each, tensor in zip(found, TENSORS, strict=True):
                assert each is None or torch.equal(each[1], tensor)
            cache = WeightCache(folder, 10**6)
            cache.keep(rows[1])
            assert cache.find(MARKS[1], (40, 16, 4), Span(0, 40)) is not None
            assert len(os.listdir(folder)) == 2, "something is left over"
            if disk.calls < at:
                break
            points += 1
    enough("slices", points, 1)


OLD, NEW = (Identity(model, "w", "p", "224", 16) for model in ("old", "new"))


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("there", [True, False], ids=["old", "none"])
def test_answers(every, there, tmp_path):
    """Every answer that was brought to the disk is there; none of another run is taken for one of this."""
    lines = [{"index": i, "label": "x" * 20, "score": i / 32} for i in range(16)]
    points = 0
    for kind in KINDS:
        for at in range(1, MOST_CALLS):
            path = tmp_path / f"{kind}{at}"
            if there:
                file = AnswersFile(str(path), OLD)
                file.add([{**line, "label": "old"} for line in lines])
                file.close()
            safe = 0
            with fault(kind, at) as disk, suppress(MpiconvError):
                file = AnswersFile(str(path), NEW, fsync_every=every)
                for line in lines:
                    file.add([line])
                    if not file.problem:
                        safe = (line["index"] + 1) // every * every
                file.close()
            found, size = read_answers(path) if path.exists() else ([], 0)
            labels = {line["label"] for line in found}
            assert len(labels) <= 1
            if "old" in labels:
                assert read_identity(path) == OLD
            else:
                assert len(found) >= safe
                assert not found or read_identity(path) == NEW
                assert kind == "cut" or not path.exists() or path.stat().st_size == size
            if "old" not in labels:
                file = AnswersFile(str(path), NEW, resume=True)
                file.add(lines[len(file.kept) :])
                file.close()
                assert read_answers(path)[0] == lines
            if disk.calls < at:
                break
            points += 1
    enough(f"answers {every}", points, 2)


def test_there_are_enough():
    assert sum(LEAST.values()) >= 500
