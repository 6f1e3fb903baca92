"""Comparing a run's outputs with the unsplit model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from mpiconv.errors import MpiconvError
from mpiconv.graph.outputs import Difference, tensors_in
from mpiconv.partition.making import alone
from mpiconv.partition.plan import cuts_channels
from mpiconv.partition.turns import AnyPlan
from mpiconv.partition.wire import WIRES
from mpiconv.runtime.building import distribute
from mpiconv.runtime.settings import Settings

Batches = Callable[[int], torch.Tensor]

CHECKED_BATCHES = 16
TOLERANCE = 1e-5
ROUNDING = 3.0
"""How many times farther than eager torch the split output may be from what double precision gives."""


def compared(
    model: nn.Module, plan: AnyPlan, batches: Batches, outputs: Sequence[Any], settings: Settings, accepted: float = 0.0
) -> dict[str, Any]:
    """Compare a run's outputs with the unsplit model, absolutely and relative to its largest output.

    Parameters
    ----------
    model
        The module that was split; it is run eagerly, and through the run's own local compute.
    plan, settings
        Of the run.
    batches
        Gives the pictures (N, C, H, W) of a batch by its number.
    outputs
        What the run made of each, from batch 0 on; the first ``CHECKED_BATCHES`` are looked at.
    accepted
        The relative error that the user accepts for a smaller wire format, of any plan that ran.

    Returns
    -------
    dict
        What the following describes, and ``problem``, ``tolerance`` and ``batches``.

    ``max_abs_error``, ``max_rel_error`` and ``equal`` are against the model run unsplit through the same local compute,
    ``eager_rel_error`` against torch's own operations. Where these differ by more than the tolerance, as in networks
    of many layers float32 itself does, both are held against the model in double precision: ``exact_rel_error`` is the
    split output's distance from that, ``eager_rounding`` eager torch's. ``passed`` then says whether the split output
    is as near to it as eager torch's, within a factor of ``ROUNDING``.
    """
    checked = outputs[:CHECKED_BATCHES]
    same, eager = Difference(), Difference()
    unsplit = None
    if settings.compute != "eager":
        cut = tuple(unit.name for index, unit in enumerate(plan.graph.body) if cuts_channels(plan, index))
        own = Settings(compute=settings.compute, selfcheck=False, as_slices=cut)
        unsplit = distribute(model, alone(plan), settings=own)
    for index, output in enumerate(checked):
        images = batches(index)
        with torch.inference_mode():
            eager.add(output, model(images.clone()))
        if unsplit is not None:
            same.add(output, unsplit(images))
    found, tolerance = eager if unsplit is None else same, TOLERANCE + max(WIRES[plan.wire].tolerance, accepted)
    exact, near = {}, eager.relative <= tolerance
    if not near and not eager.problem:
        exact = _exactly(model, batches, checked)
        near = exact.get("exact_rel_error", math.inf) <= max(tolerance, ROUNDING * exact.get("eager_rounding", 0.0))
    return {
        "max_abs_error": found.absolute,
        "max_rel_error": found.relative,
        "equal": found.equal,
        "eager_rel_error": eager.relative,
        "problem": eager.problem or same.problem,
        "tolerance": tolerance,
        "passed": near and same.relative <= tolerance,
        "batches": len(checked),
        **exact,
    }


def _exactly(model: nn.Module, batches: Batches, outputs: Sequence[Any]) -> dict[str, float]:
    """How far the outputs, and eager torch's, are from the model in double precision; nothing where it has none."""
    split, eager = Difference(), Difference()
    try:
        doubled = copy.deepcopy(model).double()
        for index, output in enumerate(outputs):
            images = batches(index)
            with torch.inference_mode():
                exact, single = doubled(images.double()), model(images.clone())
            wanted = tensors_in(exact)
            split.add([t.to(w) for t, w in zip(tensors_in(output), wanted, strict=True)], wanted)
            eager.add([t.to(w) for t, w in zip(tensors_in(single), wanted, strict=True)], wanted)
    except Exception:  # of the user's module, which need not know double precision
        return {}
    return {"exact_rel_error": split.relative, "eager_rounding": eager.relative}


def raise_if_different(check: dict[str, Any] | None) -> None:
    """Raise MpiconvError where a comparison found more than rounding."""
    if check is not None and not check["passed"]:
        if check["problem"]:
            raise MpiconvError(f"the split output is none that the unsplit model gives: {check['problem']}")
        raise MpiconvError(
            f"the split output differs from the unsplit one by {check['max_rel_error']:.3g} of the largest output "
            f"(from eager torch's by {check['eager_rel_error']:.3g}), more than {check['tolerance']:g}"
        )
