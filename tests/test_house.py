"""The interfaces that others build on: media, engines, schedules, teams. What is added here comes from outside."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from mpi4py import MPI

import mpiconv
from mpiconv.errors import ModelError, MpiconvError, UsageError
from mpiconv.graph.form import PICTURE
from mpiconv.graph.trace import trace
from mpiconv.job.control import allgather_json
from mpiconv.job.team import Team
from mpiconv.job.waiting import Awaited
from mpiconv.partition import SCHEMES, make_plan
from mpiconv.partition.box import union_size
from mpiconv.partition.receptive import unit_needs
from mpiconv.partition.schedule import schedule, worth_overlapping
from mpiconv.runtime.compute.engines import ENGINES, engine, local_unit
from mpiconv.runtime.compute.local import LocalUnit
from mpiconv.runtime.exchange.base import MEDIA, Exchanger, Medium, medium
from mpiconv.runtime.settings import Settings
from tests.conftest import ROOT
from tests.random_nets import SHARES, nets

COMM = MPI.COMM_WORLD


class Mail(Exchanger):
    """A map by mpi4py's own lower-case messages, box by box."""

    letters = 0

    def __init__(self, move, batch, team):
        super().__init__(move.held[team.rank], move.exchange.pattern)
        self.move, self.team = move, team
        self.own, self.need = move.exchange.owned[team.rank], self.held
        self.buffer = None if self.holds else torch.full((batch, *self.held.shape), move.held[team.rank].padding)

    def start(self, tensor):
        requests, self.tensor, self.awaited = [], tensor, []
        for number, t in enumerate(self.move.exchange.transfers):
            if t.source == self.team.rank:
                part = tensor[(slice(None), *t.box.within(self.own))].contiguous().numpy()
                requests.append(self.team.comm.isend(part, t.target, number))
                Mail.letters += 1
            if t.target == self.team.rank:
                self.awaited.append((t, self.team.comm.irecv(2**22, t.source, number)))
        self.requests = requests
        return Awaited()

    def finish(self):
        if self.holds:
            return self.tensor
        kept = self.own & self.move.exchange.needed[self.team.rank]
        if kept:
            self.buffer[(slice(None), *kept.within(self.need))] = self.tensor[(slice(None), *kept.within(self.own))]
        for t, request in self.awaited:
            self.buffer[(slice(None), *t.box.within(self.need))] = torch.from_numpy(request.wait())
        MPI.Request.waitall(self.requests)
        return self.buffer


@pytest.mark.parallel([2, 3])
def test_a_new_medium_is_one_class_and_one_registration():
    @medium
    class Post(Medium):
        name = "post"
        hides = False

        def suits(self, exchange, team, settings):
            return settings.same_host == "auto"

        def exchangers(self, moves, batch, team, memory):
            return {source: (Mail(move, batch, team),) for source, move in moves.items()}

    try:
        model, root = mpiconv.load_model("digits"), COMM.rank == 0
        images = torch.rand(2, 1, 32, 32)
        for scheme in ("kpm", "wpm", "grid"):
            Mail.letters = 0
            plan = make_plan(model, (2, 1, 32, 32), scheme, COMM.size)
            with mpiconv.distribute(model if root else None, plan if root else None, COMM) as net:
                output = net(images if root else None)
            assert any(COMM.allgather(Mail.letters))
            assert not root or torch.allclose(output, model(images), atol=1e-5)
    finally:
        del MEDIA["post"]


def test_a_new_engine_is_one_class_and_one_registration():
    calls = []

    @engine
    class Counting(LocalUnit):
        name = "counting"

        def __call__(self, *inputs):
            calls.append(len(inputs))
            return super().__call__(*inputs)

    try:
        model, images = mpiconv.load_model("digits"), torch.rand(1, 1, 32, 32)
        plan = make_plan(model, (1, 1, 32, 32), "kpm", 1)
        for compute in ("auto", "counting"):
            calls.clear()
            with mpiconv.distribute(model, plan, MPI.COMM_SELF, Settings(compute=compute)) as net:
                assert torch.allclose(net(images), model(images), atol=1e-5)
            assert len(calls) == len(plan.boxes)
    finally:
        del ENGINES["counting"]
    with pytest.raises(UsageError, match="compute is 'counting'"):
        Settings(compute="counting")


def test_an_engine_that_does_not_suit_leaves_the_unit_to_torch():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Softmax(1)).eval()
    unit, state = trace(model, (1, 5, 5)).graph.body[0], model.state_dict()
    weights = [{p.role: state[p.key] for p in layer.params} for layer in unit.layers]
    box = mpiconv.partition.Box.whole(unit.out_shape)
    assert type(local_unit(unit, box, weights, 1, "fused")) is LocalUnit


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(nets(), st.sampled_from(sorted(SCHEMES)), SHARES, st.booleans())
def test_a_schedule_has_all_that_travels_and_its_bytes(net, scheme, shares, overlap):
    model, picture = net
    try:
        plan = make_plan(model, (2, *picture), scheme, len(shares), shares)
    except ModelError:
        assume(False)
    found = schedule(plan, lambda _: "any", overlap=lambda _: overlap)
    assert set(found.moves) == set(plan.exchanges)
    for source, move in found.moves.items():
        pairs = {(t.source, t.target) for t in move.exchange.transfers}
        for pair in pairs:
            whole = [t.box for t in move.exchange.transfers if (t.source, t.target) == pair]
            parts = [t.box for part in move.parts for t in part.transfers if (t.source, t.target) == pair]
            assert union_size(parts) == sum(box.size for box in parts) == sum(box.size for box in whole)
        for rank in range(plan.ranks):
            sent = sum(t.box.size for t in move.exchange.transfers if t.source == rank)
            assert found.bytes_sent(source, rank) == 4 * 2 * sent
            assert move.exchange.needed[rank] in move.held[rank].box or move.held[rank].holds
        assert sum(found.bytes_sent(source, r) - found.bytes_received(source, r) for r in range(plan.ranks)) == 0
    for index, unit in enumerate(plan.graph.body):
        for rank in range(plan.ranks):
            pieces = [cut[rank] for cut in found.pieces[index]]
            assert sum(piece.size for piece in pieces) == plan.boxes[index][rank].size
            padded = found.padded(index, rank)
            assert not padded or (plan.boxes[index][rank] and len(unit_needs(unit, plan.boxes[index][rank])) == 1)


