"""Runs combined, put into curves, drawn, and held against the paper's claims."""

from __future__ import annotations

import subprocess
import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mpiconv.data.datasets import LabelledPictures, open_data
from mpiconv.errors import MpiconvError
from mpiconv.graph.trace import trace
from mpiconv.measure.energy import load_profile
from mpiconv.measure.results import write_results
from mpiconv.models import load_model
from mpiconv.study import claims_calculated, claims_measured
from mpiconv.study.claims import Case, Claim
from mpiconv.study.combined import PER_RANK, Point, combine, points, write_combined
from mpiconv.study.curves import figure_8, figure_9
from mpiconv.study.reproduction import write_page
from mpiconv.study.robustness import lost_parts
from mpiconv.study.series import device_curves, offload_curves
from tests.conftest import ROOT, clean_environment, mpiconv
from tests.test_measure import ATTRIBUTES, record
from tests.test_plan import skeleton

RUN = {**ATTRIBUTES, "gather": "pool", "dilation": 2.0, "emulated": "yes", "shares": [0.25, 0.75]}


def point(latency_ms: float, **changes: object) -> Point:
    """A run of AlexNet that never was, on devices as fast as the core."""
    usual = {
        "model": "alexnet", "scheme": "kpm", "gather": "conv", "host": "edge1", "emulated": True, "dilation": 4.0,
        "rate_mb_per_s": 100.0, "ranks": 2, "offload": float("nan"), "git_commit": "abc",
    }  # fmt: skip
    usual |= {key: value for key, value in changes.items() if key in usual}
    arrays = {name: np.ones(usual["ranks"]) for name in PER_RANK} | {"pace": np.full(usual["ranks"], 4.0)}
    arrays |= {key: np.full(usual["ranks"], value) for key, value in changes.items() if key in PER_RANK}
    return Point(latency_s=np.full(3, latency_ms / 1e3), per_rank=arrays, **usual)


@pytest.fixture
def files(tmp_path):
    """Three runs: of other numbers of repeats and ranks, and with other rates."""
    for name, repeats, ranks, rate in (("a", 4, 2, 100), ("b", 2, 3, 10), ("c", 5, 1, 10)):
        profile = replace(load_profile("paper"), link_bytes_per_s=rate * 1e6)
        write_results(
            tmp_path / f"{name}.h5", record(repeats, ranks), profile, RUN | {"shares": [0.25, 0.75, 1][:ranks]}
        )
    return [tmp_path / f"{name}.h5" for name in "abc"]


def test_combined_runs_say_the_same_as_single_ones(files, tmp_path):
    import xarray

    write_combined(combine(files[:2]), tmp_path / "two.h5")
    write_combined(combine([tmp_path / "two.h5", files[2]]), tmp_path / "three.h5")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = xarray.open_dataset(tmp_path / "three.h5", engine="h5netcdf").load()
    assert dict(data.sizes) == {"run": 3, "repeat": 5, "rank": 3}
    for name, variable in data.variables.items():
        assert "units" in variable.attrs, name
        assert variable.attrs["long_name"], name
    found = points(data)
    direct = [points(combine([file]))[0] for file in files]
    for one, other in zip(found, direct, strict=True):
        assert np.array_equal(one.latency_s, other.latency_s)
        assert all(np.array_equal(one.per_rank[name], other.per_rank[name]) for name in PER_RANK)
    first = found[0]
    assert (first.ranks, first.offload, first.rate_mb_per_s, first.host, first.emulated) == (
        2,
        0.75,
        100,
        "host0",
        True,
    )
    assert first.median_s == 0.0095
    assert first.per_rank["compute_time"] == pytest.approx([0.006, 0.006])
    assert first.per_rank["head_time"] == pytest.approx([0.002, 0.002])
    assert first.per_rank["bytes_received"].tolist() == [3000, 3000]
    assert first.per_rank["picture_bytes"].tolist() == [1000, 1000]
    assert first.device_joules == pytest.approx(6 + 1500 / 100e6 * 0.8)
    assert np.isnan(found[1].offload)
    assert (tmp_path / "three.h5").stat().st_size < 150_000


def test_what_cannot_be_combined(files, tmp_path):
    with pytest.raises(MpiconvError, match="no result files"):
        combine([])
    (tmp_path / "x.h5").write_text("no")
    with pytest.raises(MpiconvError, match=r"x\.h5 is no HDF5 file"):
        combine([tmp_path / "x.h5"])
    left: list[str] = []
    assert combine([files[0], tmp_path / "x.h5"], left.append).sizes["run"] == 1
    assert "x.h5 is no HDF5 file" in left[0]
    data = combine(files[:1])
    write_combined(data.drop_vars("pace"), tmp_path / "old.h5")
    with pytest.raises(MpiconvError, match=r"old\.h5 holds combined runs, but has no pace"):
        combine([tmp_path / "old.h5"])
    with pytest.raises(MpiconvError, match="cannot write"):
        write_combined(data, "/proc/x.h5")


