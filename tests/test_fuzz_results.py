"""Damaged result files, combined ones and benchmarks: named in a sentence, or shown; and what must not be followed."""

from __future__ import annotations

import json
import math
import os
import warnings
from contextlib import suppress

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiconv.errors import MpiconvError
from mpiconv.measure import open_results
from mpiconv.measure.energy import load_profile
from mpiconv.measure.results import write_results
from mpiconv.study.benchmark import REFERENCE, Benchmark, rows, targets
from mpiconv.study.combined import combine, points, write_combined
from mpiconv.study.report import write_report
from mpiconv.study.runs import estimated_rows, load_run, summary_rows, trace_events, tried_rows, unit_rows
from mpiconv.study.sweep import why_not_done
from mpiconv.study.verdict import verdicts
from mpiconv.text import to_json
from tests.conftest import ROOT, mpiconv, script
from tests.fuzzing import ODD, damaged, fuzzed, sentence_or_answer
from tests.test_files import other_process
from tests.test_measure import ATTRIBUTES, record

RUN = ATTRIBUTES | {"shares": [0.5, 0.5], "gather": "conv", "emulated": "no", "dilation": 1.0, "plan": "{}"}
TRIED = '[{"name": "all on a", "estimated_s": 0.01, "measured_s": null, "frames": 0, "why": "too slow"}]'


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """A file of each kind."""
    folder = tmp_path_factory.mktemp("wholes")
    found = {kind: folder / f"{kind}.h5" for kind in ("run", "combined", "benchmark")}
    write_results(found["run"], record(), load_profile("paper"), RUN | {"auto_tried": TRIED}, record().stamps_s[0])
    write_combined(combine([found["run"], found["run"]]), found["combined"])
    ours = "mpiconv kpm, 2 ranks"
    one = {"times": {REFERENCE: [0.1, 0.2], ours: [0.2, 0.1]}, "overhead": {ours: [1e-5]}}
    Benchmark.of({"a net": one}, "here").save(found["benchmark"])
    return found


def use_run(path):
    run = load_run(path)
    assert summary_rows([run])
    assert unit_rows(run)
    assert verdicts([[run]])
    assert len(estimated_rows(run)) in (0, 1 + len(run.units))
    assert isinstance(tried_rows(run), list)
    assert json.loads(to_json(trace_events(run)))["traceEvents"]


def use_combined(path):
    found = points(combine([path]))
    assert all(point.median_s > 0 and math.isfinite(point.device_joules) for point in found)


def use_benchmark(path):
    result = Benchmark.load(path)
    assert script("bench_page").table(result)
    assert all(rows(times) for times in result.times.values())
    assert targets(result) is not None


USES = {"run": use_run, "combined": use_combined, "benchmark": use_benchmark}


