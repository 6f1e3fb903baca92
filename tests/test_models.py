"""Every named model, split, against itself unsplit; and what its split moves, counted from the exchanges."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import mpiconv
from mpiconv.errors import UsageError
from mpiconv.graph.trace import trace
from mpiconv.models import REGISTRY
from mpiconv.partition import make_plan
from mpiconv.partition.receptive import layer_boxes
from tests.simulated import largest_error, run_split, sensible

# parameters of torchvision's models with 1000 classes, and tensors in their state_dicts
TORCHVISION = {
    "vgg11_bn": (132868840, 62),
    "vgg13_bn": (133053736, 76),
    "vgg16_bn": (138365992, 97),
    "vgg19_bn": (143678248, 118),
    "resnet18": (11689512, 122),
    "resnet34": (21797672, 218),
    "resnet50": (25557032, 320),
    "mobilenet_v2": (3504872, 314),
    "squeezenet1_1": (1235496, 52),
}
CASES = (
    *(("kpm", [1.0] * ranks) for ranks in (1, 2, 3, 4)),
    *(("wpm", [1.0] * ranks) for ranks in (2, 3, 4)),
    ("grid", [1.0] * 4),
    ("fused", [1.0] * 2),
    ("kpm", [0.7, 0.2, 0.1]),
    ("wpm", [0.7, 0.2, 0.1]),
    ("kpm", [0.0, 1.0, 1.0]),
    ("wpm", [1.0, 0.0, 1.0]),
)


@pytest.mark.parametrize(("name", "counts"), TORCHVISION.items())
def test_torchvisions_names_and_sizes(name, counts):
    with torch.device("meta"):
        model = REGISTRY[name].build(1000)
    assert (sum(p.numel() for p in model.parameters()), len(model.state_dict())) == counts


@pytest.mark.parametrize(("turn", "name"), list(enumerate(sorted(REGISTRY))))
def test_split_equals_unsplit(turn, name):
    """The large ones by every third of the splits, each from another one on."""
    model = mpiconv.load_model(name)
    size = {"digits": 32, "alexnet": 96, "alexnet-torchvision": 96}.get(name, 64)
    picture = (model.info.input_shape[0], size, size)
    if name != "digits":
        sensible(model, picture)
    images = torch.randn(1, *picture, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = model(images)
    traced = trace(model, picture)
    assert not any(unit.opaque for unit in traced.graph.body)
    large = name.startswith(("vgg", "alexnet", "resnet34", "resnet50"))
    for scheme, shares in CASES[turn % 3 :: 3] if large else CASES:
        plan = make_plan(traced.graph, (1, *picture), scheme, len(shares), shares)
        got = run_split(model, plan, images, traced)
        assert largest_error(got, wanted) <= 1e-5, (scheme, shares)
        assert int(got.argmax()) == int(wanted.argmax()), (scheme, shares)


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50", "squeezenet1_1", "vgg11_bn"])
def test_flops_agree_with_torch_for_every_split(name):
    entry = REGISTRY[name]
    with torch.device("meta"):
        model = entry.build(10).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, *entry.info.input_shape))
    graph = trace(model, entry.info.input_shape).graph
    assert sum(unit.flops for unit in graph.units) == counter.get_total_flops()
    plan = make_plan(graph, (1, *entry.info.input_shape), "kpm", 3, [0.7, 0.2, 0.1])
    for u, unit in enumerate(graph.units):
        assert sum(plan.flops(u, rank) for rank in range(3)) == unit.flops


@pytest.mark.parametrize("shares", [[1, 1], [1, 1, 1], [1, 1, 1, 1], [0.7, 0.2, 0.1]])
def test_mobilenets_depthwise_layers_need_no_gather(shares):
    """Under kpm a depthwise convolution finds its channels where they are: nearly all in the unit that makes them."""
    graph = trace(REGISTRY["mobilenet_v2"].build(10), (3, 224, 224)).graph
    ranks = len(shares)
    plan = make_plan(graph, (1, 3, 224, 224), "kpm", ranks, shares)
    groups = [[layer.groups for layer in unit.layers if layer.kind == "conv"] for unit in graph.body]
    depthwise = [u for u, found in enumerate(groups) if found and found[0] > 1]
    pairs = [u for u, found in enumerate(groups) if len(found) == 2 and found[0] == 1 < found[1]]
    additions = [u for u, unit in enumerate(graph.body) if unit.layers[0].kind == "add"]
    assert (len(depthwise), len(pairs), len(additions)) == (1, 16, 10)
    for u in depthwise:
        assert plan.pattern(u) == "none"
        assert all(plan.bytes_received(u, rank) == 0 for rank in range(ranks))
    for rank in range(ranks):
        received = sum(plan.bytes_received(u, rank) for u in range(len(graph.units)))
        picture = 4 * 3 * 224 * 224 if rank else 0
        gathers = sum(
            4 * (math.prod(layer.out_shape) - box.size)
            for unit, boxes in zip(graph.body, plan.boxes, strict=True)
            for layer, box in zip(unit.layers, layer_boxes(unit, boxes[rank]), strict=True)
            if layer.has_kernels
        )
        assert 0 < received < 0.5 * (picture + gathers), (rank, received, picture + gathers)


def test_grouped_layers_are_cut_at_their_groups():
    """ResNeXt's 32 groups: no rank needs a channel of its neighbour's, though 3 does not divide 128."""
    layers = [torch.nn.Conv2d(3, 128, 1), torch.nn.ReLU(), torch.nn.Conv2d(128, 256, 3, groups=32)]
    plan = make_plan(torch.nn.Sequential(*layers), (1, 3, 16, 16), "kpm", 3)
    assert plan.pattern(1) == "none"
    assert [len(box.channels) for box in plan.boxes[0]] == [44, 44, 40]
    assert [len(box.channels) for box in plan.boxes[1]] == [88, 88, 80]


def test_torchvision_is_asked_for_by_name():
    with pytest.raises(
        UsageError, match=r"torchvision (is not installed: pip install|has no classification model 'x')"
    ):
        mpiconv.load_model("torchvision:x")


def test_classes_come_from_weights_that_end_in_a_convolution(tmp_path):
    path = tmp_path / "squeeze.pth"
    torch.save(mpiconv.load_model("squeezenet1_1", num_classes=7).state_dict(), path)
    assert mpiconv.load_model("squeezenet1_1", path)(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
