"""The report and the trace: what stands in them, in a real browser where there is one."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace

import jsonschema
import numpy as np
import pytest

from mpiconv import open_results
from mpiconv.measure.energy import load_profile
from mpiconv.measure.results import write_results
from mpiconv.study.report import write_report, write_trace
from mpiconv.study.runs import imbalance, load_runs, summary_rows
from tests.browser import opened
from tests.conftest import mpiconv
from tests.test_measure import ATTRIBUTES, record

SCRIPT = "<script>alert(1)</script>"
TRACE_SCHEMA = {
    "type": "object",
    "required": ["traceEvents", "distributedInfo", "displayTimeUnit"],
    "properties": {
        "displayTimeUnit": {"enum": ["ms", "ns"]},
        "distributedInfo": {"type": "object", "required": ["rank", "world_size", "backend"]},
        "traceEvents": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["ph", "name", "pid"],
                "properties": {"pid": {"type": "integer", "minimum": 0}, "name": {"type": "string"}},
                "oneOf": [
                    {"properties": {"ph": {"const": "M"}}, "required": ["args"]},
                    {
                        "properties": {
                            "ph": {"const": "X"},
                            "ts": {"type": "number"},
                            "dur": {"type": "number", "minimum": 0},
                            "tid": {"type": "integer"},
                            "cat": {"enum": ["compute", "exchange"]},
                        },
                        "required": ["ts", "dur", "tid", "cat"],
                    },
                ],
            },
        },
    },
}


@pytest.fixture
def files(tmp_path):
    """Three runs of one model, one of them on one rank and one with a hostile name, and a run of another model."""
    one = record(ranks=1)
    write_results(tmp_path / "one.h5", replace(one, latency_s=one.latency_s * 2), load_profile("paper"), ATTRIBUTES)
    write_results(tmp_path / "two.h5", record(), load_profile("paper"), ATTRIBUTES)
    hostile = {**ATTRIBUTES, "name": SCRIPT, "command_line": f"mpiconv {SCRIPT} & \"'$x_1$"}
    write_results(tmp_path / "evil.h5", record(ranks=3), load_profile("pi4"), hostile)
    write_results(tmp_path / "other.h5", record(), load_profile("paper"), {**ATTRIBUTES, "model": "other"})
    return [str(tmp_path / f"{name}.h5") for name in ("one", "two", "evil", "other")]


def test_page_tables_and_figures(files, tmp_path):
    ended = mpiconv(0, "report", *files, "--out", tmp_path / "report.html")
    assert ended.status == 0, ended.err
    page = (tmp_path / "report.html").read_text()
    assert SCRIPT not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page), "something is not in the page itself"
    assert page.count("<h2>") == 2, "runs of different models are kept apart"
    beside = tmp_path / "report_files"
    with open(beside / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["speed-up"] for row in rows] == ["1.00", "2.00", "2.00", "-"], (
        "the other model has no run on one device"
    )
    assert rows[1]["efficiency"] == "1.00"
    with open(beside / "units.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 3 * (1 + 2 + 3 + 2)
    svgs = sorted(path.stem for path in beside.glob("*.svg"))
    assert svgs == sorted(path.stem for path in beside.glob("*.png"))
    assert len(svgs) == 2 + 1 + 4 * 5
    for path in beside.glob("*.svg"):
        assert SCRIPT not in path.read_text()


def test_hostile_title(files, tmp_path):
    write_report(files[:1], tmp_path / "r.html", title=SCRIPT)
    assert SCRIPT not in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser(files, tmp_path, width):
    write_report(files, tmp_path / "report.html")
    with opened(tmp_path / "report.html", width) as browser:
        assert browser.get_log("browser") == []
        assert browser.title == "net, other: 4 runs"
        text = browser.execute_script("return document.body.innerText")
        assert SCRIPT in text
        assert "9.50" in text
        assert "99.9%" in text or "94.7%" in text
        images = browser.execute_script(
            "return [...document.images].map(i => [i.naturalWidth, i.naturalHeight, i.clientWidth, i.clientHeight])"
        )
        assert len(images) == 23
        assert all(min(sizes) > 50 for sizes in images)
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        cut = "return [...document.querySelectorAll('.cards')].filter(t => t.scrollWidth > t.parentElement.clientWidth)"
        assert browser.execute_script(cut) == []


def test_trace(tmp_path):
    path = tmp_path / "r.h5"
    ended = mpiconv(2, "run", "--model", "digits", "--scheme", "kpm", "--repeats", 5, "--output", path)
    assert ended.status == 0, ended.err
    ended = mpiconv(0, "report", path, "--out", tmp_path / "r.html", "--trace", tmp_path / "t.json")
    assert ended.status == 0, ended.err
    found = json.loads((tmp_path / "t.json").read_text())
    jsonschema.validate(found, TRACE_SCHEMA)
    assert found["distributedInfo"]["world_size"] == 2
    spans = [e for e in found["traceEvents"] if e["ph"] == "X"]
    assert {e["pid"] for e in spans} == {0, 1}
    with open_results(path) as data:
        slack_us = 2e6 * float(data.clock_error.max())
    for repeat in range(5):
        for name in ("allgatherv conv2", "allgatherv conv3"):
            mine = [e for e in spans if e["name"] == name and e["args"]["repeat"] == repeat]
            assert len(mine) == 2
            assert max(e["ts"] for e in mine) <= min(e["ts"] + e["dur"] for e in mine) + slack_us


def test_trace_of_a_written_file(files, tmp_path):
    write_trace(files[1], tmp_path / "t.json")
    jsonschema.validate(json.loads((tmp_path / "t.json").read_text()), TRACE_SCHEMA)


@pytest.mark.parametrize(
    ("words", "status", "word"),
    [
        pytest.param(["none.h5"], 1, "cannot read none.h5: there is no such file", id="missing"),
        pytest.param([__file__], 1, "test_report.py is no HDF5 file", id="foreign"),
        pytest.param(["a.h5", "b.h5", "--trace", "t.json"], 2, "--trace shows one run and 2 files", id="trace"),
        pytest.param([], 2, "required: FILE.h5", id="nothing"),
    ],
)
def test_errors(words, status, word):
    ended = mpiconv(0, "report", *words)
    assert (ended.status, len(ended.errors)) == (status, 1)
    assert word in ended.errors[0]


def test_no_write_permission(files):
    ended = mpiconv(0, "report", files[0], "--out", "/proc/report.html")
    assert (ended.status, len(ended.errors)) == (1, 1)
    assert "cannot write to the folder /proc" in ended.errors[0]


def test_imbalance_and_summary(files):
    assert imbalance(np.array([1.0, 1.0])) == 0
    assert imbalance(np.array([3.0, 1.0])) == 0.5
    assert imbalance(np.zeros(2)) == 0
    runs = load_runs(files[:2])
    assert [run.name for run in runs] == ["net kpm x1", "net kpm x2"]
    assert summary_rows(runs)[1]["speed-up"] == "2.00"
    assert summary_rows(runs[1:])[0]["speed-up"] == "-"
