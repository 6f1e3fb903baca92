"""Comparing a run's outputs with the unsplit model."""

from __future__ import annotations

from typing import Any

import torch
from mpi4py import MPI

from mpiconv.cli.setup import Job
from mpiconv.errors import MpiconvError
from mpiconv.graph.outputs import Difference
from mpiconv.partition import make_plan
from mpiconv.runtime.building import distribute
from mpiconv.runtime.exchange.wire import WIRES
from mpiconv.runtime.settings import Settings

CHECKED_BATCHES = 16
TOLERANCE = 1e-5


def compared(job: Job, outputs: list[Any], settings: Settings) -> dict[str, Any]:
    """Compare with the unsplit model, absolutely and relative to its largest output.

    ``max_abs_error``, ``max_rel_error`` and ``equal`` are against the model run unsplit through the same local compute,
    ``eager_rel_error`` against torch's own operations.
    """
    checked = outputs[:CHECKED_BATCHES]
    same, eager = Difference(), Difference()
    unsplit = None
    if settings.compute != "eager":
        scheme = "kpm" if job.plan.scheme == "kpm" else "single"  # of one rank: as its slices are computed, or not
        alone = make_plan(job.model, job.plan.input_shape, scheme, 1, gather=job.plan.graph.gather)
        unsplit = distribute(job.model, alone, MPI.COMM_SELF, Settings(compute=settings.compute, selfcheck=False))
    for index, output in enumerate(checked):
        images = job.batch(index)
        with torch.inference_mode():
            eager.add(output, job.model(images.clone()))
        if unsplit is not None:
            same.add(output, unsplit(images))
    found = eager if unsplit is None else same
    return {
        "max_abs_error": found.absolute,
        "max_rel_error": found.relative,
        "equal": found.equal,
        "eager_rel_error": eager.relative,
        "problem": eager.problem or same.problem,
        "tolerance": TOLERANCE + WIRES[settings.wire].tolerance,
        "batches": len(checked),
    }


def raise_if_different(check: dict[str, Any] | None) -> None:
    """Raise MpiconvError where a comparison found more than rounding."""
    if check is not None and not max(check["max_rel_error"], check["eager_rel_error"]) <= check["tolerance"]:
        if check["problem"]:
            raise MpiconvError(f"the split output is none that the unsplit model gives: {check['problem']}")
        raise MpiconvError(
            f"the split output differs from the unsplit one by {check['max_rel_error']:.3g} of the largest output "
            f"(from eager torch's by {check['eager_rel_error']:.3g}), more than {check['tolerance']:g}"
        )
