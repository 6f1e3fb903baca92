"""Fully connected layers split over the ranks: ``head="split"``."""

from __future__ import annotations

import json

import h5py
import pytest
import torch
from torch import nn

import mpiconv
from mpiconv.errors import ModelError, PlanError, UsageError
from mpiconv.graph.trace import trace
from mpiconv.partition import SCHEMES, Plan, Span, make_plan
from mpiconv.partition.making import alone, fitted
from tests.conftest import PICTURES
from tests.conftest import mpiconv as run
from tests.simulated import assert_close, run_split
from tests.test_plan import named_plan

PICTURE = (3, 23, 17)


def classifier(features: int) -> list[nn.Module]:
    """Three FC layers, the middle one without a bias, with what stands around them."""
    return [
        nn.Dropout(),
        nn.Linear(features, 69),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(69, 40, bias=False),
        nn.Sigmoid(),
        nn.Identity(),
        nn.Linear(40, 5),
    ]


def chain() -> nn.Module:
    """Two convolutions, and FC layers on a map of several rows and columns."""
    body = [nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3, padding=1), nn.GELU()]
    return nn.Sequential(*body, nn.Flatten(), *classifier(4 * 6 * 4))


def pooled() -> nn.Module:
    """FC layers on a map of one row and column, as in ResNet."""
    return nn.Sequential(nn.Conv2d(3, 9, 3), nn.BatchNorm2d(9), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *classifier(9))


def perceptron() -> nn.Module:
    """No convolution at all, an activation between the flattening and the first FC layer."""
    return nn.Sequential(nn.Flatten(), nn.Tanh(), *classifier(3 * 23 * 17))