def offloads(host: str, model: str, rate: float, gather: str, latencies: list[float]) -> list[Point]:
    shares = np.linspace(0, 1, len(latencies))
    common = {"host": host, "model": model, "rate_mb_per_s": rate, "gather": gather}
    return [point(ms, offload=float(share), **common) for share, ms in zip(shares, latencies, strict=True)]


EIGHT = [
    *offloads("nx", "alexnet", 100, "pool", [100, 80, 54]),
    *offloads("pi4", "alexnet", 100, "pool", [200, 100, 150]),
    *offloads("nx", "alexnet", 10, "pool", [100, 300, 120]),
    *offloads("nx", "vgg11", 100, "pool", [1000, 600, 500]),
    *offloads("nx", "vgg11", 10, "pool", [1000, 1200, 600]),
    *offloads("nx", "alexnet", 100, "conv", [0, 90, 60])[1:],
]


def test_offload_curves():
    curves = offload_curves(EIGHT)
    names = [(c.what, c.model, c.rate_mb_per_s, c.gather) for c in curves]
    assert names[0] == ("pi4", "alexnet", 100, "pool")
    assert names[1:3] == [("nx", "alexnet", 100, "conv"), ("nx", "alexnet", 100, "pool")]
    assert curves[1].local is curves[2].local, "without an exchange it does not matter where it would be"
    assert curves[0].best[0] == 0.5
    assert curves[0].relative(0.5) == 0.5
    assert np.isnan(curves[0].relative(0.3))


def verdicts(claims: list[Claim]) -> list[str]:
    return [claim.verdict for claim in claims]


def test_claims_of_figure_8():
    found = claims_measured.figure_8(EIGHT, "figure8.h5")
    assert verdicts(found) == ["holds", "does not hold", "holds", "holds", "holds"]
    assert "best share 1: 54 of 100 ms, 54.0% of local" in found[0].cases[1].found
    assert found[4].cases[0].found == "VGG11 1.60, AlexNet 2.99"
    assert verdicts(claims_measured.figure_8([], "figure8.h5")) == ["not measured yet"] * 5
    worse = [replace(p, latency_s=p.latency_s * 3) if p.model == "vgg11" and p.offload else p for p in EIGHT]
    assert verdicts(claims_measured.figure_8(worse, ""))[3] == "does not hold"


def devices(scheme: str, rate: float, latencies: dict[int, float], **changes: object) -> list[Point]:
    return [point(ms, scheme=scheme, rate_mb_per_s=rate, ranks=n, **changes) for n, ms in latencies.items()]


NINE = [
    point(40, ranks=1, scheme="single", gather="pool"),
    point(40, ranks=1, scheme="single", gather="pool", rate_mb_per_s=10.0),
    *devices("kpm", 100, {2: 35, 4: 30, 8: 25, 12: 20, 16: 19}),
    *devices("wpm", 100, {2: 30, 4: 25, 8: 22, 12: 24}),
    *devices("kpm", 10, {2: 90}),
]


def test_claims_of_figure_9():
    curves = device_curves(NINE)
    assert [(c.scheme, c.rate_mb_per_s, list(c.points)) for c in curves] == [
        ("kpm", 100, [1, 2, 4, 8, 12, 16]),
        ("wpm", 100, [1, 2, 4, 8, 12]),
        ("kpm", 10, [1, 2]),
    ]
    assert verdicts(claims_measured.figure_9(NINE, "")) == ["holds"] * 5
    assert verdicts(claims_measured.figure_9([], "")) == ["not measured yet"] * 5
    unicast = [*NINE[:2], *devices("kpm", 100, {2: 45, 4: 50, 8: 55, 12: 60}, compute_energy=3), *NINE[7:11]]
    unicast += devices("kpm", 10, {2: 39})
    assert verdicts(claims_measured.figure_9(unicast, "")) == [
        "in part", "holds", "does not hold", "does not hold", "does not hold",
    ]  # fmt: skip


def test_verdicts():
    def claim(*holds: bool | None) -> str:
        return Claim("", "", tuple(Case("", "", "", h) for h in holds)).verdict

    assert [claim(), claim(None), claim(True, None), claim(False), claim(True, False)] == [
        "not measured yet", "shown", "holds", "does not hold", "in part",
    ]  # fmt: skip