def test_only_long_messages_are_worth_computing_in_pieces():
    plan = make_plan(mpiconv.load_model("digits"), (1, 1, 32, 32), "wpm", 2)
    assert PICTURE in plan.exchanges
    spread = plan.exchanges[PICTURE]
    assert worth_overlapping(plan, spread, 1.0)
    assert not worth_overlapping(plan, spread, 1e-12)


def test_partition_and_planner_need_neither_torch_nor_mpi():
    code = "import sys, mpiconv.partition, mpiconv.partition.schedule, mpiconv.planner.cluster; "
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'mpi4py', 'mpi4py.MPI')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parallel([2, 3])
def test_a_team_of_those_that_are_left_needs_no_others():
    with Team.of(COMM) as team:
        assert allgather_json(team, team.rank) == list(range(COMM.size))
        survivors = [rank for rank in range(team.size) if rank != 1]
        if team.rank == 1:
            return_to = None
        else:
            team.watch.limit_s = 77.0
            with team.shrink(survivors) as left:
                assert allgather_json(left, team.rank) == survivors
                assert (left.size, left.watch.limit_s) == (len(survivors), 77.0)
                assert left.hosts == tuple(team.hosts[rank] for rank in survivors)
            return_to = left
        assert return_to is None or return_to.closed
        twin = team.twin()
        assert allgather_json(twin, "here") == ["here"] * COMM.size
        assert team.part(survivors) is team.part(survivors) if team.rank in survivors else True
    assert team.closed
    assert twin.closed
    team.close()


@pytest.mark.parallel([2])
def test_a_network_that_was_closed_leaves_nothing():
    model, root = mpiconv.load_model("digits"), COMM.rank == 0
    plan = make_plan(model, (1, 1, 32, 32), "kpm", COMM.size)
    made = []
    original = Team.__init__

    def noting(self, *arguments, **options):
        original(self, *arguments, **options)
        made.append(self)

    Team.__init__ = noting
    try:
        with mpiconv.distribute(model if root else None, plan if root else None, COMM, Settings(in_flight=3)) as net:
            net(torch.zeros(1, 1, 32, 32) if root else None)
    finally:
        Team.__init__ = original
    left = [team for team in made if team.comm != MPI.COMM_NULL and team.comm != COMM]
    assert len(made) > 4
    assert not left


@pytest.mark.parallel([2, 3])
@pytest.mark.parametrize("in_flight", [1, 3])
def test_ranks_that_follow_do_whatever_rank_0_orders(in_flight):
    model, root = mpiconv.load_model("digits"), COMM.rank == 0
    plan = make_plan(model, (1, 1, 32, 32), "wpm", COMM.size)
    images = [torch.rand(1, 1, 32, 32) for _ in range(7)]
    settings = Settings(in_flight=in_flight)
    with mpiconv.distribute(model if root else None, plan if root else None, COMM, settings) as net:
        if root:
            net(images[0])
            net.reset()
            outputs = list(net.stream(images))
            assert len(net.collect().latency_s) == 7
            with pytest.raises(UsageError, match="rank 0 was given"):
                net(torch.rand(1, 3, 32, 32))
            outputs += [net(picture) for picture in images]
            for _ in net.stream(iter(images)):
                break
            assert len(net.collect().latency_s) >= 15
            net.dismiss()
            assert all(torch.allclose(o, model(i), atol=1e-5) for o, i in zip(outputs, [*images, *images], strict=True))
        else:
            seen = []
            frames = net.follow(lambda: seen.append(1))
            assert len(seen) == frames + 1  # one before the reset
            assert frames >= 15
        net.reset()
        net(images[0] if root else None)


@pytest.mark.parallel([2])
def test_a_rank_that_calls_for_something_else_says_what_rank_0_did():
    model, root = mpiconv.load_model("digits"), COMM.rank == 0
    plan = make_plan(model, (1, 1, 32, 32), "kpm", COMM.size)
    net = mpiconv.distribute(model if root else None, plan if root else None, COMM)
    if root:
        with pytest.raises(MpiconvError, match="rank 0 called the network where this rank called reset"):
            net(torch.zeros(1, 1, 32, 32))
    else:
        with pytest.raises(UsageError, match="rank 0 called the network where this rank called reset"):
            net.reset()
    with pytest.raises(MpiconvError, match="cannot be used any more"):
        net.collect()


MOST_LINES = {ast.Module: 400, ast.ClassDef: 150, ast.FunctionDef: 60}


def test_rooms_are_small():
    """A reader has a module, a class and a function in view: docstrings count too."""
    large = []
    for path in sorted((ROOT / "mpiconv").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            first, last = getattr(node, "lineno", 1), getattr(node, "end_lineno", text.count("\n"))
            lines = last - first + 1
            if lines > MOST_LINES.get(type(node), lines):
                large.append(f"{path.relative_to(ROOT)}: {getattr(node, 'name', 'the module')} has {lines} lines")
    assert not large
