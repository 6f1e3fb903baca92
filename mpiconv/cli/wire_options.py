"""The options ``--wire`` and ``--wire-error``: in which number format maps travel, named or chosen."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from mpiconv.errors import UsageError
from mpiconv.runtime import choices


def add_wire(parser: argparse.ArgumentParser | argparse._ArgumentGroup, *, usual: str = "float32") -> None:
    """The number format of messages."""
    parser.add_argument(
        "--wire",
        choices=choices.WIRES,
        help="number format of maps in messages; other than float32 the results are less exact, by how much run "
        f"--check says; ranks that share memory exchange float32 there (default: {usual})",
    )


def add_wire_error(parser: argparse.ArgumentParser | argparse._ArgumentGroup, *, how: str) -> None:
    """How inexact the output may be for a smaller format."""
    parser.add_argument(
        "--wire-error",
        type=wire_error,
        metavar="E",
        help="also consider smaller formats of messages (--wire) that change the network's output by no more than E, a "
        f"part of its largest number, as 0.01 or 1%%; {how} (default: none, all is sent as float32)",
    )


def wire_error(text: str) -> float:
    """``0.01`` or ``1%`` as a number above 0, 1 at most. Raises ArgumentTypeError for anything else."""
    number, percent = text.removesuffix("%"), text.endswith("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an error above 0 and up to 1, like 0.01 or 1%")
    return value


def check_wire_error(arguments: argparse.Namespace, *, chooses: bool, otherwise: str) -> None:
    """Raise UsageError where --wire-error is given and a format is named, or no plan is chosen."""
    if arguments.wire_error is None:
        return
    if arguments.wire:
        raise UsageError(
            f"--wire {arguments.wire} names the format that --wire-error has chosen: leave one of them out"
        )
    if not chooses:
        raise UsageError(f"--wire-error is for the planner, which chooses the format with the plan: {otherwise}")


def wires_of(arguments: argparse.Namespace, *, measured: bool) -> tuple[str, ...]:
    """The formats to plan for: that of --wire, or the exact one first and those that may keep to --wire-error.

    All may where that is ``measured``, else those whose usual error is no larger.
    """
    from mpiconv.partition.wire import FLOAT32
    from mpiconv.planner.coding import smaller_formats

    if arguments.wire_error is None:
        return (arguments.wire or FLOAT32.name,)
    return smaller_formats(math.inf if measured else arguments.wire_error)


def by_tolerance(arguments: argparse.Namespace, wires: Sequence[str]) -> str:
    """Which formats were considered by their usual errors, as a sentence; empty without --wire-error."""
    from mpiconv.partition.wire import WIRES

    if arguments.wire_error is None:
        return ""
    usual = [f"{wire.name} {100 * wire.tolerance:g} %" for wire in WIRES.values() if wire.tolerance]
    return (
        f"--wire-error {100 * arguments.wire_error:g} %: messages in {' or '.join(wires)}, by the usual errors of the "
        f"formats ({', '.join(usual)}), not measured for this network"
    )
