"""Layers that are not in the paper's networks: what boxes they need, how they are traced, what the root runs alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from mpiconv.errors import ModelError
from mpiconv.graph.trace import trace
from mpiconv.partition import Box, Plan, Span, make_plan
from mpiconv.partition.receptive import layer_boxes, unit_needs
from tests.random_nets import Attention, Excited, ExcitedByFC, Lasting, Net, Numbers, Outputs, Shuffled, Sliced, Where
from tests.simulated import assert_close, run_split

LAYERS = {
    "transposed": nn.ConvTranspose2d(4, 6, 3, 2, 1, 1),
    "transposed-wide-stride": nn.ConvTranspose2d(4, 6, (2, 1), (4, 3), 0, (1, 2)),
    "transposed-dilated": nn.ConvTranspose2d(4, 4, 3, 2, 2, 1, dilation=3),
    "transposed-groups": nn.ConvTranspose2d(4, 6, 4, 2, 1, groups=2),
    "nearest": nn.Upsample(scale_factor=1.7),
    "nearest-smaller": nn.Upsample((4, 5)),
    "bilinear": nn.Upsample(scale_factor=2, mode="bilinear"),
    "bilinear-corners": nn.Upsample((13, 20), mode="bilinear", align_corners=True),
    "bicubic": nn.Upsample(scale_factor=1.5, mode="bicubic"),
    "adaptive-uneven": nn.AdaptiveAvgPool2d((5, 3)),
    "adaptive-max": nn.AdaptiveMaxPool2d((4, 7)),
    "global": nn.AdaptiveAvgPool2d(1),
    "pixel-shuffle": nn.PixelShuffle(2),
    "pixel-unshuffle": nn.PixelUnshuffle(3),
    "zero-pad": nn.ZeroPad2d((1, 2, 3, 0)),
    "reflection": nn.ReflectionPad2d(3),
    "replication": nn.ReplicationPad2d((0, 1, 4, 2)),
    "circular": nn.CircularPad2d(2),
    "group-norm": nn.GroupNorm(2, 4),
    "response-norm": nn.LocalResponseNorm(2, 0.5),
    "response-norm-wide": nn.LocalResponseNorm(5, 0.5),
    "softmax": nn.Softmax2d(),
    "shuffle": nn.ChannelShuffle(2),
    "sliced": Sliced(),
}


@pytest.mark.parametrize("name", LAYERS)
def test_needed_boxes_hold_all_that_torch_reads(name):
    """By brute force: the elements of the input with a gradient, for every band, slice and corner of the output."""
    module = nn.Sequential(LAYERS[name], nn.Tanh()).eval()
    picture = (4, 9, 12)
    x = torch.rand(1, *picture, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = module(x)
    graph = trace(module, picture).grouped("conv")
    layers = [layer for unit in graph.units for layer in unit.layers][:-1]
    assert layers[-1].out_shape == tuple(y.shape[1:])
    unit = type(graph.units[0])("all", tuple(layers), (-1,))
    channels, rows, columns = layers[-1].out_shape
    boxes = [Box(Span(0, channels), Span(r, r + 1), Span(0, columns)) for r in range(rows)]
    boxes += [Box(Span(c, c + 1), Span(0, rows), Span(0, columns)) for c in range(channels)]
    boxes += [
        Box(Span(c, c + 2), Span(rows // 2, rows // 2 + 2), Span(w, w + 1)) for c in (0, 1) for w in range(columns)
    ]
    for box in boxes:
        if box not in Box.whole((channels, rows, columns)):
            continue
        need = unit_needs(unit, box)[0]
        part = y[(slice(None), *box.within(Box.whole(layers[-1].out_shape)))]
        (grad,) = torch.autograd.grad((part * torch.rand_like(part)).sum(), x, retain_graph=True)
        read = grad[0].nonzero()
        for axis, span in enumerate(need.spans):
            assert not len(read) or span.lo <= int(read[:, axis].min())
            assert not len(read) or int(read[:, axis].max()) < span.hi
        assert layer_boxes(unit, box)[-1] == box


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("scheme", ["kpm", "wpm", "grid", "fused"])
def test_each_layer_split(name, scheme):
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), LAYERS[name], nn.Conv2d(LAYERS_OUT[name], 3, 3, padding=1)
    ).eval()
    images = torch.randn(2, 2, 9, 12, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = model(images)
    for ranks in (2, 3, 5):
        plan = make_plan(model, images.shape, scheme, ranks)
        assert not any(unit.opaque for unit in plan.graph.body)
        assert_close(run_split(model, plan, images), wanted, 2e-6)


LAYERS_OUT = {name: module.eval()(torch.rand(1, 4, 9, 12)).shape[1] for name, module in LAYERS.items()}


def kinds(model: nn.Module, picture: tuple[int, int, int] = (3, 16, 16)) -> list[str]:
    return [layer.kind for unit in trace(model, picture).graph.body for layer in unit.layers]


@pytest.mark.parametrize(
    ("stage", "wanted"),
    [
        pytest.param(
            Excited(4, nn.Sigmoid), ["adaptive", "conv", "activation", "conv", "activation", "binary"], id="se"
        ),
        pytest.param(ExcitedByFC(4, nn.Sigmoid), ["reduce", *["linear", "activation"] * 2, "binary"], id="se-by-fc"),
        pytest.param(Where(), ["reduce", "reduce", "concat", "reduce", "activation", "binary"], id="spatial-attention"),
        pytest.param(Attention(4), ["whole", "add"], id="self-attention"),
        pytest.param(Lasting(4), ["layernorm", "conv", "activation", "scale", "add"], id="channels-last"),
        pytest.param(Shuffled(4, 2), ["resample", "resample", "conv", "activation", "concat"], id="shuffle"),
    ],
)
def test_what_becomes_of_an_operation(stage, wanted):
    model = Net(nn.Conv2d(3, 4, 1), stage, nn.Conv2d(4, 2, 1))
    assert sorted(kinds(model)) == sorted(["conv", *wanted, "conv"])


def test_the_plan_says_what_the_root_runs_alone():
    torch.manual_seed(0)
    model = Net(nn.Conv2d(3, 4, 3), Attention(4), nn.Conv2d(4, 6, 3, padding=1)).eval()
    plan = make_plan(model, (2, 3, 12, 12), "wpm", 3, [0.5, 0.2, 0.3])
    assert plan.schemes == ("wpm", "root", "wpm", "wpm")
    assert plan.scheme == "wpm"
    assert [bool(box) for box in plan.boxes[1]] == [True, False, False]
    assert " root " in str(plan)
    assert plan.flops(1, 0) > 0 == plan.flops(1, 1)
    assert plan.weight_bytes(1, 0) == 4 * sum(p.numel() for p in model.stages[1].parameters())
    images = torch.randn(2, 3, 12, 12)
    with torch.inference_mode():
        assert_close(run_split(model, plan, images), model(images))
    moved = plan.to_dict()
    moved["boxes"][1] = moved["boxes"][1][::-1]
    with pytest.raises(ModelError.__base__, match="cannot be split: rank 0 has to compute it all"):
        Plan.from_dict(moved)


class ByShape(nn.Module):
    """Control flow that torch.fx cannot follow, though it does not depend on data."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        y = F.relu(self.norm(self.conv(x)), inplace=True)
        if y.shape[2] % 2:
            y = F.pad(y, (0, 0, 0, 1))
        a, b = self.up(y).chunk(2, 1)
        y = F.interpolate(torch.cat([b, a], 1), scale_factor=0.5, mode="bilinear")
        return {"scores": self.fc(F.max_pool2d(y, 2).mean([2, 3])), "map": y}


