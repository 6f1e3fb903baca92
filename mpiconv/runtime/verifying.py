"""Does every device compute rightly? What one rank makes of a unit is made again by another one, and compared."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mpiconv.job.control import bcast_json
from mpiconv.job.team import Team
from mpiconv.job.waiting import Waiting, wait
from mpiconv.job.watch import Place
from mpiconv.partition import Plan
from mpiconv.partition.plan import plans_of
from mpiconv.partition.schemes import ROOT
from mpiconv.runtime.builder import Builder, Built
from mpiconv.runtime.compute.engines import local_unit
from mpiconv.runtime.compute.local import weights_of
from mpiconv.runtime.frames import Passage, Seen
from mpiconv.runtime.weights import LayerWeights

TAG = 17
PLACE = Place("the check of what a rank computes")

NEAR = 1e-4
"""Results that differ by no more than this part of the largest number are the same."""


@dataclass(frozen=True)
class Verdict:
    """Of whom two others say that it computes a unit wrongly; where there is one other alone it is one of ``ranks``."""

    unit: str
    ranks: tuple[int, ...]


def verify(team: Team, builder: Builder, built: Built, waiting: Waiting, turn: int) -> Verdict | None:
    """Look at one unit of one rank, which ``turn`` chooses. Collective, while no frame is under way.

    A picture of noise is run; what the rank got and made of it is sent to another one, which makes the same eagerly
    and compares; where that differs to a third one. None where nothing differs, or there is nobody to look.
    """
    slot = built.slots[0]
    plan, place = slot.plan, _place(plans_of(built.plan)[0], turn)
    if place is None or team.size == 1:
        return None
    unit, subject = place
    noise = torch.Generator().manual_seed(turn)
    images = torch.rand(plan.input_shape, generator=noise) if team.rank == ROOT else None
    passage = Passage(slot, images, watched=unit)
    work = passage.run()
    with torch.inference_mode():
        for awaited in work:
            waiting.all(awaited)
    disagree: list[int] = []
    for checker in [rank for rank in range(team.size) if rank != subject][:2]:
        same = _agrees(team, builder, plan, unit, subject, checker, passage.seen)
        if same and not disagree:
            return None
        disagree += [] if same else [checker]
    name = plan.graph.units[unit].name
    if team.size == 2:
        return Verdict(name, tuple(sorted((subject, *disagree))))
    return Verdict(name, (subject,) if len(disagree) > 1 else tuple(disagree))


def _place(plan: Plan, turn: int) -> tuple[int, int] | None:
    """The unit, and the rank that computes something of it."""
    found = [
        (unit, rank)
        for unit, row in enumerate(plan.boxes)
        if not plan.graph.units[unit].opaque
        for rank, box in enumerate(row)
        if box
    ]
    return random.Random(turn).choice(found) if found else None  # noqa: S311 - no secret


def _agrees(
    team: Team, builder: Builder, plan: Plan, unit: int, subject: int, checker: int, seen: Sequence[Seen]
) -> bool:
    """Whether the checker makes the same of what the subject got. Collective."""
    mine = [tensor for _, inputs, output in seen for tensor in (*inputs, output)]
    pieces = [[number, len(inputs)] for number, inputs, _ in seen]
    box = plan.boxes[unit][subject]
    tensors = _sent(team, mine, subject, checker)
    numbers = bcast_json(team, pieces, subject)
    weights = _weights(team, builder, plan, unit, subject, checker)
    same = True
    if team.rank == checker:
        carried = builder.schedule(plan)
        padded, at = carried.padded(unit, subject), 0
        for number, count in numbers:
            inputs, output = tensors[at : at + count], tensors[at + count]
            at += count + 1
            part = carried.pieces[unit][number][subject]
            made = local_unit(
                plan.graph.units[unit], part, weights_of(plan.graph.units[unit], box, weights, part), plan.batch,
                padded=padded,
            )(*inputs)  # fmt: skip
            same = same and _near(made, output)
    return bool(bcast_json(team, same, checker))


def _weights(team: Team, builder: Builder, plan: Plan, unit: int, subject: int, checker: int) -> LayerWeights:
    """The weights of the subject's box on the checker, from the root."""
    box, layers = plan.boxes[unit][subject], plan.graph.units[unit]
    if checker == ROOT:
        return builder.weights.of(layers, box) if team.rank == ROOT else []
    own = builder.weights.of(layers, box) if team.rank == ROOT else []
    roles = bcast_json(team, [list(layer) for layer in own], ROOT)
    tensors = iter(_sent(team, [layer[role] for layer in own for role in layer], ROOT, checker))
    return [{role: next(tensors) for role in layer} for layer in roles] if team.rank == checker else []


def _sent(team: Team, tensors: Sequence[torch.Tensor], source: int, target: int) -> list[torch.Tensor]:
    """Tensors of one rank on another. Collective."""
    shapes = bcast_json(team, [list(tensor.shape) for tensor in tensors], source)
    requests, found = [], []
    if team.rank == source:
        requests = [team.comm.Isend(tensor.contiguous().numpy(), target, TAG) for tensor in tensors]
    elif team.rank == target:
        arrays = [np.empty(shape, np.float32) for shape in shapes]
        requests = [team.comm.Irecv(array, source, TAG) for array in arrays]
        found = [torch.from_numpy(array) for array in arrays]
    wait(team, requests, PLACE)
    return found


def _near(one: torch.Tensor, other: torch.Tensor) -> bool:
    scale = float(one.abs().max()) if one.numel() else 0.0
    return one.shape == other.shape and bool(torch.allclose(one, other, rtol=0, atol=NEAR * scale, equal_nan=True))
