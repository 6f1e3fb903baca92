"""Records, clocks, energy and result files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import timeit
import warnings

import h5py
import numpy as np
import pytest
import torch

import mpiconv as package
from mpiconv.errors import MpiconvError, UsageError
from mpiconv.job.clocks import ClockReading, on_root_clock
from mpiconv.measure import Record, open_results
from mpiconv.measure.energy import load_profile
from mpiconv.measure.power import find_meter
from mpiconv.measure.record import KINDS
from mpiconv.measure.results import write_results
from tests.conftest import ROOT, clean_environment, execute, mpiconv


def record(repeats: int = 4, ranks: int = 2) -> Record:
    """A record of a run that never was: 1 ms exchanging and 2 ms computing in each of 3 units."""
    units = ("conv1", "conv2", "head")
    start = np.arange(repeats)[:, None, None] + 0.003 * np.arange(3) + np.zeros((repeats, ranks, 3))
    counts = np.full((ranks, 3), 1000)
    return Record(
        units=units,
        latency_s=np.full(repeats, 0.0095),
        stamps_s=np.stack([start, start + 0.001, start + 0.003], axis=-1),
        bytes_sent=counts * 2,
        bytes_received=counts,
        multicast_bytes=counts // 2,
        messages_sent=counts // 1000,
        bytes_sent_by_kind=np.stack([counts * 2 * (kind == "allgatherv") for kind in KINDS], axis=-1),
        messages_sent_by_kind=np.stack([counts // 1000 * (kind == "allgatherv") for kind in KINDS], axis=-1),
        flops=counts,
        weight_bytes=np.full(ranks, 4000),
        peak_rss_bytes=np.full(ranks, 10**8),
        threads=np.ones(ranks, int),
        pace=np.ones(ranks),
        pace_overrun=np.zeros(ranks),
        measured_joules=np.full(ranks, np.nan),
        clock_offset_s=np.zeros(ranks),
        clock_drift=np.zeros(ranks),
        clock_error_s=np.zeros(ranks),
        hostnames=tuple(f"host{r}" for r in range(ranks)),
        meters=("",) * ranks,
        patterns=("bcast", "allgatherv", "gatherv"),
    )


ATTRIBUTES = {"name": "", "model": "net", "scheme": "kpm", "input_shape": [1, 3, 8, 8], "batch": 1}


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "r.h5"
    write_results(path, record(), load_profile("paper"), ATTRIBUTES)
    return path


def test_files_open_in_xarray_without_a_warning(written):
    import xarray

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = xarray.open_dataset(written, engine="h5netcdf").load()
    assert set(data.sizes) == {"repeat", "rank", "unit"}
    assert list(data.unit.values) == ["conv1", "conv2", "head"]
    for name, variable in data.variables.items():
        assert "units" in variable.attrs, name
        assert variable.attrs["long_name"], name
    assert data.compute_time.dims == data.exchange_time.dims == data.exchange_start.dims == ("repeat", "rank", "unit")
    assert np.allclose(data.compute_time, 0.002)
    assert np.allclose(data.exchange_time, 0.001)
    assert data.bytes_sent_allgatherv.dims == ("rank", "unit")
    assert "bytes_sent_p2p" not in data
    assert data.compute_energy.attrs["method"] == "model"
    assert data.measured_energy.attrs["method"] == "none"
    for name in ("schema_version", "creator", "created", "git_commit", "energy_name", "energy_k", "link_bytes_per_s"):
        assert name in data.attrs


def test_what_was_predicted_is_a_variable_of_rank_and_unit(tmp_path, written):
    import xarray

    path, stamps = tmp_path / "p.h5", record().stamps_s[0] * 2
    write_results(path, record(), load_profile("paper"), ATTRIBUTES, stamps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = xarray.open_dataset(path, engine="h5netcdf").load()
    for name, each_s in (("predicted_compute_time", 0.004), ("predicted_exchange_time", 0.002)):
        assert data[name].dims == ("rank", "unit")
        assert np.allclose(data[name], each_s)
        assert data[name].attrs["units"] == "s"
        assert "estimated" in data[name].attrs["long_name"]
    assert data.attrs["predicted_latency"] == pytest.approx(0.018)
    assert data.attrs["schema_version"] == open_results(written).attrs["schema_version"] == 1
    assert "predicted_compute_time" not in open_results(written)


def test_plain_h5py_is_enough(written):
    with h5py.File(written) as file:
        assert file["latency"].dims[0][0].name == "/repeat"
        assert file["rank"].is_scale
        assert file["hostname"].asstr()[:].tolist() == ["host0", "host1"]


def test_open_several(tmp_path, written):
    write_results(tmp_path / "s.h5", record(), load_profile("pi4"), ATTRIBUTES)
    tree = open_results(tmp_path / "*.h5")
    assert sorted(tree.children) == ["r", "s"]
    assert tree["s"].attrs["energy_name"] == "pi4"
    assert float(open_results(written).latency[0]) == 0.0095


def test_files_that_are_refused(tmp_path, written):
    cases = {"cut.h5": "is damaged or cut short", "empty.h5": "is no HDF5 file", "text.h5": "is no HDF5 file"}
    (tmp_path / "cut.h5").write_bytes(written.read_bytes()[:3000])
    (tmp_path / "empty.h5").write_bytes(b"")
    (tmp_path / "text.h5").write_text("not HDF5")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = 1
    cases["foreign.h5"] = "no result file of mpiconv: it has no latency"
    for version, word in ((2, "update mpiconv"), (0, "run it again")):
        path = tmp_path / f"v{version}.h5"
        path.write_bytes(written.read_bytes())
        with h5py.File(path, "a") as file:
            file.attrs["schema_version"] = version
        cases[path.name] = f"has schema_version {version}, this mpiconv reads 1: {word}"
    cases["missing.h5"] = "there is no such file"
    for name, word in cases.items():
        with pytest.raises(MpiconvError, match=word) as caught:
            open_results(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(MpiconvError, match="no file matches"):
        open_results(tmp_path / "none*.h5")


def test_a_missing_extra_is_named(written):
    code = f"import sys; sys.modules['xarray'] = None; import mpiconv; mpiconv.open_results({str(written)!r})"
    ended = execute([sys.executable, "-c", code])
    assert "this needs xarray: pip install -e '" in ended.err
    blocked = "import sys; sys.modules['matplotlib'] = None; from mpiconv.cli import main; main(sys.argv[1:])"
    ended = execute([sys.executable, "-c", blocked, "report", str(written), "--out", "/tmp/never.html"])
    assert (ended.status, len(ended.errors)) == (1, 1)
    assert "this needs matplotlib: pip install -e '" in ended.errors[0]


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.05, 0.1, 0.2])
def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path, written, delay_s):
    """Killed while it writes the same file again and again, the file there is always a whole one."""
    code = (
        "from tests.test_measure import ATTRIBUTES, record, write_results, load_profile\n"
        "print('ready', flush=True)\n"
        f"while True: write_results({str(written)!r}, record(), load_profile('pi4'), ATTRIBUTES)"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env=clean_environment()) as process:
        process.stdout.readline()
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
    assert open_results(written).attrs["energy_name"] in ("paper", "pi4")


def test_paper_energy():
    profile = load_profile("paper")
    assert profile.compute_power_w == pytest.approx(1000)
    assert profile.compute_joules(record()).tolist() == pytest.approx([6.0, 6.0])
    assert profile.transfer_joules(record()).tolist() == pytest.approx([1500 / 100e6 * 0.8] * 2)
    assert load_profile("pi4").transfer_joules(record()).tolist() == pytest.approx([9000 / 100e6 * 0.8] * 2)


def test_profiles_from_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[board]\ncompute_power_w = 5\ntransfer_power_w = 1\n")
    assert load_profile(str(path)) == load_profile(f"{path}:board")
    assert load_profile(str(path)).compute_power_w == 5
    path.write_text("[a]\ncompute_power_w = 5\n[b]\n")
    for name, kind, word in [
        ("nothing", UsageError, "choose from paper, pi4, xavier-nx, laptop"),
        ("pi5", UsageError, "did you mean 'pi4'"),
        (str(path), UsageError, "has the profiles a, b: choose one as"),
        (f"{path}:a", MpiconvError, "a has no transfer_power_w"),
        ("none.toml", MpiconvError, r"none\.toml: No such file"),
    ]:
        with pytest.raises(kind, match=word):
            load_profile(name)
    for text, word in [
        (
            "[a]\ncompute_pwer_w = 5\ntransfer_power_w = 1",
            "unknown key 'compute_pwer_w'; did you mean 'compute_power_w'",
        ),
        ("[a]\ncompute_power_w = -5\ntransfer_power_w = 1", "compute_power_w of a is -5"),
        ("[a]\ncompute_power_w = 5\ntransfer_power_w = 1\ntraffic = 'x'", "multicast or unicast is wanted"),
        ("[a", "is not TOML"),
    ]:
        path.write_text(text)
        with pytest.raises(MpiconvError, match=word):
            load_profile(str(path))


def zone(root, folder_name, /, **files):
    folder = root / folder_name
    folder.mkdir(parents=True, exist_ok=True)
    for file, value in files.items():
        (folder / file).write_text(f"{value}\n")
    return folder


def test_rapl_counts_all_packages_and_wraps_around(tmp_path):
    powercap = tmp_path / "class" / "powercap"
    packages = [
        zone(powercap, f"intel-rapl:{i}", name=f"package-{i}", energy_uj=9_000_000, max_energy_range_uj=10_000_000)
        for i in range(2)
    ]
    zone(powercap, "intel-rapl:0:0", name="core", energy_uj=5, max_energy_range_uj=10)
    zone(powercap, "intel-rapl:2", name="psys", energy_uj=5, max_energy_range_uj=10)
    meter, why = find_meter(tmp_path)
    assert (meter.method, why) == ("rapl", "")
    meter.begin()
    (packages[0] / "energy_uj").write_text("500000")  # wrapped around: 1.5 J
    (packages[1] / "energy_uj").write_text("9250000")
    meter.sample()
    assert meter.joules == pytest.approx(1.75)
    meter.start()
    (packages[1] / "energy_uj").write_text("9300000")
    meter.start()  # again: only what comes from now on counts
    (packages[1] / "energy_uj").write_text("9400000")
    assert meter.stop() == pytest.approx(0.1)


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["ina3221", "power"])
def test_board_sensors_are_integrated(tmp_path, kind):
    hwmon = tmp_path / "class" / "hwmon"
    zone(hwmon, "hwmon0", name="cpu_thermal", temp1_input=40000)
    if kind == "ina3221":
        rails = {"in1_label": "VDD_IN", "in1_input": 5000, "curr1_input": 1200}
        rails |= {"in2_label": "VDD_CPU", "in2_input": 5000, "curr2_input": 400}  # is part of the input
        zone(hwmon, "hwmon1", name="ina3221", **rails)
    else:
        zone(hwmon, "hwmon1", name="fam15h_power", power1_input=6_000_000)
    meter, _ = find_meter(tmp_path)
    assert meter.method == "ina"
    begin = time.perf_counter()
    meter.start()
    time.sleep(0.2)
    joules = meter.stop()
    elapsed = time.perf_counter() - begin
    assert 6 * 0.2 <= joules <= 6 * elapsed + 0.01


def test_a_machine_without_meters_says_why(tmp_path):
    meter, why = find_meter(tmp_path)
    assert meter is None
    assert "no RAPL zones" in why
    folder = zone(tmp_path / "class" / "powercap", "intel-rapl:0", name="package-0")
    meter, why = find_meter(tmp_path)
    assert meter is None
    assert f"{folder / 'energy_uj'} can be read by root only" in why


def test_times_of_a_drifting_clock_come_back():
    true = np.linspace(0, 100, 11)
    theirs = true * (1 + 1e-4) + 5
    begin = ClockReading(np.array([0, 5.0]), np.zeros(2), 0.0)
    end = ClockReading(np.array([0, 5.01]), np.zeros(2), 100.0)
    assert np.allclose(on_root_clock(theirs, 1, begin, end), true, atol=2e-6)


@pytest.mark.alone
def test_recording_costs_less_than_a_hundredth():
    """Stamping a unit, the only thing recorded per repeat, against the shortest inference of the smallest model."""
    model = package.load_model("digits").eval()
    image = torch.zeros(1, 1, 32, 32)
    with torch.inference_mode():
        runs_s = timeit.repeat(lambda: model(image), number=1, repeat=100)
    units, frames = 4, 1000
    stamp = timeit.Timer("stamps.append(clock())", "stamps = []", globals={"clock": time.perf_counter})
    stamps_s = min(stamp.repeat(number=(1 + 2 * units) * frames)) / frames
    assert stamps_s < 0.01 * np.median(runs_s)


@pytest.mark.alone
def test_a_run_is_explained_and_its_clocks_agree(tmp_path):
    path = tmp_path / "r.h5"
    ended = mpiconv(
        3, "run", "--model", "alexnet", "--repeats", 8, "--output", path, "--name", "my run", "--energy", "pi4"
    )
    assert ended.status == 0, ended.err
    data = open_results(path)
    root = (data.compute_time + data.exchange_time).sel(rank=0).sum("unit")
    assert float((root / data.latency).median()) > 0.95
    assert data.attrs["name"] == "my run"
    assert data.attrs["energy_source"].startswith("nominal")
    assert float(data.clock_error.max()) < 0.05
    gathered = data.sel(unit="conv2")
    ends = gathered.exchange_start + gathered.exchange_time
    latest_start, earliest_end = gathered.exchange_start.max("rank"), ends.min("rank")
    slack = 2 * float(data.clock_error.max())
    assert bool((latest_start <= earliest_end + slack).all()), "the ranks' spans of one Allgatherv do not overlap"
    assert "imbalance" in ended.out
    assert "slowest unit" in ended.out
    assert "by the model pi4 (3.7 W while computing)" in ended.out
    assert os.listdir(tmp_path) == ["r.h5"]