def test_calculated_claims():
    graph, pooled = (trace(skeleton("alexnet"), (3, 227, 227)).grouped(gather) for gather in ("conv", "pool"))
    assert verdicts(claims_calculated.figure_3(graph, [], "")) == ["holds"]
    assert verdicts(claims_calculated.figure_4(graph, [], "")) == ["holds", "in part", "in part", "not measured yet"]
    six = claims_calculated.figure_6(graph, [], "")
    assert verdicts(six) == ["holds", "holds", "holds", "holds", "does not hold"]
    assert [case.found for case in six[2].cases] == [
        f"KPM is the lower one from {n} devices on" for n in (8, 7, 7, 7, 7)
    ]
    assert claims_calculated.figure_4(graph, [], "")[1].cases[0].found == "28.3%"
    assert claims_calculated.most_devices(graph, pooled).verdict == "holds"
    assert claims_calculated.figure_7([0.6, 0.9]).verdict == "holds"
    assert claims_calculated.figure_7(None).verdict == "not measured yet"


@pytest.mark.parametrize(("draw", "runs"), [(figure_8, EIGHT), (figure_9, NINE)])
def test_figures(draw, runs, tmp_path):
    draw(runs, tmp_path / "f.svg")
    text = (tmp_path / "f.svg").read_text()
    assert "measured on emulated devices (dilation 4)" in text
    assert "exchange after the convolution" in text
    draw([replace(p, emulated=False) for p in runs], tmp_path / "real.svg")
    assert "emulated" not in (tmp_path / "real.svg").read_text()
    with pytest.raises(MpiconvError, match="figure"):
        draw([], tmp_path / "none.png")


def test_report_command(files, tmp_path):
    ended = mpiconv(0, "report", *files, "--combine", "--out", tmp_path / "all.h5")
    assert ended.status == 0, ended.err
    assert "combined 3 runs" in ended.out
    ended = mpiconv(0, "report", tmp_path / "all.h5", "--figure", 8, "--out", tmp_path / "8.png")
    assert (ended.status, len(ended.errors)) == (1, 1)
    assert "figure 8 needs runs over two devices" in ended.errors[0]
    ended = mpiconv(0, "report", files[0], "--figure", 9, "--trace", tmp_path / "t.json")
    assert (ended.status, "--trace is for the page" in ended.errors[0]) == (2, True)
    assert "unknown value '3': choose from 8, 9" in mpiconv(0, "report", files[0], "--figure", 3).errors[0]


def test_page_without_results_says_so(tmp_path):
    write_page(tmp_path, tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "**Nothing was measured yet**" in page
    assert '**`figure8.h5` is not there: what needs it is marked "not measured yet".**' in page
    assert page.count("**not measured yet**") == 16
    assert "![" not in page


def test_page_with_results(files, tmp_path):
    data = combine(files)
    write_combined(data, tmp_path / "figure9.h5")
    Image.new("RGB", (8, 8)).save(tmp_path / "figure9.png")
    (tmp_path / "docs").mkdir()
    write_page(tmp_path, tmp_path, tmp_path / "docs" / "page.md", option=" --quick")
    page = (tmp_path / "docs" / "page.md").read_text()
    assert "**No real board took part: the devices are\nemulated**" in page
    assert "3 runs" in page
    assert "2 to 5 repeats each" in page
    assert "](../figure9.png)" in page
    assert "k f^3 = 1000 W" in page
    assert "figure9.h5` is not there" not in page
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert all(line.count("|") in (4, 5) for line in rows), "a bar in a table's text breaks the table"


def test_a_lost_part_costs_answers():
    model, data = load_model("digits"), open_data("digits", "held-out")
    found = lost_parts(model, LabelledPictures(data, model.info, data.about.classes))
    assert found.pictures == len(data)
    assert found.whole > 0.95
    for share in (found.channels, found.rows, found.picture_rows):
        assert 0.1 < share < found.whole
    claim = next(c for c in claims_measured.section_3([], "f", found) if "robust" in c.paper)
    assert claim.verdict == ("holds" if found.channels > found.picture_rows else "does not hold")


def test_the_tracked_page_is_of_this_program():
    page = (ROOT / "docs" / "reproduction.md").read_text()
    for name in ("figure8.h5", "figure9.h5"):
        assert (f"`{name}` is not there" in page) == (not (ROOT / "results" / name).exists())


def test_figures_script_usage():
    script = ROOT / "scripts" / "figures.sh"
    ended = subprocess.run(
        ["bash", str(script), "--fast"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=clean_environment(),
    )
    assert (ended.returncode, ended.stderr) == (2, "usage: bash scripts/figures.sh [--quick|--full|--draw]\n")
