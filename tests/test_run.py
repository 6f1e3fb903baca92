"""``mpirun mpiconv run`` as a user types it: answers, exactness, JSON, files, tables."""

from __future__ import annotations

import json
import re
import sys
import time

import h5py
import pytest

from mpiconv.partition import make_plan
from tests.conftest import PICTURES, ROOT, execute, mpiconv
from tests.test_plan import skeleton

JSON_KEYS = {
    "model", "scheme", "ranks", "batch", "input_shape", "latency_s", "throughput_fps", "bytes_sent", "bytes_received",
    "weight_bytes", "peak_rss_bytes", "compute_energy_j", "transfer_energy_j", "predicted_latency_s",
    "predictions", "check", "gain", "output",
    "weights_received_bytes", "weights_stored_bytes",
}  # fmt: skip

DIGITS = [str(PICTURES / f"digit-{digit}.png") for digit in range(10)]


@pytest.mark.parametrize(
    ("ranks", "model", "scheme"),
    [
        (1, "alexnet", "single"),
        (2, "vgg11", "wpm"),
        (3, "alexnet", "kpm"),
        (3, "alexnet", "wpm"),
        (4, "vgg11", "kpm"),
        (6, "alexnet", "wpm"),
    ],
)
def test_exact(ranks, model, scheme):
    ended = mpiconv(
        ranks, "run", "--model", model, "--scheme", scheme, "--check", "--json", "--repeats", 2, "--warmup", 0
    )
    assert ended.status == 0, ended.err
    check = ended.json["check"]
    assert check["max_rel_error"] <= 1e-5
    if scheme != "wpm":
        assert check["equal"], "not bit for bit the same on one thread"


@pytest.mark.parametrize(
    ("ranks", "model", "scheme"),
    [(3, "mobilenet_v2", "kpm"), (2, "squeezenet1_1", "wpm"), (4, "resnet18", "grid")],
)
def test_other_models_are_exact(ranks, model, scheme):
    words = ["--model", model, "--input-size", "64x64", "--scheme", scheme, "--check", "--json", "--repeats", 1]
    ended = mpiconv(ranks, "run", *words)
    assert ended.status == 0, ended.err
    assert ended.json["check"]["max_rel_error"] <= 1e-5


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        pytest.param(3, ["--scheme", "kpm", "--shares", "0.7,0.2,0.1"], id="kpm-uneven"),
        pytest.param(3, ["--scheme", "wpm", "--shares", "0.7,0.2,0.1"], id="wpm-uneven"),
        pytest.param(3, ["--scheme", "kpm", "--shares", "1,0,1"], id="kpm-idle-rank"),
        pytest.param(3, ["--scheme", "wpm", "--shares", "0,1,1", "--gather", "conv"], id="wpm-idle-root"),
        pytest.param(2, ["--scheme", "kpm", "--offload", "0"], id="kpm-offload-0"),
        pytest.param(2, ["--scheme", "kpm", "--offload", "0.5"], id="kpm-offload-half"),
        pytest.param(2, ["--scheme", "kpm", "--offload", "1"], id="kpm-offload-1"),
        pytest.param(2, ["--scheme", "wpm", "--offload", "1", "--batch", "2"], id="wpm-offload-1-batch-2"),
    ],
)
def test_shares(ranks, words):
    ended = mpiconv(ranks, "run", "--model", "digits", *words, "--check", "--json", "--repeats", 2)
    assert ended.status == 0, ended.err
    report = ended.json
    assert report["check"]["max_rel_error"] <= 1e-5
    assert report["check"]["equal"] or "kpm" not in words
    scheme, gather = words[1], "conv" if "conv" in words else "pool"
    shares = {"0": [1, 0], "0.5": [1, 1], "1": [0, 1]}.get(words[3]) or [float(s) for s in words[3].split(",")]
    plan = make_plan(skeleton("digits"), report["input_shape"], scheme, ranks, shares, gather)
    units = range(len(plan.graph.units))
    assert report["bytes_received"] == [sum(plan.bytes_received(u, r) for u in units) for r in range(ranks)]


@pytest.mark.parametrize(("gather", "elements"), [("conv", 783035), ("pool", 402235)])
def test_kpm_traffic_counted_at_run_time(gather, elements):
    report = mpiconv(2, "run", "--gather", gather, "--json", "--repeats", 3).json
    assert sum(report["bytes_received"]) == sum(report["bytes_sent"]) == 4 * elements


