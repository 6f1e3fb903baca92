"""The plan that was fastest is where the next run on the same devices begins; what does not fit is ignored and said."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from torch import nn

from mpiconv.graph.trace import trace
from mpiconv.partition import make_plan
from mpiconv.planner.candidates import candidates
from mpiconv.planner.kept_plans import (
    KEPT,
    Circumstances,
    KeptPlan,
    load_plan,
    network_hash,
    save_plan,
    with_kept,
)
from mpiconv.runtime.trials import shortlist
from tests.conftest import mpiconv
from tests.test_simulation import cluster

MODEL = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(1152, 5)).eval()
SHAPE = (2, 3, 16, 16)
GRAPH = trace(MODEL, SHAPE[1:], batch=2).layers
ON = cluster(1.0, 2.0)
DEVICES = ({"host": "a", "torch": "2.13.0", "threads": 1}, {"host": "b", "torch": "2.13.0", "threads": 1})
HERE = Circumstances(network_hash(GRAPH), 2, DEVICES, {"wire": "float32"})
PLAN = KeptPlan("wpm, own shares", make_plan(MODEL, SHAPE, "wpm", 2, (1, 3)), 0.25)


def test_a_plan_is_kept_and_replaced(tmp_path):
    assert load_plan(tmp_path, HERE, ON) == (None, "")
    for kept in (replace(PLAN, measured_s=0.5), replace(PLAN, name=f"{KEPT}: {PLAN.name}")):
        assert save_plan(tmp_path, HERE, ON, kept) == ""
    assert load_plan(tmp_path, HERE, ON) == (PLAN, "")
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"network": network_hash(trace(MODEL[:3], SHAPE[1:]).layers)}, id="network"),
        pytest.param({"network": network_hash(trace(nn.Conv2d(3, 2, 3), (3, 20, 16)).layers)}, id="size"),
        pytest.param({"batch": 1}, id="batch"),
        pytest.param({"devices": DEVICES[::-1]}, id="order"),
        pytest.param({"devices": ({**DEVICES[0], "torch": "2.14.0"}, DEVICES[1])}, id="torch"),
        pytest.param({"settings": {"wire": "float16"}}, id="settings"),
    ],
)
def test_a_plan_for_something_else_is_not_found(change, tmp_path):
    save_plan(tmp_path, HERE, ON, PLAN)
    assert load_plan(tmp_path, replace(HERE, **change), ON) == (None, "")


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        pytest.param(lambda text: text[:-9], "is not JSON", id="cut-off"),
        pytest.param(lambda _: "[]", "mpiconv_kept_plan is None", id="a-list"),
        pytest.param(lambda text: text.replace('plan": 1', 'plan": 9', 1), "mpiconv_kept_plan is 9", id="version"),
        pytest.param(lambda text: text.replace("2.13.0", "2.12.0"), "something else than its name says", id="renamed"),
        pytest.param(lambda text: text.replace('"plan": {', '"plam": {'), "KeyError 'plan'", id="no-plan"),
        pytest.param(
            lambda text: text.replace('"measured_s": 0.25', '"measured_s": NaN'), "measured_s is nan", id="nan"
        ),
        pytest.param(lambda text: text.replace('"batch": 2, "', '"batch": 3, "'), "", id="other-batch"),
        pytest.param(lambda text: text.replace("1000000.0", "3000000.0"), "links had other rates", id="links"),
        pytest.param(lambda text: text.replace("1000000.0, ", ""), "ValueError", id="a-link-less"),
    ],
)
def test_a_file_of_no_use_is_ignored_and_said(spoil, word, tmp_path):
    save_plan(tmp_path, HERE, ON, PLAN)
    path = HERE.path(tmp_path)
    path.write_text(spoil(path.read_text()))
    kept, note = load_plan(tmp_path, HERE, ON)
    assert kept is None
    assert note.startswith(str(path))
    assert word in note
    assert note.endswith(": ignored")
    assert "\n" not in note


def test_links_may_be_somewhat_faster(tmp_path):
    save_plan(tmp_path, HERE, ON, PLAN)
    assert load_plan(tmp_path, HERE, ON.with_links(1.9))[0] == PLAN
    assert load_plan(tmp_path, HERE, ON.with_links(0.4))[0] is None


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    assert "is not kept for the next run: " in save_plan(tmp_path / "file" / "folder", HERE, ON, PLAN)


def test_it_is_tried_first_beside_rank_0_alone_and_never_twice():
    listed = shortlist(candidates(GRAPH, ON, 2))
    tried = with_kept(listed, PLAN, ON)
    assert [each.name for each in tried] == [listed[0].name, f"{KEPT}: {PLAN.name}", *(o.name for o in listed[1:])]
    assert tried[1].latency_s == pytest.approx(PLAN.measured_s)
    for number, each in enumerate(listed[1:], 1):
        again = with_kept(listed, KeptPlan(each.name, each.plan, 0.1), ON)
        others = [one for place, one in enumerate(listed) if place not in (0, number)]
        assert [one.plan.boxes for one in again[2:]] == [one.plan.boxes for one in others]
    assert with_kept(listed, KeptPlan("own", listed[0].plan, 0.1), ON) == listed


def test_by_the_estimate_the_quicker_is_taken():
    best = candidates(GRAPH, ON, 2)[:1]
    took = best[0].latency_s
    assert with_kept(best, replace(PLAN, measured_s=took / 2), ON)[0].plan == PLAN.plan
    assert with_kept(best, replace(PLAN, measured_s=took * 2), ON) == best


def test_a_plan_for_which_there_is_no_memory_any_more_is_left_out():
    listed = shortlist(candidates(GRAPH, ON, 2))
    assert with_kept(listed, PLAN, ON, [None, 1.0]) == listed


def test_the_next_run_begins_with_it(tmp_path):
    path, cache = tmp_path / "c.toml", {"MPICONV_CACHE": str(tmp_path / "cache")}
    ON.save(path)
    words = ("run", "--model", "digits", "--scheme", "auto", "--cluster", path, "--repeats", 30, "--json", "--check")
    assert mpiconv(2, *words, **cache).status == 0
    (file,) = (tmp_path / "cache" / "wisdom").glob("plan-*.json")
    saved = tmp_path / "plan.json"
    assert mpiconv(0, "plan", "--model", "digits", "--scheme", "wpm", "--save", saved).status == 0
    data = json.loads(file.read_text()) | {"name": "by hand", "plan": json.loads(saved.read_text()), "measured_s": 1e-5}
    file.write_text(json.dumps(data))
    ended = mpiconv(2, *words, **cache)
    assert ended.status == 0, ended.err
    assert ended.json["check"]["max_rel_error"] <= 1e-5
    kept = ended.json["auto"][1]
    assert (kept["name"], kept["estimated_s"]) == (f"{KEPT}: by hand", pytest.approx(1e-5))
    assert kept["frames"]
    now = json.loads(file.read_text())
    assert now["measured_s"] != 1e-5
    assert KEPT not in now["name"]
