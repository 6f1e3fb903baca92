"""What was traced is compared with the module; and how outputs are compared."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from mpi4py import MPI
from torch import nn

import mpiconv
from mpiconv.errors import ModelError, MpiconvError, PlanError
from mpiconv.graph.outputs import Difference, tensors_in, with_tensors
from mpiconv.graph.trace import trace
from mpiconv.graph.tracers import capture
from mpiconv.partition import make_plan
from mpiconv.partition.plan import at_work
from mpiconv.runtime.selfcheck import _planned_anew, traced_for
from mpiconv.runtime.settings import Settings
from mpiconv.study.checking import TOLERANCE, compared, raise_if_different
from tests.conftest import mpiconv as command


class Remembering(nn.Module):
    """Its second convolution depends on how often it was called, which no tensor says."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.calls = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), 0

    def forward(self, x):
        self.calls += 1
        return self.second(self.first(x)) * self.calls


def remembering():
    return Remembering()


class WrittenBeside(nn.Module):
    """Writes to a channel of a map and reads the whole: the run cannot be noted, torch.export finds it."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x):
        x = self.conv(x)
        x[:, 1].mul_(2)
        return self.last(x)


def test_what_no_tensor_says_is_found_out(capfd):
    model, images = remembering(), torch.randn(1, 3, 9, 9)
    plan = make_plan(model, images.shape)
    with pytest.raises(ModelError, match=r"Remembering was traced, but .*called twice .*--no-selfcheck"):
        mpiconv.distribute(model, plan, MPI.COMM_SELF)
    net = mpiconv.distribute(model, plan, MPI.COMM_SELF, Settings(selfcheck=False, compute="eager"))
    assert net(images).shape == (1, 4, 5, 5)
    assert capfd.readouterr().err == ""


def test_the_first_unit_that_differs_is_named(monkeypatch):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1)).eval()
    plan = make_plan(model, (1, 3, 9, 9))
    found = traced_for(model, plan)[0]
    wrong = {**found.tensors, "1.weight": found.tensors["1.weight"] + 1}
    monkeypatch.setattr(
        "mpiconv.runtime.selfcheck.trace",
        lambda *_, **__: mpiconv.graph.trace.Traced(found.layers, found.modules, wrong),
    )
    with pytest.raises(ModelError, match="from unit conv2 on"):
        traced_for(model, plan)


def test_torch_export_is_the_second_try():
    model, images = WrittenBeside().eval(), torch.randn(2, 3, 9, 9)
    assert capture(model, images.shape, "x").tracer == "export"
    with torch.inference_mode():
        wanted = model(images)
    got = mpiconv.distribute(model, make_plan(model, images.shape), MPI.COMM_SELF)(images)
    torch.testing.assert_close(got, wanted)


def test_a_large_batch_is_compared_as_a_small_one(monkeypatch):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 49, 3)).eval()
    sizes = []
    model.register_forward_pre_hook(lambda _m, args: sizes.append(len(args[0])))
    traced_for(model, make_plan(model, (7, 3, 9, 9)))
    assert sizes == [7, 2, 2]  # traced for the plan, traced and called to compare


def test_a_plan_for_another_network():
    plan = make_plan(nn.Conv2d(3, 4, 3), (1, 3, 9, 9))
    with pytest.raises(PlanError, match=r"another network \(Conv2d\) than this one.*output 4x7x7 in the plan, 5x7x7"):
        mpiconv.distribute(nn.Conv2d(3, 5, 3), plan, MPI.COMM_SELF)


def test_noise_that_is_always_on_is_no_difference():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 49, 50)).eval()
    noisy = nn.Sequential(model, SimpleDropout()).eval()
    before = torch.random.get_rng_state()
    traced_for(noisy, make_plan(noisy, (1, 3, 9, 9)))
    assert torch.equal(before, torch.random.get_rng_state())


class SimpleDropout(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5, training=True)


def test_no_selfcheck_from_the_command_line():
    words = ("run", "--model", "tests.test_selfcheck:remembering", "--input-size", "9x9", "--repeats", 1, "--warmup", 0)
    refused = command(0, *words)
    assert refused.status == 1
    assert len(refused.errors) == 1
    assert "model remembering was traced, but" in refused.errors[0]
    assert command(0, *words, "--no-selfcheck").status == 0


ONES = torch.ones(2, 3)
NAN = torch.tensor([1.0, math.nan, math.inf])


@pytest.mark.parametrize(
    ("mine", "wanted", "problem"),
    [
        pytest.param(ONES, torch.ones(1, 3), "of shape (2, 3), not a tensor of float32 of shape (1, 3)", id="shape"),
        pytest.param(ONES, ONES.double(), "not a tensor of float64", id="dtype"),
        pytest.param(ONES, None, "a tensor of float32 of shape (2, 3), not None", id="none"),
        pytest.param([ONES], (ONES,), "of type list, not of type tuple", id="type"),
        pytest.param({"a": ONES}, {"b": ONES}, "the parts ['a'], not ['b']", id="keys"),
        pytest.param((ONES, "x"), (ONES, "y"), "the output[1] is 'x', not 'y'", id="text"),
        pytest.param((ONES, 3), (ONES, 4), "is 3, not 4", id="number"),
        pytest.param(SimpleNamespace(a=ONES), SimpleNamespace(a=None), "the output['a'] is a tensor", id="object"),
    ],
)
def test_another_structure_is_a_problem(mine, wanted, problem):
    found = Difference()
    found.add(mine, wanted)
    assert problem in found.problem
    assert (found.relative, found.equal) == (math.inf, False)


@pytest.mark.parametrize(
    ("mine", "wanted", "relative"),
    [
        pytest.param(ONES, ONES * 2, 0.5, id="half"),
        pytest.param(ONES > 0, ONES > 0, 0, id="bool"),
        pytest.param(ONES > 0, ONES > 2, 1, id="other-bool"),
        pytest.param(torch.tensor([2]), torch.tensor([4]), 0.5, id="int"),
        pytest.param(ONES[:0], ONES[:0], 0, id="empty"),
        pytest.param((None, "x", 3, math.nan, True), (None, "x", 3, math.nan, True), 0, id="plain"),
        pytest.param(NAN, NAN.clone(), 0, id="nan-and-inf"),
        pytest.param(torch.tensor([1.0, 0.0, math.inf]), NAN, math.inf, id="nan-lost"),
        pytest.param(torch.tensor([1.0, math.nan, 0.0]), NAN, math.inf, id="inf-lost"),
        pytest.param(torch.tensor([1 + 1j]), torch.tensor([1 + 1j]), 0, id="complex"),
        pytest.param(torch.zeros(2), torch.zeros(2), 0, id="zeros"),
    ],
)
def test_values_are_compared(mine, wanted, relative):
    found = Difference()
    found.add(mine, wanted)
    assert found.relative == relative
    assert found.equal == (relative == 0)
    assert not found.problem


def test_tensors_in_anything():
    shared = torch.ones(1)
    odd = {"a": [shared, (torch.zeros(2), None)], "b": SimpleNamespace(c=shared, d="x")}
    assert [tuple(t.shape) for t in tensors_in(odd)] == [(1,), (2,)]
    doubled = with_tensors(odd, lambda t: t * 2)
    assert float(doubled["b"].c) == 2
    assert doubled["a"][0] is doubled["b"].c
    assert with_tensors(odd, lambda t: t) is odd


class Cancelling(nn.Module):
    """In float32 only five digits of its output are right."""

    def forward(self, x):
        return (x + 3000) - 3000


def test_what_float32_itself_rounds_is_no_difference():
    images = torch.rand(2, 3, 8, 8)
    run = Cancelling(), make_plan(Cancelling(), images.shape, "single", 1), lambda _: images
    check = compared(*run, [images], Settings(compute="eager"))
    assert check["eager_rel_error"] > TOLERANCE
    assert check["exact_rel_error"] <= 1e-7
    assert check["passed"]
    raise_if_different(check)
    wrong = compared(*run, [images + 3e-3], Settings(compute="eager"))
    assert wrong["exact_rel_error"] > 1e-3
    with pytest.raises(MpiconvError, match="differs"):
        raise_if_different(wrong)


class OnlySingle(Cancelling):
    """Knows no other precision than float32."""

    def double(self):
        raise RuntimeError("single precision only")


def test_where_there_is_no_double_precision_the_difference_counts():
    images = torch.rand(2, 3, 8, 8)
    run = OnlySingle(), make_plan(OnlySingle(), images.shape, "single", 1), lambda _: images
    check = compared(*run, [images], Settings(compute="eager"))
    assert not check["passed"]
    assert "exact_rel_error" not in check


@pytest.mark.parametrize(("scheme", "shares"), [("kpm", (1, 1)), ("kpm", (0, 1)), ("single", None)])
def test_a_plan_that_is_made_anew_sends_the_same_format(scheme, shares):
    """Another tracer found other layers: who computes, and what messages carry, stays."""
    shape = (1, 3, 8, 8)
    before = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    plan = make_plan(before, shape, scheme, 2, shares, wire="int8")
    anew = _planned_anew(plan, trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), shape[1:]))
    assert anew.graph != plan.graph
    assert (anew.wire, at_work(anew)) == ("int8", at_work(plan))
