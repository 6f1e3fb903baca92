"""Noticing the first unit whose output is not finite: NaN or infinity that a later ReLU would hide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from mpiconv.graph.outputs import tensors_in
from mpiconv.job.control import allgather_json
from mpiconv.job.team import Team
from mpiconv.partition import Plan
from mpiconv.runtime.frames import Compute

CALL_S = 5e-6
READ_BYTES_PER_S = 1e10
FLOPS_PER_S = 1e11
"""What adding up a map costs, and how fast a core computes: rough, and on the side of not guarding."""

WORTH = 0.005
"""A unit is guarded by ``auto`` where that takes less than this part of its time."""


class Guard:
    """Checks the output of each unit on this rank for NaN and infinity.

    Parameters
    ----------
    mode
        ``on``: at all units, ``off``: at none, ``auto``: at those where it costs less than half a percent of computing.

    Attributes
    ----------
    found
        Of the first output that was not finite: how often the unit had been computed before, and the unit's number and
        name; None while there was none.
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.found: tuple[int, int, str] | None = None

    def around(self, plan: Plan, computes: Sequence[Sequence[Compute | None]], rank: int) -> list[list[Compute | None]]:
        """What computes each unit, piece by piece, wrapped so that each output is checked."""
        guarded: list[list[Compute | None]] = []
        for index, pieces in enumerate(computes):
            unit, flops = plan.graph.units[index], plan.flops(index, rank)
            elements = plan.batch * (plan.boxes[index][rank].size if index < len(plan.boxes) else 1)
            seconds = CALL_S * len(pieces) + 4 * elements / READ_BYTES_PER_S
            wanted = self.mode == "on" or (self.mode == "auto" and seconds < WORTH * plan.batch * flops / FLOPS_PER_S)
            guarded.append([self._looking(c, index, unit.name) if wanted and c else c for c in pieces])
        return guarded

    def first(self, team: Team) -> str:
        """The unit and rank of the first output of all ranks that was not finite; empty for none. Collective."""
        everywhere = allgather_json(team, [*self.found, team.rank] if self.found is not None else None)
        first = min((tuple(each) for each in everywhere if each is not None), default=None)
        return "" if first is None else f"unit {first[2]} on rank {first[3]}"

    def _looking(self, compute: Compute, index: int, name: str) -> Compute:
        calls = 0

        def run(*inputs: Any) -> Any:
            nonlocal calls
            output = compute(*inputs)
            if self.found is None and not is_finite(output):
                self.found = calls, index, name
            calls += 1
            return output

        return run


def is_finite(output: Any) -> bool:
    """Whether all float tensors in an output are finite; a sum tells in most cases."""
    tensors = [output] if isinstance(output, torch.Tensor) else tensors_in(output)
    for tensor in tensors:
        if tensor.is_floating_point() and not math.isfinite(tensor.sum().item()) and not tensor.isfinite().all():
            return False
    return True
