"""What a report compares with: the fastest run in which one rank computes everything; names and colours of runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mpiconv.measure.energy import load_profile
from mpiconv.measure.results import write_results
from mpiconv.study.report import write_report
from mpiconv.study.runs import baseline, gains, load_runs
from mpiconv.study.series import device_curves
from mpiconv.study.style import colour, shortened
from tests.test_measure import ATTRIBUTES, record
from tests.test_reproduction import point


def _run(name, hosts, busy, ms, moved=None):
    """A run: its ranks' hosts, which compute, its latency, and which send or receive (where more than one computes)."""
    base = record(ranks=len(hosts))
    moved = busy if moved is None and len(busy) > 1 else moved or []
    computing, moving = (np.isin(np.arange(len(hosts)), which)[:, None] for which in (busy, moved))
    return name, replace(
        base,
        hostnames=tuple(hosts),
        latency_s=np.full(4, ms / 1e3),
        flops=base.flops * computing,
        bytes_sent=base.bytes_sent * moving,
        bytes_received=base.bytes_received * moving,
    )


PI_ALONE = _run("pi alone", ["pi"], [0], 430)
LAPTOP_HELPS = _run("all sent to the laptop", ["pi", "laptop", "nano"], [1], 100, moved=[0, 1])
CASES = {
    "sent away": ([PI_ALONE, LAPTOP_HELPS], "all sent to the laptop", [0.2326, 1.0]),
    "only sent away": ([LAPTOP_HELPS, _run("three", "abc", [0, 1, 2], 50)], "all sent to the laptop", [1.0, 2.0]),
    "none": ([_run("two", "ab", [0, 1], 70), _run("three", "abc", [0, 1, 2], 50)], None, [np.nan, np.nan]),
    "idle hosts": ([_run("idle", "abc", [0], 80), _run("three", "abc", [0, 1, 2], 40)], "idle", [1.0, 2.0]),
    "the root computes nothing and sends nothing": (
        [_run("odd", "ab", [1], 10), _run("one", "a", [0], 20)],
        "odd",
        [1.0, 0.5],
    ),
    "cores of one host": (
        [_run("one", "a", [0], 100), _run("host", "aa", [0, 1], 60), _run("two", "ab", [0, 1], 40)],
        "one",
        [1.0, 1.667, 2.5],
    ),
    "ranks of one host": ([_run("one", "a", [0], 100), _run("two", "aa", [0, 1], 60)], "one", [1.0, 1.667]),
    "offered to another rank of the host": (
        [_run("other rank", "aa", [1], 50, moved=[0, 1]), _run("one", "a", [0], 100)],
        "other rank",
        [1.0, 0.5],
    ),
    "replicated": ([_run("all do all", "ab", [0, 1], 90, moved=[0, 1])], None, [np.nan]),
    "the fastest of several": ([_run("slow", "a", [0], 90), _run("fast", "b", [0], 60)], "fast", [0.667, 1.0]),
}


@pytest.fixture
def group(tmp_path, request):
    for name, made in CASES[request.param][0]:
        write_results(tmp_path / f"{name}.h5", made, load_profile("paper"), {**ATTRIBUTES, "name": name})
    return load_runs([tmp_path / f"{name}.h5" for name, _ in CASES[request.param][0]])


@pytest.mark.parametrize(("group", "case"), [(case, case) for case in CASES], indirect=["group"], ids=CASES)
def test_baseline(group, case):
    _, wanted, speed_ups = CASES[case]
    found = baseline(group)
    assert (found.name if found else None) == wanted
    assert [gain for gain, _ in gains(group)] == pytest.approx(speed_ups, rel=1e-3, nan_ok=True)


@pytest.mark.parametrize("group", ["cores of one host"], indirect=True)
def test_efficiency_is_per_device(group):
    assert [efficiency for _, efficiency in gains(group)] == pytest.approx([1.0, 0.833, 1.25], rel=1e-3)


@pytest.mark.parametrize(
    ("group", "sentence"),
    [
        ("none", "No single-device run among the files: run mpiconv run --scheme single"),
        ("ranks of one host", "against one, the fastest run in which one rank computes everything"),
    ],
    indirect=["group"],
)
def test_the_page_says_with_what(group, sentence, tmp_path):
    write_report([run.path for run in group], tmp_path / "r.html")
    assert sentence in (tmp_path / "r.html").read_text()


def test_figure_9_starts_from_the_fastest_single_device():
    runs = [
        point(ms, ranks=1, scheme=scheme, gather="pool") for ms, scheme in ((50, "kpm"), (40, "single"), (45, "wpm"))
    ]
    curves = device_curves([*runs, point(20, ranks=2, scheme="kpm", gather="pool")])
    assert curves[0].local.median_s == pytest.approx(0.040)
    assert curves[0].relative(2.0) == pytest.approx(0.5)


def test_no_two_units_have_one_colour():
    assert len({colour(i) for i in range(200)}) == 200


@pytest.mark.parametrize(
    "names",
    [
        ["vgg11 by kernels on the three boards, run 1", "vgg11 by kernels on the three boards, run 2"],
        ["x" * 14 + f"-{i}-" + "y" * 30 for i in range(12)],
        ["short", "other"],
    ],
)
def test_names_stay_distinct_when_cut(names):
    short = shortened(names)
    assert len(set(short)) == len(names)
    assert all(len(name) <= 28 for name in short)
    assert [name for name in short if name in names] == [name for name in names if len(name) <= 28]