def try_all(kind, path):
    """All that reads such a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sentence_or_answer(lambda: USES[kind](path), repr)
        if kind == "run":
            sentence_or_answer(lambda: combine([path]), points)
        else:
            sentence_or_answer(lambda: open_results(path), repr)
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
        data[...] = np.full(data.shape, np.nan_to_num(float(value), nan=-7), float).astype(data.dtype)
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


@pytest.mark.filterwarnings("ignore:.* encountered in cast:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:.* encountered in cast:RuntimeWarning")
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


def text_bomb(file):
    """A text of 8 MB among short ones: xarray makes all as long as the longest."""
    del file["hostname"]
    file.create_dataset("hostname", data=np.array(["x" * 2**23, *["y"] * 40], object))


def packed_bomb(file):
    """A packed chunk of 2 MB, which might be a thousand times as much."""
    noise = np.frombuffer(os.urandom(2**21), np.uint8)
    file.create_dataset("x", data=noise, chunks=noise.shape, compression="gzip")


def many(file):
    """Variables that are small enough one by one."""
    for i in range(9):
        file.create_dataset(f"x{i}", (2**22,), "f8")


def virtual(file):
    """A variable that another file may be behind."""
    file.create_virtual_dataset("x", h5py.VirtualLayout((9,), "u1"), fillvalue=1)


def external(file):
    """A variable whose values lie in another file."""
    file.create_dataset("x", (9,), "u1", external=[("/etc/passwd", 0, 9)])


def also(value):
    """An edit that puts something into a file."""
    return lambda file: file.__setitem__("x", value)


def latency(value):
    """An edit that makes all latencies this."""
    return lambda file: file["latency"].write_direct(np.full(4, value))


def attribute(name, value):
    """An edit that sets an attribute."""
    return lambda file: file.attrs.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        pytest.param(also(h5py.ExternalLink("other.h5", "/x")), "link to elsewhere", id="external-link"),
        pytest.param(also(h5py.SoftLink("/latency")), "link to elsewhere", id="soft-link"),
        pytest.param(also(h5py.SoftLink("/nowhere")), "link to elsewhere", id="dangling-link"),
        pytest.param(external, "another file", id="external-storage"),
        pytest.param(virtual, "another file", id="virtual"),
        pytest.param(lambda file: file.create_group("x"), "no variable", id="group"),
        pytest.param(lambda file: file.__setitem__("x", file["/"]), "no variable", id="loop"),
        pytest.param(lambda file: file.create_dataset("x", (2**40,), "f8"), "more than such a file", id="shape"),
        pytest.param(lambda file: file.create_dataset("x", (2**34,), "u1", chunks=(2**20,)), "more than", id="chunks"),
        pytest.param(many, "more than such a file", id="many"),
        pytest.param(packed_bomb, "packed in chunks", id="packed"),
        pytest.param(text_bomb, "longer than there is reason for", id="text"),
        pytest.param(attribute("x", np.array(["a", "b"], object)), "list of texts", id="texts"),
        pytest.param(latency(np.nan), "latency has values", id="nan"),
        pytest.param(latency(0.0), "times or batches of 0", id="zero"),
        pytest.param(attribute("batch", "many"), "its attribute batch is 'many'", id="batch"),
        pytest.param(lambda file: file.__delitem__("hostname"), "lacks what a report needs: hostname", id="missing"),
    ],
)
def test_what_is_refused(change, word, wholes, tmp_path):
    path = tmp_path / "x.h5"
    path.write_bytes(wholes["run"].read_bytes())
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(MpiconvError, match=f"x.h5 .*{word}"):
        sentence_or_answer(lambda: load_run(path), repr, error=())


def test_a_heap_without_an_end(wholes, tmp_path):
    """HDF5 2.0 never comes back from it, and no signal reaches Python meanwhile."""
    raw = bytearray(wholes["run"].read_bytes())
    first = raw.index(b"GCOL\x01") + 16
    raw[first : first + 16] = bytes(16)
    (tmp_path / "x.h5").write_bytes(raw)
    with pytest.raises(MpiconvError, match=r"x\.h5 is damaged: the heap with its texts has a part without an end"):
        open_results(tmp_path / "x.h5")


def test_a_file_that_is_open_elsewhere(wholes, tmp_path):
    path = tmp_path / "x.h5"
    path.write_bytes(wholes["run"].read_bytes())
    code = "import h5py, sys\nwith h5py.File(sys.argv[1], 'a'): print('ready', flush=True); input()"
    process = other_process(code, path)
    try:
        with pytest.raises(MpiconvError, match=r"x\.h5 is open for writing in another program"):
            open_results(path)
    finally:
        process.communicate("\n")
    assert open_results(path).sizes["rank"] == 2


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file(make, tmp_path):
    make(tmp_path / "x.h5")
    with pytest.raises(MpiconvError, match=r"cannot read .*x\.h5: it is a folder, a device or a pipe"):
        open_results(tmp_path / "x.h5")


def test_one_damaged_file_among_others(wholes, tmp_path):
    for name, kind in {"a": "run", "b": "combined", "c": "benchmark", "d": "run"}.items():
        (tmp_path / f"{name}.h5").write_bytes(wholes[kind].read_bytes())
    (tmp_path / "d.h5").write_bytes(wholes["run"].read_bytes()[:-500])
    with pytest.warns(UserWarning, match=r"left out: .*d\.h5 is damaged or cut short"):
        tree = open_results(tmp_path / "*.h5")
    assert sorted(tree.children) == ["a", "b", "c"]
    left: list[str] = []
    write_report(sorted(tmp_path.glob("?.h5")), tmp_path / "r.html", left_out=left.append)
    page = (tmp_path / "r.html").read_text()
    assert "net kpm x2" in page
    assert "here" in page
    assert "b.h5 holds runs that were combined" in left[0]
    assert "d.h5 is damaged" in left[1]
    assert len(left) == 2
    with pytest.raises(MpiconvError, match=r"d\.h5 is damaged"):
        write_report([tmp_path / "d.h5"], tmp_path / "s.html")
    assert not (tmp_path / "s.html").exists()


def test_the_files_of_this_repository(tmp_path):
    assert len(open_results(ROOT / "results" / "*.h5").children) >= 3
    ended = mpiconv(0, "report", *sorted((ROOT / "results").glob("*.h5")), "--out", tmp_path / "r.html")
    assert ended.status == 0, ended.err
    assert "figure8.h5 holds runs that were combined, not the result of one run: mpiconv report --figure 8" in ended.err