class Residual(nn.Module):
    """FC layers around which a sum leads, read twice, then softmax, which the root computes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 4, 3, 3), nn.Linear(4 * 7 * 5, 50), nn.Linear(50, 50)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.first(self.conv(images).relu().view(images.size(0), -1))
        total = (features + self.second(features)).tanh()
        return torch.softmax(total, 1)


NETS = {"chain": chain, "pooled": pooled, "perceptron": perceptron, "residual": Residual}
SHARES = {"1": [1], "2": [1, 1], "uneven": [5, 2, 1], "idle": [1, 0, 2, 1], "root idle": [0, 1, 1]}


def seeded(name: str) -> nn.Module:
    torch.manual_seed(5)
    return NETS[name]().eval().requires_grad_(False)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_gives_what_the_unsplit_model_gives(scheme, net):
    model, images = seeded(net), torch.randn(2, *PICTURE)
    wanted = model(images)
    for gather in ("pool", "conv"):
        traced = trace(model, PICTURE)
        for shares in SHARES.values():
            plan = make_plan(traced.layers, (2, *PICTURE), scheme, len(shares), shares, gather, "split")
            assert_close(run_split(model, plan, images, traced), wanted)


@pytest.mark.parametrize(
    ("scheme", "schemes"),
    [
        ("kpm", ["kpm"] * 5),
        ("wpm", ["wpm"] * 2 + ["kpm"] * 3),
        ("fused", ["fused"] * 2 + ["kpm"] * 3),
        ("grid", ["grid"] * 2 + ["kpm"] * 3),
        ("columns", ["columns"] * 2 + ["kpm"] * 3),
        ("tiles", ["tiles"] * 2 + ["kpm"] * 3),
        ("single", ["single"] * 5),
        ("replicated", ["replicated"] * 5),
    ],
)
def test_features_are_split_like_kernels(scheme, schemes):
    plan = make_plan(seeded("chain"), (1, *PICTURE), scheme, 2, head="split")
    assert list(plan.schemes) == schemes
    assert plan.scheme == scheme
    assert plan.flops(5, 0) == 0
    if "kpm" in schemes:
        assert [str(box.channels) for box in plan.boxes[2]] == ["0:48", "48:69"]
        assert [plan.pattern(u) for u in (3, 4, 5)] == ["allgatherv", "gatherv", "none"]
        assert [box.channels for box in plan.boxes[4]] == [Span(0, 5), Span()]
        assert plan.weight_bytes(2, 1) == 4 * 21 * (4 * 6 * 4 + 1)
        assert plan.flops(2, 1) == 2 * 21 * 4 * 6 * 4


def test_the_fc_layers_are_the_roots_unless_told():
    root, split = (make_plan(seeded("chain"), (1, *PICTURE), head=head) for head in ("root", "split"))
    assert make_plan(seeded("chain"), (1, *PICTURE)) == root
    assert [layer.kind for unit in root.graph.body for layer in unit.layers].count("linear") == 0
    assert [layer.kind for unit in split.graph.body for layer in unit.layers].count("linear") == 3
    flops = [sum(unit.flops for unit in plan.graph.units) for plan in (root, split)]
    assert flops[0] == flops[1]
    with pytest.raises(UsageError, match="unknown head 'spilt'"):
        make_plan(seeded("chain"), (1, *PICTURE), head="spilt")
    with pytest.raises(ModelError, match="wants 96 features and gets a map of shape"):
        make_plan(seeded("chain"), (1, 3, 64, 64), head="split")


def test_plans_keep_it(tmp_path):
    plan = make_plan(seeded("chain"), (1, *PICTURE), ranks=3, head="split")
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert (plan.head, plan.gather) == ("split", "pool")


@pytest.mark.parametrize("gather", ["pool", "conv"])
@pytest.mark.parametrize("net", NETS)
def test_plans_of_version_1_are_read(net, gather):
    """They have all fully connected layers in one that only the root computes."""
    model = seeded(net)
    plan = make_plan(model, (2, *PICTURE), "wpm", 2, gather=gather)
    older = json.loads(plan.to_json())
    older["mpiconv_plan"] = 1
    older["graph"] |= {"gather": gather, "head": "root"}
    *before, head = older["graph"]["units"][-1]["layers"]
    kinds = [layer["kind"] for layer in before]
    rest = before[: kinds.index("linear")] if "linear" in kinds else before
    shapes = before[len(rest)]["in_shapes"] if len(rest) < len(before) else head["in_shapes"]
    params = [{**param, "role": "head"} for layer in before[len(rest) :] for param in layer["params"]]
    older["graph"]["units"][-1]["layers"] = [*rest, {**head, "in_shapes": shapes, "params": params}]
    read = Plan.from_dict(older)
    assert fitted(read, trace(model, PICTURE, batch=2).layers) == plan
    images = torch.randn(2, *PICTURE)
    with mpiconv.distribute(model, Plan.from_dict({**older, **one_rank(read)})) as run_alone:
        assert_close(run_alone(images), model(images))


def one_rank(plan: Plan) -> dict[str, object]:
    """What a plan says for one rank instead."""
    data = alone(plan).to_dict()
    return {name: data[name] for name in ("schemes", "shares", "boxes")}


def test_another_version_is_refused():
    data = make_plan(seeded("chain"), (1, *PICTURE)).to_dict()
    with pytest.raises(PlanError, match="not a plan of version 1 or 2"):
        Plan.from_dict({**data, "mpiconv_plan": 3})


@pytest.mark.parametrize("net", NETS)
def test_another_rank_computes_all_of_them(net):
    model, images = seeded(net), torch.randn(2, *PICTURE)
    plan = make_plan(model, (2, *PICTURE), "wpm", 3, (2, 1, 0), head=2)
    assert (plan.head, plan.scheme) == ("2", "single" if net == "perceptron" else "wpm")
    dense = [u for u, unit in enumerate(plan.graph.body) if unit.fully_connected]
    assert [plan.schemes[u] for u in dense] == ["rank2"] * len(dense)
    assert all(not plan.boxes[u][rank] for u in dense for rank in (0, 1))
    assert sum(plan.weight_bytes(u, 2) for u in dense) == sum(
        4 * p.size for u in dense for p in plan.graph.units[u].params
    )
    assert_close(run_split(model, plan, images), model(images))
    with pytest.raises(UsageError, match="the head is to be on rank 3, and the ranks are numbered from 0 to 2"):
        make_plan(model, (2, *PICTURE), ranks=3, head=3)


def test_every_unit_may_end_elsewhere():
    model, images = seeded("chain"), torch.randn(1, *PICTURE)
    plans = [make_plan(model, (1, *PICTURE), ranks=2, gather=gather) for gather in ("pool", "conv", {"0": "conv"})]
    kinds = [[[layer.kind for layer in unit.layers] for unit in plan.graph.body] for plan in plans]
    assert kinds == [
        [["conv", "activation", "maxpool"], ["conv", "activation"]],
        [["conv"], ["activation", "maxpool", "conv"]],
        [["conv"], ["activation", "maxpool"], ["conv", "activation"]],
    ]
    assert [plan.gather for plan in plans] == ["pool", "conv", "mixed"]
    for plan in plans:
        assert_close(run_split(model, plan, images), model(images))


@pytest.mark.parametrize(("scheme", "part"), [("kpm", 0.26), ("grid", 0.3), ("wpm", 0.31), ("fused", 0.31)])
@pytest.mark.parametrize("model", ["vgg11", "alexnet"])
def test_nobody_holds_most_of_the_weights(model, scheme, part):
    """By rows every rank holds all kernels, 7 % of VGG11's weights, and a quarter of the rest."""
    plan = named_plan(model, scheme, 4, head="split")
    units = range(len(plan.graph.units))
    everything = sum(4 * param.size for unit in plan.graph.units for param in unit.params)
    held = [sum(plan.weight_bytes(u, rank) for u in units) for rank in range(4)]
    assert max(held) <= part * everything
    assert sum(held) >= everything
    assert plan.graph.units[-1].params == ()


@pytest.mark.parametrize("scheme", ["kpm", "wpm"])
def test_run_splits_the_head(scheme, tmp_path):
    output = tmp_path / "run.h5"
    words = ["run", "--model", "digits", "--image", PICTURES / "digit-3.png", "--json"]
    options = ["--scheme", scheme, "--head", "split", "--repeats", "3", "--check", "--overlap", "on"]
    ended = run(3, *words, *options, "--output", output)
    assert ended.status == 0, ended.err
    assert ended.json["scheme"] == scheme
    check = ended.json["check"]
    assert check["equal"] if scheme == "kpm" else check["max_rel_error"] <= 1e-5
    weights = sum(tensor.numel() * 4 for tensor in mpiconv.load_model("digits").state_dict().values())
    assert max(ended.json["weight_bytes"]) < 0.65 * weights
    with h5py.File(output) as file:
        assert file.attrs["head"] == "split"
