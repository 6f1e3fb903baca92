"""Ranks are lost and those who are left go on: every answer is there, right and in order."""

from __future__ import annotations

import json
import os
import shutil
import sys

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from mpi4py import MPI

from mpiconv.errors import ModelError
from mpiconv.job.control import allgather_json, bcast_json
from mpiconv.job.lines import Lines
from mpiconv.job.openmpi import survives
from mpiconv.job.team import Team
from mpiconv.job.waiting import meet
from mpiconv.job.watch import Watch
from mpiconv.partition import make_plan
from mpiconv.partition.holdings import bytes_moved, extra_bytes, holdings
from mpiconv.partition.leaving import plan_for_left, with_backups, with_spares
from mpiconv.partition.turns import Turns, make_turns
from mpiconv.supervise.command import agent_of, outlives_ranks
from tests.conftest import ROOT, clean_environment, script
from tests.random_nets import nets

outlives = pytest.mark.skipif(
    shutil.which("prterun") is None, reason="this mpirun does not outlive ranks: Open MPI from 5.0 on does"
)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_plan_for_those_who_are_left_does_all(data):
    model, shape = data.draw(nets())
    ranks = data.draw(st.integers(2, 6))
    scheme = data.draw(st.sampled_from(["single", "kpm", "wpm", "columns", "tiles", "grid", "fused", "replicated"]))
    shares = data.draw(st.lists(st.sampled_from([0, 1, 2.5]), min_size=ranks, max_size=ranks).filter(sum))
    head = data.draw(st.sampled_from(["root", "split", ranks - 1]))
    try:
        plan = make_plan(model, (1, *shape), scheme, ranks, shares, head=head)
    except ModelError:  # a window that does not fit
        assume(False)
    left = [0, *sorted(data.draw(st.sets(st.integers(1, ranks - 1), max_size=ranks - 1)))]
    found = plan_for_left(plan, left)
    assert found.ranks == len(left)
    assert found.graph is plan.graph
    assert found.exchanges.keys() == plan.exchanges.keys()  # which fail where somebody needs what nobody makes
    again = plan_for_left(found, range(len(left)))
    assert again.boxes == found.boxes


def test_a_spare_rank_takes_what_the_lost_one_had():
    plan = with_spares(make_plan(torch.nn.Conv2d(3, 8, 3), (1, 3, 12, 12), "kpm", 3), 1)
    found = plan_for_left(plan, [0, 2, 3])
    assert [box.channels for box in found.boxes[0]] == [plan.boxes[0][rank].channels for rank in (0, 2, 1)]
    assert bytes_moved(holdings(plan_of(plan, [0, 2, 3])), holdings(found)) == 4 * (3 * 3 * 9 + 3)


def plan_of(plan, left):
    """What those who are left held of a plan."""
    from dataclasses import replace

    return replace(
        plan, boxes=tuple(tuple(row[rank] for rank in left) for row in plan.boxes), shares=(1.0,) * len(left)
    )


def test_with_backups_nothing_travels_after_a_loss():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 3), torch.nn.ReLU(), torch.nn.Conv2d(12, 20, 3))
    plan = make_plan(model, (1, 3, 12, 12), "kpm", 4)
    more = with_backups(plan, range(4))
    assert min(extra_bytes(holdings(plan), more)[1:]) > 0
    assert with_backups(plan, ()) == holdings(plan)
    for lost in (1, 2, 3):
        left = [rank for rank in range(4) if rank != lost]
        had = {param: tuple(spans[rank] for rank in left) for param, spans in more.items()}
        assert bytes_moved(had, holdings(plan_for_left(plan, left))) == 0


def test_of_plans_in_turn_those_stay_of_which_nobody_is_lost():
    turns = make_turns(torch.nn.Conv2d(3, 8, 3), (1, 3, 12, 12), 3)
    assert isinstance(plan_for_left(turns, [0, 2]), Turns)
    assert len(plan_for_left(turns, [0, 2]).plans) == 2
    assert plan_for_left(turns, [0]).ranks == 1