@pytest.mark.parametrize("rows", [17, 18])
@pytest.mark.parametrize("scheme", ["kpm", "wpm"])
def test_control_flow_on_shapes_is_traced_by_export(scheme, rows):
    torch.manual_seed(0)
    model = ByShape().eval()
    images = torch.randn(3, 3, rows, 20)
    plan = make_plan(model, images.shape, scheme, 3)
    assert plan.graph.units[0].name == "conv"
    assert not any(unit.opaque for unit in plan.graph.body)
    with torch.inference_mode():
        wanted, got = model(images), run_split(model, plan, images)
    assert sorted(got) == sorted(wanted)
    for key, tensor in wanted.items():
        assert_close(got[key], tensor)


class InPlace(nn.Module):
    """What is read behind an operation in place is its result, whichever name it has."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.out = nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.conv(x)
        y = x + 1
        kept = nn.functional.dropout(x, training=self.training)
        self.relu(x)
        x.mul_(2)
        return self.out(y) + self.out(kept), x


def test_operations_in_place_count_for_all_later_readers():
    torch.manual_seed(0)
    model = InPlace().eval()
    images = torch.randn(1, 3, 6, 7)
    plan = make_plan(model, images.shape, "wpm", 2)
    with torch.inference_mode():
        kept = images.clone()
        for mine, wanted in zip(run_split(model, plan, images), model(images), strict=True):
            assert_close(mine, wanted)
    assert torch.equal(images, kept)


class DataDependent(nn.Module):
    def forward(self, x):
        return x if x.mean() > 0 else -x


@pytest.mark.parametrize(
    ("model", "word"),
    [
        pytest.param(DataDependent(), r"cannot be traced at test_graphs\.py:\d+: .*must not depend on", id="data"),
    ],
)
def test_what_cannot_be_traced_names_the_line(model, word, capfd):
    with pytest.raises(ModelError, match=word):
        trace(model, (3, 8, 8))
    assert capfd.readouterr().err == ""


def test_several_outputs_keep_their_names():
    torch.manual_seed(0)
    model = Net(nn.Conv2d(3, 4, 3), Numbers(), Outputs(4)).eval()
    images = torch.randn(2, 3, 11, 10)
    plan = make_plan(model, images.shape, "grid", 4)
    with torch.inference_mode():
        got, wanted = run_split(model, plan, images), model(images)
    assert list(got) == ["out", "more"]
    assert_close(got["out"], wanted["out"])
    assert_close(got["more"][0], wanted["more"][0])
    assert_close(got["more"][1], wanted["more"][1])


def test_a_batch_norm_behind_a_convolution_costs_no_pass():
    """It is folded into the rank's slice of the kernels; elsewhere it stays a layer."""
    from mpiconv.runtime.compute.local import LocalUnit

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)).eval()
    unit = trace(model, (3, 8, 8)).graph.units[0]
    state = model.state_dict()
    weights = [{param.role: state[param.key] for param in layer.params} for layer in unit.layers]
    assert len(LocalUnit(unit, Box.whole(unit.out_shape), weights).operations) == 3
