"""The paper's equations against the check values of its figures, and against exact counts."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from mpiconv.cli import main
from mpiconv.graph.trace import trace
from mpiconv.partition import make_plan
from mpiconv.study import equations as eq
from tests.conftest import PICTURES, mpiconv
from tests.test_plan import skeleton

KEYS = [
    "layer", "devices", "flops_eq1", "flops", "parameters_wpm", "parameters_kpm", "memory_wpm", "memory_kpm",
    "memory_single", "halo_rows", "communicated_wpm", "communicated_kpm", "received_kpm",
]  # fmt: skip


@pytest.fixture(scope="module")
def table() -> dict[int, dict[str, list]]:
    """What ``mpiconv model --json`` prints for AlexNet: columns by number of devices."""
    ended = mpiconv(0, "model", "--model", "alexnet", "--input", "3x227x227", "--devices", "1,2,4,8", "--json")
    assert ended.status == 0, ended.err
    found = ended.json
    assert all(list(row) == KEYS for row in found)
    assert [row["layer"] for row in found] == [f"conv{i}" for i in range(1, 6)] * 4
    return {n: {k: [row[k] for row in found if row["devices"] == n] for k in KEYS} for n in (1, 2, 4, 8)}


def test_figure_3(table):
    assert table[4]["flops"] == [210830400, 895795200, 299040768, 448561152, 299040768]
    assert table[4]["flops_eq1"] == [210540000, 895608576, 298975872, 448496256, 298997504]


@pytest.mark.parametrize(
    ("devices", "column", "relative"),
    [
        (4, "memory_kpm", [0.4916, 0.3102, 0.2827, 0.2834, 0.2990]),
        (4, "memory_wpm", [0.3046, 0.7791, 0.9183, 0.9332, 0.9183]),
        (8, "memory_kpm", [0.4068, 0.1953, 0.1631, 0.1640, 0.1822]),
        (8, "memory_wpm", [0.1887, 0.7423, 0.9047, 0.9221, 0.9047]),
    ],
)
def test_figure_4(table, devices, column, relative):
    values = np.array(table[devices][column]) / np.array(table[devices]["memory_single"])
    assert np.round(values, 4).tolist() == relative


def test_figure_6(table):
    assert table[8]["communicated_wpm"] == [42240, 27648, 9984, 9984, 6656]
    assert table[8]["communicated_kpm"] == [36300, 23328, 8112, 8112, 5408]
    for few, many in ((2, 4), (4, 8)):
        assert [2 * x for x in table[many]["communicated_kpm"]] == table[few]["communicated_kpm"]
    assert table[1]["communicated_kpm"] == table[1]["communicated_wpm"] == table[1]["received_kpm"] == [0] * 5


def test_figure_6_lines_cross_between_6_and_7_devices():
    graph = trace(skeleton("alexnet"), (3, 227, 227)).grouped("conv")
    totals = {}
    for n in (6, 7):
        found = [row for row in eq.rows(graph, [n]) if row.layer == "conv3"]
        totals[n] = (found[0].communicated_kpm, found[0].communicated_wpm)
    assert totals[6][0] > totals[6][1]
    assert totals[7][0] < totals[7][1]


def test_equations_are_vectorised():
    d = np.array([1, 0.5, 0.25])
    assert eq.flops(3, 11, 290400, d).tolist() == [210830400, 105415200, 52707600]
    assert eq.parameters_kpm(3, 11, 96, d).tolist() == [34944, 17472, 8736]
    assert eq.out_size(np.array([227, 27]), np.array([11, 5]), np.array([4, 1]), np.array([0, 2])).tolist() == [55, 27]
    assert eq.halo_rows(11, 4, 0, d).tolist() == [0, 2, 3]
    assert eq.halo_rows(5, 1, 2, d).tolist() == [2, 2, 2]
    assert eq.communicated_wpm(1, 13, 384, np.array([1, 2, 3])).tolist() == [0, 4992, 9984]
    assert all("[KPM22]" in getattr(eq, name).__doc__ for name in ("flops", "parameters", "memory_kpm", "halo_rows"))


def test_mpi_view_is_what_the_boxes_say():
    graph = trace(skeleton("alexnet"), (3, 227, 227)).grouped("conv")
    exact = {row.layer: row for row in eq.mpi_rows(graph, [4])}
    plan = make_plan(graph, (1, 3, 227, 227), "wpm", 4)
    assert exact["conv3"].received_wpm == max(plan.exchanges[2].received(r) for r in range(4)) == 2 * 13 * 384
    assert exact["conv3"].halo_rows == 2
    assert exact["conv1"].received_kpm == 96 * 55 * 55 * 3 // 4


@pytest.mark.parametrize("figure", [3, 4, 6, 7])
def test_figures_are_drawn(figure, tmp_path):
    out = tmp_path / "f.svg"
    words = ["--image", str(PICTURES / "portrait.jpg")] if figure == 7 else []
    assert main(["model", "--figure", str(figure), "--out", str(out), *words]) == 0
    text = out.read_text()
    assert ("rank 3" if figure == 7 else "conv5") in text
    assert ("vgg11" if figure == 7 else "alexnet") in text
    assert len(text) > 5000


def test_csv_holds_both_views(tmp_path):
    ended = mpiconv(0, "model", "--model", "vgg11", "--csv", tmp_path / "t.csv", "--devices", "4")
    assert ended.status == 0, ended.err
    assert "by message passing" in ended.out
    with open(tmp_path / "t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert {"memory_kpm", "mpi_received_wpm", "mpi_halo_rows"} <= set(rows[0])


@pytest.mark.parametrize(
    ("words", "status", "word"),
    [
        pytest.param(["--input", "227"], 2, "'227' is not channels x rows x columns", id="input"),
        pytest.param(["--devices", "0"], 2, "'0' is not a whole number from 1 up", id="devices"),
        pytest.param(["--figure", "5"], 2, "unknown value '5': choose from 3, 4, 6, 7", id="figure"),
        pytest.param(["--figure", "7"], 2, "figure 7 needs a picture", id="no-picture"),
        pytest.param(["--figure", "3", "--out", "/proc/x.png"], 1, "cannot write /proc/x.png", id="folder"),
        pytest.param(["--figure", "3", "--out", "x.xyz"], 1, "choose a name ending in", id="format"),
        pytest.param(["--csv", "/proc/x.csv"], 1, "cannot write /proc/x.csv", id="csv"),
    ],
)
def test_errors(words, status, word):
    ended = mpiconv(0, "model", *words)
    assert (ended.status, len(ended.errors)) == (status, 1)
    assert word in ended.errors[0]


def test_json_is_plain_json():
    json.loads(mpiconv(0, "model", "--model", "digits", "--json").out)