def test_digits_are_read_right(tmp_path):
    answers, out = tmp_path / "answers.jsonl", tmp_path / "new" / "digits.h5"
    ended = mpiconv(
        2, "run", "--model", "digits", "--image", *DIGITS, "--scheme", "kpm", "--batch", 4, "--repeats", 5, "--check",
        "--json", "--answers", answers, "--output", out,
    )  # fmt: skip
    assert ended.status == 0, ended.err
    report = ended.json
    assert set(report) == JSON_KEYS
    assert [p["label"] for p in report["predictions"]] == list("0123456789")
    assert [p["image"] for p in report["predictions"]] == DIGITS
    assert report["check"]["batches"] == 3
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [(line["index"], line["label"]) for line in lines] == list(enumerate("0123456789"))
    assert all(0.5 < line["score"] <= 1 for line in lines)
    with h5py.File(out) as file:
        assert file.attrs["schema_version"] == 1
        assert file.attrs["scheme"] == "kpm"
        assert list(file["unit"].asstr()) == ["conv1", "conv2", "conv3", "head"]
        assert file["compute_time"].shape == (5, 2, 4)
        assert file["bytes_received"][()].sum(axis=1).tolist() == report["bytes_received"]
    assert [path.name for path in out.parent.iterdir()] == ["digits.h5"], "a temporary file is left"


def test_what_a_person_sees(tmp_path):
    ended = mpiconv(2, "run", "--model", "digits", "--data", PICTURES, "--repeats", 12, "--output", tmp_path / "r.h5")
    assert ended.status == 0, ended.err
    assert re.search(r"digit-7\.png +7 +0\.\d+", ended.out)
    assert re.search(r"latency +median [\d.]+ ms.*\(12 repeats\)", ended.out)
    assert re.search(r"^conv1 +[\d.]+ \+ [\d.]+ +[\d.]+ \+ [\d.]+$", ended.out, re.M)
    assert f"results  {tmp_path / 'r.h5'}" in ended.out
    assert "%|" not in ended.err, "a progress bar where there is no terminal"


def test_quiet_and_notes():
    ended = mpiconv(0, "run", "--model", "digits", "--repeats", 2)
    assert ended.status == 0
    assert "running on one rank; start more with: mpirun -n 2 mpiconv run" in ended.err
    ended = mpiconv(0, "run", "--model", "digits", "--repeats", 2, "--quiet")
    assert ended.err == ""
    assert "where the time went" not in ended.out
    ended = mpiconv(0, "run", "--model", "digits", "--repeats", 2, "--input-size", "20x20")
    assert (ended.status, len(ended.errors)) == (1, 1)
    assert "layer classifier.1 wants 1024 features" in ended.errors[0]
    ended = mpiconv(4, "run", "--model", "digits", "--repeats", 2, "--scheme", "wpm", "--shares", "9,9,9,1")
    assert ended.status == 0
    assert "rank 3 has nothing to compute in conv2, conv3" in ended.err
    assert ended.err.count("rank 3 has nothing") == 1


def test_a_saved_plan_is_run(tmp_path):
    path = tmp_path / "plan.json"
    made = mpiconv(
        0, "plan", "--model", "digits", "--scheme", "grid", "--ranks", 3, "--shares", "3,1,2", "--save", path
    )
    assert made.status == 0, made.err
    assert "conv3" in made.out
    assert mpiconv(0, "plan", "--plan", path).out == made.out
    ended = mpiconv(3, "run", "--model", "digits", "--plan", path, "--check", "--json", "--repeats", 2)
    assert ended.status == 0, ended.err
    assert ended.json["scheme"] == "grid"


def test_own_model_from_the_working_folder():
    ended = mpiconv(
        2, "run", "--model", "tests.own_model:make", "--input-size", "30x41", "--scheme", "wpm", "--check", "--json",
        "--repeats", 2, cwd=ROOT,
    )  # fmt: skip
    assert ended.status == 0, ended.err
    assert ended.json["input_shape"] == [1, 4, 30, 41]
    assert ended.json["predictions"] == []


def test_the_progress_bar_is_on_a_terminal_only():
    command = ["mpirun", "-n", "2", sys.executable, "-m", "mpiconv", "run", "--model", "digits", "--repeats", "300"]
    ended = execute(["script", "-qec", " ".join(command), "/dev/null"])
    assert ended.status == 0
    assert "inferences: 100%" in ended.out


def test_help_needs_neither_torch_nor_mpi():
    imported = "print(*(name in sys.modules for name in ('torch', 'mpi4py')))"
    code = f"import sys; from mpiconv.cli import main; main(['--help']); {imported}"
    ended = execute([sys.executable, "-c", code])
    assert ended.out.endswith("False False\n")
    for command in ("run", "plan"):
        begin = time.monotonic()
        ended = mpiconv(0, command, "--help")
        assert "--scheme" in ended.out
        assert time.monotonic() - begin < 30
