"""``--scheme auto`` as a user types it: exact, never a plan that was measured to be slower, said in a sentence."""

from __future__ import annotations

import json
import re

import h5py
import pytest

from mpiconv.planner.cluster import Cluster
from mpiconv.planner.kept_plans import KEPT
from tests.conftest import mpiconv, own_cache
from tests.test_simulation import cluster

FEW = ("--model", "digits", "--scheme", "auto")


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_auto_is_exact_and_keeps_what_was_fastest(ranks, tmp_path):
    out = tmp_path / "auto.h5"
    ended = mpiconv(ranks, "run", *FEW, "--repeats", 40, "--check", "--json", "--output", out)
    assert ended.status == 0, ended.err
    report = ended.json
    assert report["check"]["max_rel_error"] <= 1e-5
    if ranks == 1:
        assert "auto" not in report
        return
    tried = report["auto"]
    assert tried[0]["name"].startswith("all on"), "one device alone is the first that is tried"
    measured = {each["name"]: each["measured_s"] for each in tried if each["frames"]}
    assert len(measured) > 1
    assert list((own_cache() / "wisdom").glob("*.json")), "what was measured of units is kept for the next start"
    if min(measured, key=measured.get) == tried[0]["name"]:
        assert report["scheme"] == "single"
    with h5py.File(out) as file:
        assert json.loads(file.attrs["auto_tried"]) == tried
        kept = next(each for each in tried if each["measured_s"] == min(measured.values()))
        assert file.attrs["predicted_latency"] == report["predicted_latency_s"]
        assert kept["estimated_s"] == report["predicted_latency_s"] or kept["name"].startswith(KEPT)
        timed = sum(each["frames"] for each in tried)
        assert 40 // 3 <= len(file["latency"]) <= 40 - timed, "the pictures of the trials are among the measured"


def test_every_picture_is_answered_once_whatever_plan_ran_it(tmp_path):
    answers = tmp_path / "answers.jsonl"
    ended = mpiconv(2, "run", *FEW, "--data", "digits", "--plan-by", "measure", "--answers", answers, "--json")
    assert ended.status == 0, ended.err
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(ended.json["answered"]))
    alone = mpiconv(1, "run", "--model", "digits", "--data", "digits", "--json").json
    assert [ended.json[key] for key in ("accuracy", "answered")] == [alone[key] for key in ("accuracy", "answered")]


def test_what_is_said(file_of):
    ended = mpiconv(2, "run", *FEW, "--cluster", file_of(2), "--repeats", 40)
    assert ended.status == 0, ended.err
    assert re.search(r"^auto +(do not split|split): .*, [\d.]+ ms a picture as measured", ended.out, re.M)
    assert re.search(r"^ +tried +measured +estimated$", ended.out, re.M)
    assert ended.out.count("all on a ") >= 1


@pytest.mark.parametrize("words", [("--plan-by", "estimate"), ("--repeats", "5")])
def test_by_the_estimate_nothing_is_tried(words, file_of):
    ended = mpiconv(2, "run", *FEW, "--cluster", file_of(2), "--check", "--json", *words)
    assert ended.status == 0, ended.err
    assert "auto" not in ended.json
    assert ended.json["check"]["max_rel_error"] <= 1e-5


def test_what_was_predicted_stands_beside_what_was_measured(file_of, tmp_path):
    plan, out = tmp_path / "plan.json", tmp_path / "r.h5"
    assert mpiconv(0, "plan", "--model", "digits", "--scheme", "wpm", "--save", plan).status == 0
    words = ("--model", "digits", "--cluster", file_of(2), "--repeats", 5, "--output", out)
    found = {}
    for name, split in {"scheme": ("--scheme", "wpm", "--json"), "plan": ("--plan", plan)}.items():
        ended = mpiconv(2, "run", *words, *split)
        assert ended.status == 0, ended.err
        found[name] = ended
        with h5py.File(out) as file:
            predicted = file.attrs["predicted_latency"]
            assert file["predicted_compute_time"].shape == file["flops"].shape
            assert "auto_tried" not in file.attrs
            own = file["predicted_compute_time"][0].sum() + file["predicted_exchange_time"][0].sum()
            assert own == pytest.approx(predicted), "the root's units add up to the latency"
    assert found["scheme"].json["predicted_latency_s"] == predicted
    assert (
        f"estimate predicted {1e3 * predicted:.2f} ms for this plan, one batch at a time; measured / predicted "
        in found["plan"].out
    )


def test_without_a_cluster_nothing_is_predicted(tmp_path):
    out = tmp_path / "r.h5"
    ended = mpiconv(2, "run", "--model", "digits", "--scheme", "wpm", "--repeats", 5, "--output", out, "--json")
    assert ended.json["predicted_latency_s"] is None
    with h5py.File(out) as file:
        assert not [name for name in (*file, *file.attrs) if name.startswith("predicted")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--shares", "1,2"), "--scheme auto chooses the shares by itself: leave --shares out, or name a scheme"),
        (("--offload", "0.5"), "--scheme auto chooses the offload by itself"),
        (("--head", "split"), "--scheme auto chooses the head by itself"),
        (("--cluster", "3"), "is a cluster of 3 devices and 2 ranks are running"),
        (("--scheme", "kpm", "--cluster", "3"), "is a cluster of 3 devices and 2 ranks are running"),
        (("--scheme", "kpm", "--plan-by", "measure"), "--plan-by is for --scheme auto: leave it out"),
    ],
)
def test_options_that_do_not_go_together(words, message, file_of):
    words = [file_of(int(word)) if word in ("2", "3") else word for word in words]
    ended = mpiconv(2, "run", *FEW, *words)
    assert ended.status == 2
    assert len(ended.errors) == 1
    assert message in ended.errors[0]


def test_plan_wants_a_cluster_for_auto(file_of):
    ended = mpiconv(0, "plan", *FEW)
    assert ended.status == 2
    assert "--cluster FILE.toml" in ended.errors[0]
    ended = mpiconv(0, "plan", *FEW, "--cluster", file_of(2))
    assert ended.status == 0, ended.err


def test_a_cluster_that_is_not_there():
    ended = mpiconv(2, "run", *FEW, "--cluster", "none.toml")
    assert ended.status == 1
    assert ended.errors == ["mpiconv: error: cannot read the cluster none.toml: No such file or directory"]


def test_no_plan_fits(tmp_path):
    on = cluster(1.0, 1.0).to_dict()
    for device in on["device"]:
        device["memory_bytes"] = 1000
    Cluster.from_dict(on).save(tmp_path / "small.toml")
    ended = mpiconv(2, "run", *FEW, "--cluster", tmp_path / "small.toml")
    assert ended.status == 1
    assert re.search(r"no plan for digits keeps a within 0 B: the nearest, .+, needs [\d.]+ MiB there", ended.errors[0])