@pytest.mark.parallel([4])
def test_lines_between_some_ranks_of_a_communicator():
    """Control messages, meetings and parts among those who are left; the others take no part."""
    comm = MPI.COMM_WORLD
    whole = Team.of(comm)
    if comm.rank != 1:
        lines = Lines.after(whole.mpi, (0, 2, 3), 1)
        team = Team(lines, Watch(lines.twin()), range(3), [whole.seats[rank] for rank in (0, 2, 3)])
        assert not team.whole
        assert bcast_json(team, {"from": team.rank}, 1) == {"from": 1}
        assert allgather_json(team, "x" * comm.rank) == ["", "xx", "xxx"]
        twin = team.twin()
        assert allgather_json(twin, team.rank) == allgather_json(team, team.rank) == [0, 1, 2]
        if team.rank:
            assert allgather_json(team.part((1, 2)), comm.rank) == [2, 3]
        meet(team, "the end")
        team.close()
    meet(whole, "the end of the test")
    whole.close()


@pytest.mark.parametrize(
    ("text", "whether"),
    [
        ("mpirun (Open MPI) 5.0.11\n", True),
        ("mpirun (Open MPI) 4.1.4", False),
        ("HYDRA build details", False),
        ("", False),
    ],
)
def test_which_mpirun_outlives_ranks(text, whether):
    assert outlives_ranks(text) is whether


def test_what_mpirun_calls_in_place_of_ssh():
    assert agent_of(["mpirun", "--mca", "plm_ssh_agent", "/x/agent -q"], {}) == ("/x/agent", "-q")
    assert agent_of(["mpirun"], {"PRTE_MCA_plm_ssh_agent": "rsh : ssh"}) == ("rsh",)
    assert agent_of(["mpirun"], {}) == ()


def test_a_job_says_whether_it_outlives_ranks(monkeypatch):
    monkeypatch.delenv("OMPI_MCA_mpi_ft_enable", raising=False)
    assert not survives()
    monkeypatch.setenv("OMPI_MCA_mpi_ft_enable", "1")
    assert survives()


def chaotic(monkeypatch, tmp_path, mode, seed, *words):
    """A run of scripts/chaos.py."""
    chaos = script("chaos")
    for name, value in clean_environment().items():
        monkeypatch.setenv(name, value)
    options = chaos.with_defaults(chaos.parser().parse_args([f"--mode={mode}", "--pictures=300", *words]))
    found = chaos.run(tmp_path, mode, seed, options)
    assert found.wrong == [], found.lines
    return found


@outlives
@pytest.mark.parametrize("seed", [3, 103, 5])
def test_ranks_die_and_stop_at_random(seed, monkeypatch, tmp_path):
    """The quick form of scripts/chaos.py: up to three of four ranks, the second one in a recovery."""
    found = chaotic(monkeypatch, tmp_path, "inside", seed)
    told = json.loads(found.out)
    assert told["ranks"] < 4
    assert told["measured_from"] <= 300
    assert sum(len(event["ranks"]) for event in told["events"]) == 4 - told["ranks"]


def started(ranks, *words):
    """The words of a run that outlives its ranks."""
    own = ["--model", "digits", "--random", "--repeats", "120", "--scheme", "kpm", "--json"]
    return ["mpirun", "--with-ft", "ulfm", "-n", str(ranks), sys.executable, "-m", "mpiconv", "run", *own, *words]


