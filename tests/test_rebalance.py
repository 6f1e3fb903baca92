"""``--rebalance`` as a user types it, and what it is made of: reports while a stream goes on, devices that slow."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import nn

import mpiconv
from mpiconv.errors import UsageError
from mpiconv.partition import make_plan
from mpiconv.planner.rebalancing import Move
from mpiconv.runtime.emulation import Paced
from mpiconv.runtime.faults import Fault, Slow, injected
from mpiconv.runtime.rebalance import Rebalance
from mpiconv.runtime.reports import FRAMES
from mpiconv.runtime.settings import Settings
from tests.conftest import mpiconv as run
from tests.simulated import assert_close
from tests.test_simulation import cluster

COMM = MPI.COMM_WORLD
REPEATS, AT = 200, 60
TRIES = 3
"""On a machine that others disturb all the time nothing is told from noise."""

SLOWED = ("--pace", 30, "--repeats", REPEATS, "--inject", f"slow:rank=1,frame={AT},factor=4", "--json")


def convolutions(num_classes: int = 10) -> nn.Module:
    """Little but convolutions, quick enough that a rank mostly sleeps where it is made 30 times slower."""
    body = [layer for _ in range(4) for layer in (nn.Conv2d(24, 24, 3, padding=1), nn.ReLU())]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, num_classes))
    return nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), *body, *head).eval()


MODEL = ("--model", "tests.test_rebalance:convolutions", "--input-size", "40x40")


@pytest.mark.parametrize(("ranks", "scheme"), [(2, "kpm"), (4, "wpm")])
def test_a_device_that_slows_gets_less_to_do(ranks, scheme, tmp_path):
    """All pictures are answered as by the unsplit model, in order."""
    out, answers, alone = (tmp_path / name for name in ("r.h5", "split.jsonl", "alone.jsonl"))
    words = ["--scheme", scheme, "--rebalance", "--check", "--output", out, "--answers", answers]
    for _ in range(TRIES):
        ended = run(ranks, "run", *MODEL, *SLOWED, *words)
        assert ended.status == 0, ended.err
        events = ended.json["events"]
        answering = [event for event in events if event["picture"] > AT and 1 in event["ranks"]]
        if answering:
            break
    assert answering, events
    assert answering[0]["kind"] == "rebalance"
    assert answering[0]["predicted_gain"] > 1
    assert "(rank 1) computes" in answering[0]["why"]
    assert ended.err.count(f"mpiconv: note: {answering[0]['kind']} after {answering[0]['picture']} pictures: ") == 1
    assert ended.json["check"]["max_rel_error"] <= 1e-5
    with h5py.File(out) as file:
        assert json.loads(file.attrs["events"]) == events
        assert file.attrs["measured_from"] == ended.json["measured_from"] == events[-1]["picture"]
        assert len(file["latency"]) == file.attrs["repeats"] == REPEATS - events[-1]["picture"]
        assert json.loads(file.attrs["plan"])["shares"] == events[-1]["shares"]
        assert file.attrs["emulated"] == "yes"
    assert run(1, "run", *MODEL, "--repeats", REPEATS, "--answers", alone, "--json").status == 0
    got, wanted = ([json.loads(line) for line in path.read_text().splitlines()] for path in (answers, alone))
    assert [line["index"] for line in got] == list(range(REPEATS))
    assert [line["label"] for line in got] == [line["label"] for line in wanted]
    assert np.allclose([line["score"] for line in got], [line["score"] for line in wanted], rtol=1e-4)


def test_off_by_default():
    ended = run(2, "run", *MODEL, *SLOWED, "--repeats", 10, "--scheme", "kpm")
    assert ended.status == 0, ended.err
    assert not {"events", "measured_from"} & set(ended.json)


@pytest.mark.parametrize("words", [("--scheme", "kpm"), ("--scheme", "auto")], ids=["named", "auto"])
def test_with_a_cluster_file(words, file_of):
    ended = run(
        2, "run", "--model", "digits", "--rebalance", "--repeats", 30, "--cluster", file_of(2), "--json", *words
    )
    assert ended.status == 0, ended.err
    pictures = [event["picture"] for event in ended.json["events"]]
    tried = sum(1 + each["frames"] for each in ended.json.get("auto", []) if each["frames"])
    assert ended.json["measured_from"] == (pictures[-1] if pictures else tried)


def test_one_rank_has_nothing_to_do():
    ended = run(1, "run", "--model", "digits", "--rebalance", "--repeats", 3, "--json")
    assert ended.status == 0, ended.err
    assert "--rebalance has nothing to do on one rank" in ended.err
    assert "events" not in ended.json


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--inject", "slow:rank=2,frame=1,factor=2"), "--inject slow: there is no rank 2, ranks 0 to 1 are running"),
        (("--inject", "fast:rank=1"), "--inject fast:rank=1: 'fast' is not known, but slow, kill"),
    ],
)
def test_options_that_do_not_go_together(words, message):
    ended = run(2, "run", "--model", "digits", *words)
    assert ended.status == 2
    assert len(ended.errors) == 1
    assert message in ended.errors[0]


@pytest.mark.parametrize(
    "text",
    [
        "slow", "slow:", "slow:rank=1", "slow:rank=1,frame=2", "slow:rank=1,frame=2,factor=2,more=1", "quick:rank=1",
        "slow:rank=1,rank=1,factor=2", "slow:rank=1.5,frame=2,factor=2", "slow:rank=1,frame=2,factor=0",
        "slow:rank=1,frame=2,factor=-2", "slow:rank=1,frame=2,factor=nan", "slow:rank=1,frame=2,factor=2,", "",
        "slow:rank=1;frame=2;factor=2", "slow:rank=1,frame=2,faktor=2", "slow:rank=\u0661,frame=2,factor=2",
    ],
)  # fmt: skip
def test_what_cannot_be_injected(text):
    with pytest.raises(UsageError, match=r"--inject .*(slow:rank=|above 0)"):
        injected(text)


def test_what_is_injected():
    assert injected("slow:rank=1,frame=60,factor=2.5") == Slow(1, 60, 2.5)
    assert injected("slow:factor=0.5,frame=0,rank=10") == Slow(10, 0, 0.5)
    assert injected(str(Slow(3, 4, 1.25))) == Slow(3, 4, 1.25)
    assert injected("kill:rank=2,frame=40") == Fault(2, 40, "kill")
    assert injected(str(Fault(0, 7, "full-disk"))) == Fault(0, 7, "full-disk")
    with pytest.raises(UsageError, match="is not known"):
        Settings(inject=("fast:rank=1",))


def test_what_slows_counts_from_its_frame_on_as_a_product(monkeypatch):
    slept = []
    monkeypatch.setattr("mpiconv.runtime.emulation.sleep", slept.append)
    monkeypatch.setattr("mpiconv.runtime.emulation.perf_counter", lambda: 0.0)
    monkeypatch.setattr("mpiconv.runtime.emulation.thread_time", iter(range(100)).__next__)
    paced = Paced(lambda: None, 8, [Slow(0, 2, 2.0), Slow(0, 4, 1.5)])
    for paced.frame in range(6):
        paced()
    assert slept == [8, 8, 16, 16, 24, 24]


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("in_flight", [1, 3])
def test_reports_while_a_stream_goes_on(in_flight):
    root = COMM.rank == 0
    model, shape = convolutions(), (1, 3, 24, 24)
    plan = make_plan(model, shape, "kpm", COMM.size)
    units = len(plan.graph.units)
    batches = [torch.rand(shape, generator=torch.Generator().manual_seed(i)) for i in range(20)]
    windows, outputs = [], []
    with mpiconv.distribute(
        model if root else None, plan if root else None, COMM, Settings(in_flight=in_flight)
    ) as net:
        if root:
            assert net.reports.take() is None, "nothing was asked for"
            net.reports.ask()
            net.reports.settle()
            assert net.reports.take() is None
        asked = 0
        for number, output in enumerate(net.stream(batches if root else None)):
            outputs.append(output)
            if root and not asked:
                net.reports.ask()
                asked = number + 1
            elif root and (window := net.reports.take()) is not None:
                windows.append((asked, window))
                asked = 0
        if root:
            net.reports.settle()
        record = net.collect()
    assert len(outputs) == len(batches)
    if root:
        with torch.inference_mode():
            for batch, output in zip(batches, outputs, strict=True):
                assert_close(output, model(batch))
        assert len(windows) > 2
        assert not windows[0][1].complete, "one frame was done"
        for asked, window in windows[1:]:
            assert window.compute_s.shape == window.exchange_s.shape == (FRAMES, COMM.size, units)
            assert window.complete
            if in_flight == 1:
                assert np.allclose(window.compute_s[:, 0], record.compute_time_s[asked - FRAMES : asked, 0])
                assert np.allclose(window.latency_s, record.latency_s[asked - FRAMES : asked])
            for row in window.compute_s[:, 1]:  # on that rank's own clock; the record's are on the root's
                assert np.abs(record.compute_time_s[:, 1] - row).max(axis=1).min() < 1e-3 * row.max()


@pytest.mark.parallel([2])
@pytest.mark.parametrize("in_flight", [1, 2])
def test_moves_in_the_midst_of_a_stream(in_flight, monkeypatch):
    """Of what the planner decides every answer is as before, and every event is noted."""
    root = COMM.rank == 0
    model, shape = convolutions(), (1, 3, 24, 24)
    first, second, third = (make_plan(model, shape, "kpm", 2, shares) for shares in ((1, 1), (3, 1), (1, 3)))
    wrong = make_plan(nn.Sequential(nn.Conv2d(3, 2, 3)), shape, "kpm", 2)
    moves = [(first, None), (second, None), (third, 0.5), (wrong, 0.5), (first, None)]
    refused = []

    def decide(rebalancer, window, left):
        plan, rebalancer.realised_gain = moves.pop(0) if moves else (None, None)
        return plan and Move("rebalance", "another", plan, (1,), "so told", 1.5, 1.0)

    monkeypatch.setattr("mpiconv.planner.rebalancing.Rebalancer.look", decide)
    monkeypatch.setattr("mpiconv.planner.rebalancing.Rebalancer.refused", lambda _, move: refused.append(move.plan))
    batches = [torch.rand(shape, generator=torch.Generator().manual_seed(i)) for i in range(12)]
    told, outputs = [], []

    def pictures():
        for number in range(4000):  # how many it takes depends on how long it takes to look
            if not moves:
                return
            yield batches[number % len(batches)]

    with mpiconv.distribute(
        model if root else None, first if root else None, COMM, Settings(in_flight=in_flight)
    ) as net:
        if not root:
            net.follow()
            return
        rebalance = Rebalance(net, cluster(1.0, 1.0), told.append)
        for output in net.stream(pictures()):
            outputs.append(output)
            rebalance.after_picture(len(outputs), 4000 - len(outputs))
        rebalance.end()
        net.dismiss()
        assert net.plan == first
    assert refused == [wrong]
    assert [event["realised_gain"] for event in rebalance.events] == [None, 0.5, 0.5, None]
    assert [event["bytes_moved"] > 0 for event in rebalance.events] == [False, False, True, False]
    assert len(told) == 4
    with torch.inference_mode():
        wanted = [model(batch) for batch in batches]
    for number, output in enumerate(outputs):
        assert_close(output, wanted[number % len(wanted)])
