"""Damaged result files, combined ones and benchmarks: named in a sentence, or shown; and what must not be followed."""

from __future__ import annotations

import json
import math
import warnings
from contextlib import suppress

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiconv.measure import open_results
from mpiconv.measure.energy import load_profile
from mpiconv.measure.results import write_results
from mpiconv.study.benchmark import REFERENCE, Benchmark, rows, table, targets
from mpiconv.study.combined import combine, points, write_combined
from mpiconv.study.runs import load_run, summary_rows, trace_events, unit_rows
from mpiconv.study.sweep import why_not_done
from mpiconv.text import to_json
from tests.fuzzing import ODD, damaged, fuzzed, sentence_or_answer
from tests.test_measure import ATTRIBUTES, record

RUN = ATTRIBUTES | {"shares": [0.5, 0.5], "gather": "conv", "emulated": "no", "dilation": 1.0, "plan": "{}"}


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """A file of each kind."""
    folder = tmp_path_factory.mktemp("wholes")
    found = {kind: folder / f"{kind}.h5" for kind in ("run", "combined", "benchmark")}
    write_results(found["run"], record(), load_profile("paper"), RUN)
    write_combined(combine([found["run"], found["run"]]), found["combined"])
    ours = "mpiconv kpm, 2 ranks"
    one = {"times": {REFERENCE: [0.1, 0.2], ours: [0.2, 0.1]}, "overhead": {ours: [1e-5]}}
    Benchmark.of({"a net": one}, "here").save(found["benchmark"])
    return found


def use_run(path):
    run = load_run(path)
    assert summary_rows([run])
    assert unit_rows(run)
    assert json.loads(to_json(trace_events(run)))["traceEvents"]


def use_combined(path):
    found = points(combine([path]))
    assert all(point.median_s > 0 and math.isfinite(point.device_joules) for point in found)


def use_benchmark(path):
    result = Benchmark.load(path)
    assert table(result)
    assert all(rows(times) for times in result.times.values())
    assert targets(result) is not None


USES = {"run": use_run, "combined": use_combined, "benchmark": use_benchmark}


def try_all(kind, path):
    """Everything that reads such a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sentence_or_answer(lambda: open_results(path), repr)
        sentence_or_answer(lambda: USES[kind](path), repr)
        sentence_or_answer(lambda: combine([path]), points)
        assert isinstance(why_not_done(path), str)


@st.composite
def edits(draw):
    """What is done to some variable or attribute, by its number."""
    kind = draw(st.sampled_from(["attribute", "attribute", "gone", "values", "values", "shape", "type", "link"]))
    return kind, draw(st.integers(0, 99)), draw(st.integers(0, 99)), draw(ODD)


def edit(file, kind, which, other, value):
    """Change an open file."""
    names = sorted(file)
    name = names[which % len(names)]
    data = file[name]
    holder = file if other % 3 else data
    if kind == "attribute":
        attributes = [*sorted(holder.attrs), "new"]
        holder.attrs[attributes[which % len(attributes)]] = value
    elif kind == "gone":
        del file[name]
    elif kind == "values" and data.dtype.kind in "iuf":
        data[...] = np.full(data.shape, np.clip(float(value), -1e300, 1e300), float).astype(data.dtype)
    elif kind == "shape":
        values = data[...]
        del file[name]
        file[name] = values[None] if other % 2 else values[..., :0]
    elif kind == "type":
        del file[name]
        file[name] = [value] * max(other % 4, 1)
    elif kind == "link":
        del file[name]
        file[name] = [h5py.SoftLink("/latency"), h5py.ExternalLink("/etc/passwd", "/"), file["/"]][other % 3]


@pytest.mark.parametrize("kind", USES)
def test_whole_files_are_right(kind, wholes):
    USES[kind](wholes[kind])
    open_results(wholes[kind])


@pytest.mark.parametrize("kind", USES)
def test_damaged_bytes(kind, wholes, tmp_path):
    whole, path = wholes[kind].read_bytes(), tmp_path / "x.h5"

    @fuzzed(few=10)
    @given(damaged(whole))
    def trial(data):
        path.write_bytes(data)
        try_all(kind, path)

    trial()


@pytest.mark.parametrize("kind", USES)
def test_edited_files(kind, wholes, tmp_path):
    whole, path = wholes[kind].read_bytes(), tmp_path / "x.h5"

    @fuzzed(few=10)
    @given(st.lists(edits(), min_size=1, max_size=3))
    def trial(changes):
        path.write_bytes(whole)
        with h5py.File(path, "a") as file:
            for change in changes:
                with suppress(TypeError, ValueError, OverflowError, LookupError, OSError, RuntimeError):  # not in HDF5
                    edit(file, *change)
        try_all(kind, path)

    trial()
