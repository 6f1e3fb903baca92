"""NaN and infinity are the same through every local compute as in torch, and are told where they first appear."""

from __future__ import annotations

import json
import math

import pytest
import torch
from mpi4py import MPI
from torch import nn

import mpiconv
from mpiconv.errors import UsageError
from mpiconv.partition import make_plan
from mpiconv.runtime.guard import Guard, is_finite
from mpiconv.runtime.settings import Settings
from tests.conftest import mpiconv as command


def net(**where: float) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU6()),
        *(nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(32, 5)),
    ).eval()
    state = model.state_dict()
    for key, value in where.items():
        state[key.replace("_", ".", 1)].view(-1)[1] = value
    return model


def infinite() -> nn.Module:
    """A network whose second convolution makes infinity of finite weights."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 5 * 4, 5))
    with torch.no_grad():
        model[0].weight.fill_(1e30)
        model[2].weight.fill_(1e30)
    return model.eval()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", ["0_weight", "0_bias", "2_weight", "3_running_var", "7_weight"])
def test_weights_that_are_not_finite_give_what_torch_gives(key, value):
    model, images = net(**{key: value}), torch.randn(2, 3, 9, 8)
    with torch.inference_mode():
        wanted = model(images)
    for compute in ("auto", "eager"):
        split = mpiconv.distribute(model, make_plan(model, images.shape), MPI.COMM_SELF, Settings(compute=compute))
        torch.testing.assert_close(split(images), wanted, equal_nan=True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_pixels_that_are_not_finite(value):
    model, images = net(), torch.randn(1, 3, 9, 8)
    images[0, 1, 4, 4] = value
    plan = make_plan(model, images.shape)
    with pytest.raises(UsageError, match="NaN or infinite pixels"):
        mpiconv.distribute(model, plan, MPI.COMM_SELF)(images)
    with torch.inference_mode():
        wanted = model(images)
    got = mpiconv.distribute(model, plan, MPI.COMM_SELF, Settings(compute="eager"))(images)
    torch.testing.assert_close(got, wanted, equal_nan=True)


@pytest.mark.parametrize(("guard", "told"), [("on", "unit conv1 on rank 0"), ("off", "")])
def test_the_first_unit_that_is_not_finite_is_told(guard, told):
    model, images = net(**{"0_weight": 3e38}), torch.full((1, 3, 9, 8), 9.0)
    split = mpiconv.distribute(model, make_plan(model, images.shape), MPI.COMM_SELF, Settings(guard=guard))
    split(torch.zeros_like(images))
    assert split.first_not_finite() == ""
    split(images)
    assert split.first_not_finite() == told


def test_auto_guards_what_is_worth_it():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 256, 3), nn.Conv2d(256, 256, 5)).eval()
    plan = make_plan(model, (1, 3, 40, 40))
    computes = [[len], [len], [len], [len]]
    assert [each[0] is not len for each in Guard("auto").around(plan, computes, 0)] == [False, False, True, False]
    assert all(each[0] is not len for each in Guard("on").around(plan, computes, 0))


@pytest.mark.parametrize(
    ("output", "finite"),
    [
        pytest.param(torch.full((9,), 3e38), True, id="only-the-sum-is-infinite"),
        pytest.param((torch.ones(2), {"a": torch.tensor([math.nan])}), False, id="inside"),
        pytest.param((torch.ones(2, dtype=torch.int64), None, "x"), True, id="no-floats"),
        pytest.param(torch.tensor([math.inf, -math.inf]), False, id="sum-to-nan"),
    ],
)
def test_what_is_finite(output, finite):
    assert is_finite(output) is finite


def test_the_command_tells_and_prints_no_bare_nan(tmp_path):
    words = ("--model", "tests.test_not_finite:infinite", "--input-size", "9x8", "--repeats", 2, "--json")
    done = command(2, "run", *words, "--guard", "on", "--check", "--output", tmp_path / "x.h5")
    assert done.status == 0, done.err
    found = json.loads(done.out, parse_constant=lambda text: pytest.fail(f"{text} in the JSON"))
    assert found["check"]["equal"] in (True, False)
    assert done.err.count("is not finite") == 1
    assert "unit conv2 on rank" in done.err
    assert "conv2" in mpiconv.open_results(tmp_path / "x.h5").attrs["not_finite"]
