"""What a split gained: the same pictures on rank 0 alone, with the same settings, while the others wait asleep."""

from __future__ import annotations

import argparse
from time import monotonic
from typing import Any

import numpy as np

from mpiconv.cli.setup import Job
from mpiconv.cli.tables import throughput_fps
from mpiconv.measure import Record
from mpiconv.partition import make_plan
from mpiconv.runtime.building import distribute
from mpiconv.runtime.net import DistributedNet
from mpiconv.runtime.settings import Settings

WARM_UP = 2
REPEATS, WITHIN_S = 5, 5.0
"""How often rank 0 is timed alone where only --check was asked for: so often, or as often as fits, at least once."""


def gain_over_one(
    arguments: argparse.Namespace, job: Job, record: Record, net: DistributedNet
) -> dict[str, Any] | None:
    """What the split gained over rank 0 alone, where --check or --compare-single asks for it. On rank 0.

    Returns
    -------
    dict or None
        ``factor``, how many times faster the split is: by median latency, or with several batches in flight by
        pictures/s; ``single_latency_s``, the median of rank 0 alone; ``repeats`` of it; and ``measure``, which it was.
    """
    asked: int = arguments.compare_single
    if net.team.size == 1 or not (asked or arguments.check):
        return None
    net.rest()
    return _compare(job, record, net.settings, asked)


def _compare(job: Job, record: Record, settings: Settings, asked: int) -> dict[str, Any]:
    times = _alone(job, settings, asked)
    seconds, batch = float(np.median(times)), job.plan.batch
    if settings.in_flight > 1:
        factor, measure = throughput_fps(record, batch) * seconds / batch, "pictures/s"
    else:
        factor, measure = seconds / float(np.median(record.latency_s)), "latency"
    return {"factor": factor, "single_latency_s": seconds, "repeats": len(times), "measure": measure}


def _alone(job: Job, settings: Settings, asked: int) -> np.ndarray:
    """The latencies in s of rank 0 alone, warm, with its own local compute, pace and threads."""
    plan = make_plan(job.model, job.plan.input_shape, "single", 1)
    own = Settings(compute=settings.compute, pace=settings.pace, dilation=settings.dilation)
    net = distribute(job.model, plan, settings=own)
    images = job.batch(0)
    for _ in range(WARM_UP):
        net(images)
    net.reset()
    begin = monotonic()
    for count in range(asked or REPEATS):
        if count and not asked and monotonic() - begin > WITHIN_S:
            break
        net(images)
    return np.asarray(net.record.latency_s) / settings.dilation
