"""What a newcomer gets wrong at first: plans, pictures and files that do not fit; and what a run says unasked."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mpiconv import load_model, make_plan, trace
from mpiconv.cli.crowding import crowding
from mpiconv.cli.tables import where_time_went
from mpiconv.measure.record import typical
from mpiconv.partition.differences import first_difference, other_network
from mpiconv.runtime.inputs import why_unfit
from tests.conftest import PICTURES, mpiconv
from tests.test_measure import record
from tests.test_words import said  # noqa: F401 - a fixture

SHAPE = (1, 3, 8, 6)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (None, "given nothing$"),
        (np.zeros(SHAPE), r"a NumPy array of float64 \(1, 3, 8, 6\): pass torch.from_numpy\(picture\).float\(\)$"),
        (np.zeros((8, 6, 3), np.uint8), r"from_numpy\(picture\).float\(\).movedim\(-1, -3\)\[None\]$"),
        (np.zeros((4, 4), np.float32), r"a NumPy array of float32 \(4, 4\)$"),
        ([[0.0]], r"a list: pass torch.as_tensor\(picture\)$"),
        ("x.png", "given a str$"),
        (torch.zeros(3, 8, 6), r"torch.float32 \(3, 8, 6\): pass picture\[None\]$"),
        (torch.zeros(SHAPE, dtype=torch.float64), r"torch.float64 \(1, 3, 8, 6\): pass picture.float\(\)$"),
        (torch.zeros(SHAPE, device="meta"), r" on meta: pass picture.cpu\(\)$"),
        (torch.zeros(2, 3, 8, 6), r"torch.float32 \(2, 3, 8, 6\)$"),
    ],
)
def test_pictures_that_do_not_fit(images, sentence):
    found = why_unfit(images, SHAPE, finite=True)
    assert re.search(sentence, found), found
    assert found.startswith("the plan is for float32 pictures of shape (1, 3, 8, 6), rank 0 was given ")


@pytest.mark.parametrize(
    ("picture", "advice"),
    [
        (np.zeros(SHAPE), lambda picture: torch.from_numpy(picture).float()),
        (np.zeros((8, 6, 3), np.uint8), lambda picture: torch.from_numpy(picture).float().movedim(-1, -3)[None]),
    ],
)
def test_the_advice_helps(picture, advice):
    assert why_unfit(advice(picture), SHAPE, finite=True) == ""


@pytest.fixture
def plan_file(tmp_path):
    path = tmp_path / "p.json"
    make_plan(load_model("digits"), (2, 1, 32, 32), "wpm", 2, [3, 1], "pool", "split").save(path)
    return path


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--scheme wpm --shares 0.75,0.25 --batch 2 --head split --gather pool --input-size 32x32 --ranks 2",
        "--offload 0.25",
        "--shares 6,2",
    ],
)
def test_options_that_agree_with_a_plan(plan_file, words, capsys):
    from mpiconv.cli import main

    assert main(["plan", "--plan", str(plan_file), *words.split()]) == 0
    assert "scheme wpm, 2 ranks, gather pool, head split" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--scheme kpm", "is a plan with scheme wpm, and --scheme says kpm: leave --scheme out"),
        ("--shares 1,1", "is a plan with shares 0.75,0.25, and --shares says 1,1: leave --shares out"),
        ("--offload 0.5", "is a plan with shares 0.75,0.25, and --offload says 0.5: leave --offload out"),
        ("--batch 1", "is a plan with batch 2, and --batch says 1"),
        ("--head root", "is a plan with head split, and --head says root"),
        ("--gather conv", "is a plan with gather pool, and --gather says conv"),
        ("--input-size 64x32", "is a plan with input size 32x32, and --input-size says 64x32"),
        ("--ranks 1", "is a plan for 2 ranks, not for 1"),
    ],
)
def test_options_that_do_not_agree_with_a_plan(plan_file, words, sentence, said):  # noqa: F811
    status, message = said("plan", "--plan", str(plan_file), *words.split())
    assert (status, sentence in message) == (2, True), message


def test_run_takes_a_plan_as_it_is_or_says_what_differs(plan_file):
    words = ["run", "--model", "digits", "--plan", plan_file, "--repeats", 2]
    ended = mpiconv(2, *words, "--json")
    assert (ended.status, ended.json["batch"], ended.json["scheme"]) == (0, 2, "wpm"), ended.err
    ended = mpiconv(2, *words, "--batch", 1)
    assert (ended.status, len(ended.errors)) == (2, 1)
    assert "is a plan with batch 2, and --batch says 1" in ended.errors[0]
    ended = mpiconv(2, "run", "--model", "alexnet", "--plan", plan_file)
    assert (ended.status, len(ended.errors)) == (1, 1)
    assert "p.json is a plan for digits, and --model is alexnet: the plan wants features.0.weight" in ended.errors[0]


def _graph(*layers, shape=(3, 16, 16)):
    return trace(nn.Sequential(*layers).eval(), shape).graph


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ([nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)], ""),
        ([nn.Conv2d(3, 8, 3), nn.ReLU()], "unit conv2 of the plan is head in the model"),
        (
            [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Conv2d(4, 4, 1)],
            "unit head of the plan is conv3 in the model",
        ),
        ([nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 4, 3)], "unit conv1, layer 1: options"),
        ([nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)], "unit conv1 has the layer 1 (activation) in the plan alone"),
        (
            [nn.Conv2d(3, 9, 3), nn.ReLU(), nn.Conv2d(9, 4, 3)],
            "unit conv1, layer 0: output 8x14x14 in the plan, 9x14x14",
        ),
        (
            [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False)],
            "unit conv2, layer 2: params 2.weight 4x8x3x3, ",
        ),
        (
            [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2)],
            "unit conv2, layer 2: output 4x12x12 in the plan",
        ),
    ],
)
def test_the_first_difference_of_two_networks(layers, sentence):
    planned = _graph(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    found = first_difference(planned, _graph(*layers))
    assert found.startswith(sentence)
    assert bool(found) == bool(sentence)


def test_a_plan_for_another_network_names_both():
    sentence = other_network(
        trace(load_model("vgg11"), (3, 64, 64)).graph, trace(load_model("vgg13"), (3, 64, 64)).graph
    )
    assert "another network (vgg11) than this one (vgg13): unit conv" in sentence
    assert "pictures are 3x64x64 in the plan, 3x32x32" in first_difference(
        trace(load_model("vgg11"), (3, 64, 64)).graph, trace(load_model("vgg11"), (3, 32, 32)).graph
    )


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("run --output x.txt", "--output: 'x.txt' does not end with .h5 or .hdf5; is it 'x.h5'?"),
        ("run --output results", "'results' does not end with .h5"),
        ("plan --save plan.h5", "'plan.h5' does not end with .json; is it 'plan.json'?"),
        ("report a.h5 --trace t.html", "'t.html' does not end with .json"),
        ("report a.h5 --out a.h5", "--out of the page: 'a.h5' does not end with .html"),
    ],
)
def test_files_of_another_kind_are_not_written_over(line, sentence, said, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    status, message = said(*line.split())
    assert (status, sentence in message) == (2, True), message


@pytest.mark.parametrize(
    ("ranks", "notes"),
    [
        ([("m", [0, 1], 1, "a")] * 8, ["8 ranks with 8 threads in all share 2 cores of a: "]),
        ([("m", [0, 1], 64, "a")], ["1 rank with 64 threads in all share 2 cores of a: "]),
        ([("m", [0, 1], 1, "a")] * 2, []),
        (
            [("m", [0], 1, "a"), ("m", [1], 1, "b"), ("n", [0], 2, "c")],
            ["1 rank with 2 threads in all share 1 core of c: "],
        ),
    ],
)
def test_more_threads_than_cores(ranks, notes):
    found = crowding(ranks)
    assert len(found) == len(notes)
    assert all(mine.startswith(wanted) for mine, wanted in zip(found, notes, strict=True))


def _uneven():
    """A record whose medians do not add up: every repeat is late in another unit, and two are very late."""
    rng = np.random.default_rng(3)
    base = record(repeats=20)
    steps = rng.exponential(1e-3, (20, 2, 6)) + 1e-4
    steps[:2] += 0.1
    ends = np.concatenate([np.zeros((20, 2, 1)), steps.cumsum(axis=2)], axis=2)
    stamps = np.stack([ends[..., :-1:2], ends[..., 1::2], ends[..., 2::2]], axis=-1)
    return replace(base, stamps_s=stamps, latency_s=ends[:, 0, -1] + 0.0004)


def test_the_table_of_times_adds_up():
    mine = _uneven()
    table = {line.split()[0]: re.findall(r"\d+\.\d+", line) for line in where_time_went(mine).splitlines()[3:]}
    root = [sum(map(float, table[unit][:2])) for unit in mine.units]
    latency = float(table["latency"][0])
    assert sum(map(float, table["all"][:2])) == pytest.approx(sum(root), abs=0.04)
    assert sum(root) + float(table["between"][0]) == pytest.approx(latency, abs=0.05)
    assert latency == pytest.approx(1e3 * np.median(mine.latency_s), rel=0.1)
    medians = np.median(mine.compute_time_s + mine.exchange_time_s, axis=0)[0].sum()
    assert abs(1e3 * medians + 0.4 - latency) > 0.1, "the example has medians that add up"


@pytest.mark.parametrize(("latencies", "kept"), [([3.0], [0]), ([1, 9], [0]), ([5, 1, 4, 99, 3], [2, 0, 4])])
def test_typical_repeats(latencies, kept):
    assert sorted(typical(np.array(latencies, float))) == sorted(kept)


def test_a_run_says_what_it_gained_and_hides_answers_that_mean_nothing(tmp_path):
    words = ["run", "--model", "digits", "--repeats", 20]
    ended = mpiconv(2, *words, "--check", "--output", tmp_path / "r.h5", "--threads", 5)
    assert ended.status == 0, ended.err
    assert re.search(
        r"^gain     \d+\.\d\d x(: slower than| faster than) rank 0 alone \(\d+\.\d\d ms, median of 5\)$",
        ended.out,
        re.M,
    )
    assert "answers  mean nothing, the pictures are random: 20 not shown" in ended.out
    assert "random:1" not in ended.out
    assert "2 ranks with 10 threads in all share" in ended.err
    pictures = ["--image", *sorted(PICTURES.glob("digit-*.png"))[:2]]
    ended = mpiconv(2, *words, "--compare-single", 3, "--json", *pictures)
    gain = ended.json["gain"]
    assert (gain["repeats"], gain["measure"]) == (3, "latency")
    assert gain["factor"] == pytest.approx(gain["single_latency_s"] / ended.json["latency_s"]["median"])
    ended = mpiconv(2, *words, "--compare-single", 3, "--in-flight", 2, "--quiet", *pictures)
    assert re.search(r"^gain     \d+\.\d\d x the pictures/s", ended.out, re.M)
    assert ended.out.count("digit-") == 2
    assert mpiconv(1, *words, "--check", "--json").json["gain"] is None
    random = mpiconv(
        2,
        "run",
        "--model",
        "squeezenet1_1",
        "--input-size",
        "64x64",
        "--repeats",
        1,
        "--image",
        PICTURES / "portrait.jpg",
    )
    assert "answers  mean nothing, the weights are random: 1 not shown" in random.out
