"""The sentence that a report opens with; what it must not say; what was predicted, and that the page fits a screen."""

from __future__ import annotations

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest

from mpiconv.errors import MpiconvError
from mpiconv.measure.energy import load_profile
from mpiconv.measure.results import write_results
from mpiconv.study import report
from mpiconv.study.report import Drawn, write_report
from mpiconv.study.runs import by_network, estimated_rows, load_run, load_runs, tried_rows, unit_rows
from mpiconv.study.verdict import NO_SINGLE, parts, verdicts
from tests.browser import opened
from tests.conftest import mpiconv
from tests.test_measure import ATTRIBUTES, record

CLAIMS = "speed-up", "speed up", "speedup", "faster than", " x ", "efficiency"
"""Words that compare with one device."""


def made(hosts, busy, ms, **attributes):
    """A run's record and attributes: the hosts of its ranks, which of them compute, the latency of every repeat."""
    base, times = record(repeats=np.size(ms), ranks=len(hosts)), np.atleast_1d(ms) / 1e3
    computing = np.isin(np.arange(len(hosts)), busy)[:, None]
    scheme = "single" if len(busy) == 1 else "wpm"
    about = {**ATTRIBUTES, "model": "AlexNet", "scheme": scheme, **attributes}
    return replace(base, hostnames=tuple(hosts), latency_s=times, flops=base.flops * computing), about


def written(folder, *runs):
    """The files of some runs, in their order."""
    paths = [folder / f"{number}.h5" for number in range(len(runs))]
    for path, (one, about) in zip(paths, runs, strict=True):
        write_results(path, one, load_profile("paper"), about)
    return paths


def said(folder, *runs):
    """What a report of these runs opens with."""
    return verdicts(list(by_network(load_runs(written(folder, *runs))).values()))


SPLIT = made("abcd", [0, 1, 2, 3], 143)
ALONE = made(["edge1"], [0], 249)
WIDE = np.linspace(100, 150, 9)

