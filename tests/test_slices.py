"""A few kernels of a unit are not computed the slow way: their slice is pooled at the width that the whole is."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from mpiconv.graph.trace import trace
from mpiconv.models import load_model
from mpiconv.partition import Box
from mpiconv.partition.box import Span
from mpiconv.partition.receptive import layer_boxes, unit_needs
from mpiconv.runtime.compute import onednn
from mpiconv.runtime.compute.engines import local_unit

DIGITS = load_model("digits", pretrained=False).features[:3]
NETS = {
    "digits, 8 of 16": (DIGITS, (1, 32, 32), Span(8, 16)),
    "digits, 5 of 16": (DIGITS, (1, 32, 32), Span(3, 8)),
    "24 of 72, mean": (
        nn.Sequential(nn.Conv2d(3, 72, 5, 2), nn.SiLU(), nn.AvgPool2d(3, 2, 1)),
        (3, 31, 22),
        Span(0, 24),
    ),
    "norm, two pools": (
        nn.Sequential(
            nn.Conv2d(4, 40, 3), nn.BatchNorm2d(40), nn.MaxPool2d(3, 2, 1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)
        ),
        (4, 25, 25),
        Span(7, 20),
    ),
    "no bias, large reduction": (
        nn.Sequential(nn.Conv2d(260, 48, 3, padding=1, bias=False), nn.MaxPool2d(2)),
        (260, 12, 12),
        Span(8, 48),
    ),
}


def _unit(model, shape, channels, compute, packed=None):
    """The model's only unit on a slice of its channels, with all rows and columns, and its input."""
    graph = trace(model.eval(), shape).graph
    unit = graph.body[0]
    box = Box(channels, *Box.whole(unit.out_shape).spans[1:])
    state = model.state_dict()
    weights = [
        {p.role: state[p.key][part.channels.lo : part.channels.hi] for p in layer.params}
        for layer, part in zip(unit.layers, layer_boxes(unit, box), strict=True)
    ]
    (need,) = unit_needs(unit, box)
    x = torch.rand(2, *need.shape, generator=torch.Generator().manual_seed(1))
    return local_unit(unit, box, weights, 2, compute, sliced=True, packed=packed), x.contiguous(
        memory_format=torch.channels_last
    )


@pytest.mark.parametrize("packed", [None, {}], ids=["fused", "reordered"])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.skipif(not onednn.available(), reason="this torch has no oneDNN with reordered weights")
def test_slices_are_pooled_at_full_width(name, packed, monkeypatch):
    model, shape, channels = NETS[name]
    monkeypatch.setattr(onednn, "slow_at_edges", lambda: False)
    part, x = _unit(model, shape, channels, "auto", packed)
    pooled = []
    for pool in ("max_pool2d", "avg_pool2d"):
        mine = getattr(F, pool)
        monkeypatch.setattr(F, pool, lambda x, *a, mine=mine, **k: pooled.append(x.shape[1]) or mine(x, *a, **k))
    with torch.inference_mode():
        found = part(x)
        monkeypatch.undo()
        assert pooled
        assert {int(width) % 16 for width in pooled} == {0}
        whole = model(x)[:, channels.lo : channels.hi]
    assert found.shape == whole.shape
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_slices_have_the_bits_of_the_whole(name):
    model, shape, channels = NETS[name]
    part, x = _unit(model, shape, channels, "auto")
    whole, _ = _unit(model, shape, Span(0, model[0].out_channels), "auto")
    with torch.inference_mode():
        assert torch.equal(part(x), whole(x)[:, channels.lo : channels.hi])