def ran(*words):
    import subprocess

    done = subprocess.run(
        words, capture_output=True, text=True, timeout=100, cwd=ROOT, env=clean_environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@outlives
@pytest.mark.parametrize(
    ("ranks", "words", "moved"),
    [
        pytest.param(3, ("--spares", "1", "--inject", "kill:rank=1,frame=40"), True, id="spare"),
        pytest.param(4, ("--resilience", "--inject", "kill:rank=2,frame=40"), False, id="resilience"),
        pytest.param(4, ("--inject", "stop:rank=3,frame=40", "--rank-timeout", "3"), True, id="stopped"),
        pytest.param(2, ("--inject", "kill:rank=1,frame=0", "--check"), False, id="down-to-the-root"),
    ],
)
def test_a_loss_that_was_ordered(ranks, words, moved):
    told, err = ran(*started(ranks, *words))
    (event,) = told["events"]
    assert event["kind"] == "loss"
    assert (event["bytes_moved"] > 0) == moved
    assert told["ranks"] == ranks - 1
    assert len(told["predictions"]) == 120
    assert "mpiconv: note: lost rank" in err
    if told["check"]:
        assert told["check"]["max_rel_error"] < 1e-5


@outlives
def test_a_rank_that_computes_wrongly_is_left_out():
    told, err = ran(*started(3, "--inject", "corrupt:rank=1,frame=30", "--verify-every", "5"))
    assert "computes conv" in err
    assert told["events"][0]["ranks"] == [1]
    assert len(told["predictions"]) == 120


@outlives
def test_the_loss_is_found_in_results_and_report(tmp_path):
    from mpiconv.study.report import write_report
    from mpiconv.study.runs import load_run, trace_events

    out = tmp_path / "run.h5"
    ran(*started(3, "--inject", "kill:rank=2,frame=40", "--output", str(out)))
    run = load_run(out)
    (event,) = run.events
    assert event["ranks"] == [2]
    assert any(each["name"] == f"loss: {event['plan']}" for each in trace_events(run)["traceEvents"])
    page = tmp_path / "report.html"
    write_report([out], page)
    assert "what became of the plan" in page.read_text()
    assert event["seconds"] == pytest.approx(sum(event[f"{name}_s"] for name in ("agree", "plan", "weights", "ready")))


@outlives
@pytest.mark.parametrize("call", ["call", "stream"])
def test_a_network_in_a_program_goes_on(call, tmp_path):
    """Ranks that call or stream, not follow: those who are left get through, with every answer right on rank 0."""
    program = tmp_path / "program.py"
    program.write_text(
        f"""
import os, signal, torch, mpiconv
from mpi4py import MPI
comm = MPI.COMM_WORLD
model = mpiconv.load_model("digits") if comm.rank == 0 else None
plan = mpiconv.make_plan(model, (1, 1, 32, 32), "kpm", comm.size) if comm.rank == 0 else None
net = mpiconv.distribute(model, plan, comm)
pictures = [torch.rand(1, 1, 32, 32) for _ in range(40)] if comm.rank == 0 else [None] * 40
def die(number):
    if comm.rank == 1 and number == 20:
        os.kill(os.getpid(), signal.SIGKILL)
if {call!r} == "call":
    outputs = [(die(i), net(picture))[1] for i, picture in enumerate(pictures)]
else:
    outputs = [(die(i), output)[1] for i, output in enumerate(net.stream(pictures if comm.rank == 0 else None))]
if comm.rank == 0:
    model.eval()
    with torch.inference_mode():
        right = [model(picture) for picture in pictures]
    assert len(outputs) == 40 and all(torch.allclose(a, b, atol=1e-5) for a, b in zip(outputs, right))
    assert len(net.losses) == 1 and net.plan.ranks == 2, net.losses
    print("all right", flush=True)
os._exit(0)
"""
    )
    import subprocess

    words = ["mpirun", "--with-ft", "ulfm", "-n", "3", sys.executable, str(program)]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=60, cwd=ROOT, env=clean_environment(), check=False
    )
    assert "all right" in done.stdout, done.stderr


@outlives
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="labs need root and iproute2")
@pytest.mark.alone
def test_a_host_is_cut_off_on_a_lab(monkeypatch, tmp_path):
    """Its link goes down: the others go on inside the job, and the supervisor ends what mpirun does not."""
    chaos = script("chaos")
    for name, value in clean_environment().items():
        monkeypatch.setenv(name, value)
    options = chaos.with_defaults(chaos.parser().parse_args(["--mode=lab", "--pictures=300"]))
    assert chaos.schedule("lab", 8, 300, 4, 1).deaths[0].how == "link"
    found = chaos.one(tmp_path, 8, options)
    assert found.wrong == [], found.lines
    assert found.restarts == 0