CASES = {
    "a single-device run among them": (
        [ALONE, SPLIT],
        [
            "AlexNet: wpm on 4 devices is fastest, 143 ms a picture, "
            "1.7 x faster than one device alone (edge1, 249 ms); computing takes "
        ],
    ),
    "the best of several single-device runs counts": (
        [ALONE, SPLIT, made(["edge2"], [0], 200)],
        ["1.4 x faster than one device alone (edge2, 200 ms)"],
    ),
    "one device of a job of several": (
        [made(["pi", "laptop"], [1], 100), made(["pi", "laptop"], [0, 1], 80)],
        ["wpm on 2 devices is fastest, 80 ms a picture, 1.2 x faster than one device alone (laptop, 100 ms)"],
    ),
    "one rank of a host": (
        [made("aab", [1], 100), SPLIT],
        [
            "AlexNet: one device alone (rank 1 on a) is fastest, 100 ms a picture; ",
            "; the fastest split, wpm on 4 devices (143 ms), takes 1.4 x as long",
        ],
    ),
    "a device alone and no split": (
        [ALONE, made(["pi"], [0], 1600)],
        [
            "one device alone (edge1) is fastest, 249 ms a picture; ",
            "the next, one device alone (pi, 1.6 s), takes 6.4 x",
        ],
    ),
    "none alone": ([SPLIT, made("ab", [0, 1], 200)], ["wpm on 4 devices is fastest, 143 ms a picture; ", NO_SINGLE]),
    "all compute everything": (
        [made("ab", [0, 1], 90, scheme="replicated"), SPLIT],
        ["replicated on 2 devices is fastest", NO_SINGLE],
    ),
    "within noise of one device": (
        [made("a", [0], WIDE + 2), made("ab", [0, 1], WIDE)],
        ["wpm on 2 devices is as fast as one device alone (a, 127 ms), 125 ms a picture; "],
    ),
    "one device within noise of a split": (
        [made("a", [0], WIDE), made("ab", [0, 1], WIDE + 2)],
        ["one device alone (a) is fastest, 125 ms", "the fastest split, wpm on 2 devices (127 ms), is as fast"],
    ),
    "so wide that it is no difference": (
        [made("ab", [0, 1], WIDE), made("abc", [0, 1, 2], WIDE + 20)],
        ["wpm on 2 devices is fastest, 125 ms a picture, as fast as wpm on 3 devices (145 ms); ", NO_SINGLE],
    ),
    "wide, and yet different": (
        [made("a", [0], WIDE + 60), made("ab", [0, 1], WIDE)],
        ["wpm on 2 devices is fastest, 125 ms a picture, 1.5 x faster than one device alone (a, 185 ms)"],
    ),
    "medians alike, no spread": ([made("a", [0], 100), made("ab", [0, 1], 99.5)], ["is as fast as one device alone"]),
    "many as fast": (
        [ALONE, *[made("abcd"[:n], range(n), 100 + n / 10, name=f"run {n}") for n in (2, 3, 4)], SPLIT],
        [
            "wpm on 2 devices (run 2) is fastest",
            "as fast as wpm on 3 devices (run 3, 100 ms), wpm on 4 devices (run 4, 100 ms); ",
        ],
    ),
    "names that would be alike": (
        [made("ab", [0, 1], 100), made("ab", [0, 1], 150), ALONE],
        ["AlexNet: wpm on 2 devices (0.h5) is fastest"],
    ),
    "units of several schemes": ([made("ab", [0, 1], 100, scheme="mixed"), ALONE], ["a mixed split on 2 devices is"]),
    "several batches under way": (
        [made("ab", [0, 1], 300, in_flight=3), ALONE],
        ["the fastest split, wpm on 2 devices with 3 under way (300 ms), takes 1.2 x as long"],
    ),
    "one file": ([SPLIT], ["AlexNet: wpm on 4 devices takes 143 ms a picture; ", NO_SINGLE]),
    "one file, one device": ([ALONE], ["AlexNet: one device alone (edge1) takes 249 ms a picture; "]),
    "a batch": (
        [made("ab", [0, 1], 100, batch=4, input_shape=[4, 3, 8, 8])],
        ["takes 100 ms a batch of 4; ", NO_SINGLE],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_verdict(case, tmp_path):
    runs, wanted = CASES[case]
    sentence, *others = said(tmp_path, *runs)
    assert not others
    for text in wanted:
        assert text in sentence
    assert (NO_SINGLE in sentence) == (NO_SINGLE in wanted)
    if NO_SINGLE in wanted:
        assert not [word for word in CLAIMS if word in sentence]
    assert sentence.endswith(".")


@pytest.mark.parametrize(
    "other",
    [{"model": "VGG11"}, {"input_shape": [1, 3, 64, 64]}, {"batch": 2, "input_shape": [2, 3, 8, 8]}, {"batch": 2}],
    ids=["model", "input shape", "batch in the shape", "batch"],
)
def test_what_is_different_is_not_compared(other, tmp_path):
    sentences = said(tmp_path, ALONE, made("ab", [0, 1], 100, **other))
    assert len(sentences) == 2
    assert "one device alone (edge1) takes 249 ms" in sentences[0]
    assert NO_SINGLE in sentences[1]
    assert sentences[0].split(":")[0] != sentences[1].split(":")[0], "each says for what it is"
    assert not [word for word in CLAIMS if word in " ".join(sentences)]


def test_nothing_is_called_a_gain_without_a_single_device_run(tmp_path):
    paths = written(tmp_path, SPLIT, made("ab", [0, 1], 200, gain_factor=1.5, gain_single_latency_s=0.3))
    ended = mpiconv(0, "report", *paths, "--out", tmp_path / "r.html")
    assert ended.status == 0, ended.err
    assert ended.out.startswith("AlexNet: wpm on 4 devices is fastest, 143 ms a picture; ")
    page = (tmp_path / "r.html").read_text().lower()
    page = page[page.index("<body>") :]
    drawn = " ".join(path.read_text().lower() for path in (tmp_path / "r_files").glob("*.svg"))
    for text in (ended.out.lower(), page, drawn):
        assert not [word for word in CLAIMS if word in text]
    for text in (ended.out.lower(), page):
        assert text.count(NO_SINGLE) >= 1
    assert "rank 0 alone ms" in page
    assert "<td>300.00</td>" in page.replace(' data-label="rank 0 alone ms"', "")


def test_where_the_time_goes_by_whoever_computes(tmp_path):
    """Rank 0 waits 3 ms for what rank 1 computes meanwhile: that is no exchanging."""
    base, about = made("ab", [0, 1], 10)
    stamps = np.array([[[[0, 1, 2], [2, 5, 7], [7, 8, 10]], [[0, 1, 5], [5, 6, 7], [7, 7, 7]]]]) / 1e3
    (path,) = written(tmp_path, (replace(base, stamps_s=stamps), about))
    assert parts(load_run(path)) == pytest.approx((0.6, 0.2))
    assert "computing takes 60 % of it, exchanging 20 %, the head 20 %" in verdicts([[load_run(path)]])[0]


def predicted(path, factor=0.5, tried=None, ranks=2):
    """Write a file of a run for which something was estimated."""
    one = record(ranks=ranks)
    attributes = {**ATTRIBUTES, **({} if tried is None else {"auto_tried": json.dumps(tried)})}
    write_results(path, one, load_profile("paper"), attributes, one.stamps_s[0] * factor)
    return path


TRIED = [
    {"name": "all on a", "estimated_s": 0.01, "measured_s": 0.012, "frames": 3, "why": ""},
    {
        "name": "kpm, equal shares",
        "estimated_s": 0.02,
        "measured_s": None,
        "frames": 0,
        "why": "its weights travel too long",
    },
]


def test_predicted_beside_measured_on_the_page(tmp_path):
    path = predicted(tmp_path / "r.h5", tried=TRIED)
    run = load_run(path)
    assert run.predicted_s == pytest.approx(0.0045)
    *_, last = estimated_rows(run)
    assert list(last.values()) == ["all", "3.00", "6.00", "1.50", "3.00"]
    assert unit_rows(run)[0]["compute estimated ms"] == "1.000"
    assert [list(row.values()) for row in tried_rows(run)] == [
        ["all on a", "12.00", "10.00", "-"],
        ["kpm, equal shares", "-", "20.00", "its weights travel too long"],
    ]
    write_report([path], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert (
        "Estimated before the run, one batch at a time: 4.50 ms; measured: 9.50 ms; measured / estimated 2.11." in page
    )
    assert "computing, estimated ms" in page
    assert "its weights travel too long" in page
    assert (tmp_path / "r_files" / "1-1-estimated.svg").exists()


def test_older_files_have_no_prediction_and_a_report(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_draw", lambda *_: Drawn("a figure", "what it shows", "data:,"))
    paths = written(tmp_path, SPLIT, ALONE)
    assert load_run(paths[0]).predicted_s is None
    assert estimated_rows(load_run(paths[0])) == tried_rows(load_run(paths[0])) == []
    write_report([*paths, predicted(tmp_path / "new.h5")], tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text().count("Estimated before the run") == 1
    assert (tmp_path / "r_files" / "units.csv").exists(), "rows with and without have the same columns"


@pytest.mark.parametrize(
    "text", ["{", "3", "[3]", '[{"name": "a"}]', '[{"name":"a","estimated_s":"x","measured_s":1}]', 5, "[NaN]"]
)
def test_damaged_trials_are_named(text, tmp_path):
    path = predicted(tmp_path / "r.h5", tried=TRIED)
    with h5py.File(path, "a") as file:
        file.attrs["auto_tried"] = text
    with pytest.raises(MpiconvError, match=r"r\.h5 is damaged: its attribute auto_tried"):
        load_run(path)


def long_run(number, units=63, ranks=8):
    """A run with everything long: its name, its hosts, its units, its numbers."""
    labels = (*(f"features.{u}.conv.depthwise_{u}" for u in range(units - 1)), "head")
    base = record(repeats=3, ranks=ranks)
    times = 1.111 * np.arange(units * 3).reshape(units, 3)[None, None] + np.zeros((3, ranks, 1, 1))
    large = np.full((ranks, units), 10**9)
    kinds = np.zeros((ranks, units, base.bytes_sent_by_kind.shape[-1]), int)
    hosts = tuple(f"a-very-long-host-name-{rank}.some.department.example.org" for rank in range(ranks))
    grown = dict.fromkeys(("bytes_sent", "bytes_received", "multicast_bytes", "messages_sent", "flops"), large)
    one = replace(
        base,
        units=labels,
        latency_s=np.full(3, 1e3 + number),
        stamps_s=times,
        bytes_sent_by_kind=kinds,
        messages_sent_by_kind=kinds,
        hostnames=hosts,
        patterns=("sendrecv+allgatherv",) * units,
        **grown,
    )
    about = {"name": f"run_{number}_" + "long" * 20 if number % 2 else f"run {number} " + "of a long name " * 6}
    tried = {"name": "unit by unit: " + "kpm, wpm, " * 9, "estimated_s": 1e3, "measured_s": None, "why": "so it " * 40}
    about |= {"command_line": "mpiconv run --x=" + "y" * 400, "auto_tried": json.dumps([tried])}
    return one, {**ATTRIBUTES, **about, "scheme": "replicated", "gain_single_latency_s": 999.0}


@pytest.mark.parametrize("runs", [1, 8])
def test_the_page_fits_a_screen(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_draw", lambda *_: Drawn("a figure", "what it shows", "data:,"))
    paths = []
    for number in range(runs):
        one, about = long_run(number, ranks=8 if number < 2 else 2)
        paths.append(tmp_path / f"{number}-{'file' * 20}.h5")
        write_results(paths[-1], one, load_profile("paper"), about, one.stamps_s[0])
    lone, about = made(["edge"], [0], 1e6, **{key: ATTRIBUTES[key] for key in ("model", "input_shape")})
    paths += written(tmp_path, (lone, about))
    write_report(paths, tmp_path / "report.html")
    with opened(tmp_path / "report.html", 1280) as browser:
        browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 1280
        tables = browser.execute_script(
            "return [...document.querySelectorAll('.wide')].map(e => [e.scrollWidth, e.clientWidth, e.innerText])"
        )
        assert len(tables) == 1 + 4 * runs + 2
        assert [(*widths, text[:60]) for *widths, text in tables if widths[0] > widths[1]] == []
        assert all(table[1] > 200 for table in tables)
