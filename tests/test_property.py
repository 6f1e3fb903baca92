"""Any net, any scheme, any shares: what the boxes say, computed without MPI, equals the unsplit model."""

from __future__ import annotations

import json
import os

import torch
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_leaves, tree_structure

from mpiconv.errors import ModelError
from mpiconv.graph.form import PICTURE
from mpiconv.graph.grouping import single_layers
from mpiconv.graph.trace import trace
from mpiconv.partition import SCHEMES, Plan, make_plan, split
from mpiconv.runtime.selfcheck import traced_for
from tests.random_nets import SHARES, nets, odd_nets
from tests.simulated import assert_close, run_split

MORE = int(os.environ.get("MPICONV_FUZZ", "0"))
"""Random examples of each property, in place of a few that are always the same."""


@settings(max_examples=MORE or 450, deadline=None, derandomize=not MORE, suppress_health_check=list(HealthCheck))
@given(nets(), st.sampled_from(sorted(SCHEMES)), SHARES, st.sampled_from(["pool", "conv"]), st.data())
def test_split_equals_unsplit(net, scheme, shares, gather, data):
    model, picture = net
    batch, head = data.draw(st.integers(1, 2)), data.draw(st.sampled_from(["root", "split", len(shares) - 1]))
    try:
        plan = make_plan(model, (batch, *picture), scheme, len(shares), shares, gather, head)
    except ModelError:
        assume(False)
    note(f"{model}\n{plan}")
    images = torch.randn(plan.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = model(images.clone())
    assume(wanted.isfinite().all())  # a dilated max pooling may see nothing but padding
    assert_close(run_split(model, plan, images), wanted)
    assert Plan.from_dict(plan.to_dict()) == plan
    for source, spec in plan.exchanges.items():
        shape = plan.graph.shape_of(source)
        assert all(t.box and t.box.shape <= shape for t in spec.transfers)
        for rank, need in enumerate(spec.needed):
            assert spec.received(rank) == need.size - (need & spec.owned[rank]).size


@settings(max_examples=MORE or 250, deadline=None, derandomize=not MORE, suppress_health_check=list(HealthCheck))
@given(odd_nets(), st.sampled_from(sorted(SCHEMES)), SHARES, st.sampled_from(["pool", "conv", "mixed"]), st.data())
def test_odd_layers(net, scheme, shares, gather, data):
    model, picture = net
    batch, head = data.draw(st.integers(1, 2)), data.draw(st.sampled_from(["root", "split", len(shares) - 1]))
    images = torch.randn(batch, *picture, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            wanted = model(images.clone())
        traced = trace(model, picture, batch=batch)
    except (ModelError, RuntimeError, ValueError):
        assume(False)  # a kernel larger than the map, reflection by more than it has
    if gather == "mixed":
        kernels = [unit.layers[0].name for unit in traced.layers.body if unit.layers[0].has_kernels]
        gather = {unit: data.draw(st.sampled_from(["pool", "conv"])) for unit in kernels}
    plan = make_plan(traced.layers, (batch, *picture), scheme, len(shares), shares, gather, head)
    assert single_layers(plan.graph) == traced.layers
    note(f"{model}\n{plan}")
    assume(all(tensor.isfinite().all() for tensor in tree_leaves(wanted)))
    assert traced_for(model, plan)[1] is plan
    got = run_split(model, plan, images, traced)
    assert tree_structure(got) == tree_structure(wanted)
    for mine, whole in zip(tree_leaves(got), tree_leaves(wanted), strict=True):
        assert_close(mine, whole, 2e-5)
    assert Plan.from_dict(json.loads(plan.to_json())) == plan


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(nets())
def test_shapes_agree_with_torch(net):
    model, picture = net
    try:
        graph = trace(model, picture).graph
    except ModelError:
        assume(False)
    seen = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: tuple(out.shape[1:])}))
    model(torch.zeros(1, *picture))
    for unit in graph.body:
        for layer in unit.layers:
            if layer.name in seen:
                assert seen[layer.name] == layer.out_shape
    assert all(PICTURE <= i < u for u, unit in enumerate(graph.units) for i in unit.inputs)


@settings(max_examples=300, derandomize=True)
@given(st.integers(0, 500), SHARES)
def test_split_covers_the_range(total, shares):
    spans = split(total, shares)
    assert [i for span in spans for i in range(span.lo, span.hi)] == list(range(total))
    for span, share in zip(spans, shares, strict=True):
        assert abs(len(span) - total * share / sum(shares)) < 1
        assert share or not span


def test_a_wrong_exchange_is_noticed():
    """The simulation can fail: a rank that is sent too little computes NaN."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)).eval()
    plan = make_plan(model, (1, 1, 8, 8), "wpm", 2)
    spec = plan.exchanges[0]
    object.__setattr__(spec, "transfers", spec.transfers[:1])
    out = run_split(model, plan, torch.ones(1, 1, 8, 8))
    assert out.isnan().any()
