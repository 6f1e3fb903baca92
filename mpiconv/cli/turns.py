"""``--scheme turns``: whole pictures to different devices, each the next one as soon as it is done with one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import numpy as np

from mpiconv.errors import UsageError
from mpiconv.partition.plan import at_work
from mpiconv.partition.turns import TURNS, AnyPlan, Turns, make_turns

if TYPE_CHECKING:
    from torch import nn

    from mpiconv.measure import Record

SHARING = ("shares", "offload", "head")
"""Options that say who gets how much of a picture."""


def turns_for(arguments: argparse.Namespace, model: nn.Module, shape: tuple[int, ...], ranks: int) -> Turns:
    """Whole pictures (N, C, H, W) to each of the ranks.

    Raises UsageError for options that share out a picture.
    """
    for name in SHARING:
        given = getattr(arguments, name)
        if given is not None and (name, given) != ("head", "root"):
            raise UsageError(
                f"--scheme {TURNS} gives each rank whole pictures, as many as it manages: leave --{name} out"
            )
    return make_turns(model, shape, ranks, arguments.gather)


def check_watched(arguments: argparse.Namespace, plan: AnyPlan) -> None:
    """Raise UsageError where ranks that take turns are to be watched."""
    if isinstance(plan, Turns) and arguments.rebalance:
        raise UsageError(
            "--rebalance watches what each rank's part of a picture takes, and ranks that take turns have whole ones, "
            "as many as they manage: leave --rebalance out"
        )


def pictures_each(plan: AnyPlan, record: Record) -> str:
    """How many of the measured batches each rank computed, in a line; empty where ranks do not have whole ones."""
    if not isinstance(plan, Turns):
        return ""
    owners = [at_work(each) for each in plan.plans]
    if any(len(ranks) > 1 for ranks in owners):
        return f"turns    each batch by one of {len(owners)} plans, by the first that was free"
    by = np.bincount(record.compute_time_s[..., :-1].sum(axis=2).argmax(axis=1), minlength=record.ranks)
    each = ", ".join(f"{count} on rank {rank}" for rank, count in enumerate(by.tolist()))
    what = "pictures" if plan.batch == 1 else "batches"
    return f"turns    whole {what} to each rank, the next one as soon as it is done: {each}; what follows are means"
