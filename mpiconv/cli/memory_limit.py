"""The option ``--memory-limit``: what a network may take of each rank's memory."""

from __future__ import annotations

import argparse
import math
import re

from mpiconv.errors import UsageError
from mpiconv.partition.plan import plans_of
from mpiconv.partition.turns import AnyPlan
from mpiconv.words import counted

SIZES = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def add_memory_limit(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The most that the network may take on each rank."""
    parser.add_argument(
        "--memory-limit",
        type=memory_limits,
        metavar="M,...",
        help="the most memory that weights, maps and buffers may take, as 64MiB, 1GiB or a number of bytes, - for any "
        "amount: one for every rank but 0, or one per rank (--memory-limit=-,64MiB,64MiB where the first is -); Python "
        "and torch need about 350 MiB besides (default: what the cluster file says of a device's memory, less that)",
    )


def memory_limits(text: str) -> list[float]:
    """``-,64MiB,64MiB`` as numbers of B, infinite for ``-``. Raises ArgumentTypeError for anything else."""
    return [_limit(part.strip()) for part in text.split(",")]


def _limit(text: str) -> float:
    if text == "-":
        return math.inf
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([A-Za-z]*)", text, re.ASCII)
    if found is None or found[2] not in SIZES:
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory like 64MiB, 1GiB, 67108864 or -")
    return float(found[1]) * SIZES[found[2]]


def asked_limits(arguments: argparse.Namespace, ranks: int) -> list[float | None] | None:
    """The limit of each rank in B, None for a rank of which nothing is said; None without the option.

    Raises UsageError for another number of limits than 1 and ``ranks``.
    """
    given: list[float] | None = arguments.memory_limit
    if given is None or len(given) == ranks:
        return None if given is None else list(given)
    if len(given) > 1:
        raise UsageError(
            f"--memory-limit has {counted(len(given), 'amount')} for {counted(ranks, 'rank')}: give one for every "
            "rank but 0, or one per rank"
        )
    return [None, *given * (ranks - 1)]


def check_plan(arguments: argparse.Namespace, plan: AnyPlan) -> None:
    """Raise MpiconvError where a plan that was asked for needs more than ``--memory-limit``."""
    asked = asked_limits(arguments, plan.ranks)
    if asked is None:
        return
    from mpiconv.partition.schedule import schedule
    from mpiconv.planner.limits import Limits, check_limits
    from mpiconv.planner.memory import peak_bytes

    most = tuple(math.inf if each is None else each for each in asked)
    carried = [schedule(each, lambda _: "messages") for each in plans_of(plan)]
    needed = peak_bytes(carried, in_flight=getattr(arguments, "in_flight", len(carried)))
    name = arguments.plan or f"{plan.scheme} over {counted(plan.ranks, 'rank')}"
    check_limits(Limits(most, tuple(f"rank {rank}" for rank in range(plan.ranks))), needed, name)
