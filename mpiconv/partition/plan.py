"""A plan: for every unit and rank, the box that this rank computes - and all that follows from it by arithmetic."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpiconv.errors import PlanError, UsageError
from mpiconv.files import write_text
from mpiconv.graph.form import PICTURE, Graph
from mpiconv.graph.grouping import gather_of, head_units
from mpiconv.partition.box import Box, hull
from mpiconv.partition.exchange import Exchange, exchange
from mpiconv.partition.receptive import box_flops, box_weights, unit_needs
from mpiconv.partition.schemes import ROOT, ROOT_ALONE, alone_on
from mpiconv.partition.wire import FLOAT32, WIRES, Payload

if TYPE_CHECKING:
    from mpiconv.partition.turns import AnyPlan

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Plan:
    """Which rank computes which box of every unit's output; the last unit, the head, is the root's, rank 0.

    ``graph`` says by its units after which layers maps are exchanged; ``boxes[u][r]`` is the box of unit ``u`` of
    ``graph.body`` on rank ``r``; ``schemes[u]`` names what made it, or the only rank that computes it; ``batch`` is the
    number of pictures that travel together; ``threads`` those that each rank computes with, none: as it was started;
    ``wire`` the number format of maps in messages.
    """

    graph: Graph
    schemes: tuple[str, ...]
    shares: tuple[float, ...]
    batch: int
    boxes: tuple[tuple[Box, ...], ...]
    threads: tuple[int, ...] = ()
    wire: str = FLOAT32.name

    def __post_init__(self) -> None:
        _check(self)

    @property
    def ranks(self) -> int:
        """How many ranks it is for."""
        return len(self.shares)

    @property
    def scheme(self) -> str:
        """The scheme's name, or ``mixed`` where the units have different ones.

        Fully connected layers, which rows cannot split, count only where there is nothing else.
        """
        units = zip(self.graph.body, self.schemes, strict=True)
        alone = {alone_on(rank) for rank in range(self.ranks)}
        rest = {name for unit, name in units if not unit.fully_connected} - alone
        names = sorted(rest or set(self.schemes) - alone)
        return names[0] if len(names) == 1 else "mixed" if names else "single"

    @cached_property
    def gather(self) -> str:
        """Where units end and maps are exchanged: ``conv``, ``pool``, or ``mixed`` where that differs between them."""
        return gather_of(self.graph)

    @cached_property
    def head(self) -> str:
        """Who computes fully connected layers: ``root``, the number of another rank, or ``split``."""
        names = {self.schemes[unit] for unit in head_units(self.graph)} or {ROOT_ALONE}
        alone = {alone_on(rank): str(rank) if rank != ROOT else "root" for rank in range(self.ranks)}
        return alone.get(names.pop(), "split") if len(names) == 1 else "split"

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W) of what the network is called with."""
        return self.batch, *self.graph.input_shape

    @cached_property
    def owned(self) -> tuple[tuple[Box, ...], ...]:
        """``owned[u][r]``: what rank r computes of every unit, the head included."""
        head = Box.whole(self.graph.units[-1].out_shape)
        return (*self.boxes, tuple(head if rank == ROOT else Box() for rank in range(self.ranks)))

    @cached_property
    def exchanges(self) -> dict[int, Exchange]:
        """The exchange of every map that is read, by the unit that made it (``PICTURE`` for the picture)."""
        picture = Box.whole(self.graph.input_shape)
        found = {}
        needs = [[unit_needs(unit, box) for box in row] for unit, row in zip(self.graph.units, self.owned, strict=True)]
        for i in range(PICTURE, len(self.graph.body)):
            readers = self.graph.consumers(i)
            if not readers:
                continue
            owned = (
                self.owned[i] if i != PICTURE else [picture if rank == ROOT else Box() for rank in range(self.ranks)]
            )
            needed = [
                hull(
                    need
                    for j in readers
                    for source, need in zip(self.graph.units[j].inputs, needs[j][rank], strict=True)
                    if source == i
                )
                for rank in range(self.ranks)
            ]
            found[i] = exchange(owned, needed, "the picture" if i == PICTURE else f"unit {self.graph.units[i].name}")
        return found

    @cached_property
    def payloads(self) -> dict[int, Payload]:
        """What every exchange comes to in B where all of it goes by messages."""
        return {source: Payload(each, WIRES[self.wire], self.batch) for source, each in self.exchanges.items()}

    def incoming(self, unit: int) -> list[int]:
        """The maps that are exchanged just before ``unit``: those that it is the first to read."""
        return [i for i in dict.fromkeys(self.graph.units[unit].inputs) if self.graph.consumers(i)[0] == unit]

    def pattern(self, unit: int) -> str:
        """The MPI patterns of the exchange before ``unit``, joined by ``+``."""
        return "+".join(name for i in self.incoming(unit) if (name := self.exchanges[i].pattern) != "none") or "none"

    def bytes_received(self, unit: int, rank: int) -> int:
        """Payload in B per inference that the rank needs before the unit and does not hold."""
        return sum(int(self.payloads[i].received[rank]) for i in self.incoming(unit))

    def bytes_sent(self, unit: int, rank: int) -> int:
        """Payload in B per inference that the rank sends before the unit, once per receiver."""
        return sum(int(self.payloads[i].sent[rank]) for i in self.incoming(unit))

    def multicast_bytes(self, unit: int, rank: int) -> int:
        """Payload in B per inference that the rank sends before the unit, however many receive it counted once."""
        return sum(self.payloads[i].multicast(rank) for i in self.incoming(unit))

    def flops(self, unit: int, rank: int) -> int:
        """FLOPs of the rank in the unit per inference (2 x multiply-adds)."""
        return self.batch * box_flops(self.graph.units[unit], self.owned[unit][rank])

    def weight_bytes(self, unit: int, rank: int) -> int:
        """B of weights that the rank computes the unit with."""
        return FLOAT_BYTES * box_weights(self.graph.units[unit], self.owned[unit][rank])

    def __str__(self) -> str:
        from mpiconv.partition.plan_text import table

        return table(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings that JSON can hold."""
        from mpiconv.partition.plan_files import as_dict

        return as_dict(self)

    def to_json(self) -> str:
        """The plan as one line of JSON."""
        return json.dumps(self.to_dict(), separators=(",", ":"))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Rebuild a plan from what ``to_dict`` gave; raises PlanError for anything else."""
        from mpiconv.partition.plan_files import plan_of

        return plan_of(data)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all; raises MpiconvError, naming the file, if it cannot be."""
        write_text(path, json.dumps(self.to_dict()) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan that ``save`` wrote; raises PlanError, naming the file, where it is missing or no plan."""
        from mpiconv.partition.plan_files import load

        return load(path)


def plans_of(plan: AnyPlan) -> tuple[Plan, ...]:
    """The plan, or those by which batches go in turn."""
    return (plan,) if isinstance(plan, Plan) else plan.plans


def at_work(plan: AnyPlan) -> list[int]:
    """The ranks that compute something; the root alone where there is nothing to compute."""
    parts = [(each, unit) for each in plans_of(plan) for unit in range(len(plan.graph.units))]
    return [rank for rank in range(plan.ranks) if any(each.flops(unit, rank) for each, unit in parts)] or [ROOT]


def cuts_channels(plan: AnyPlan, unit: int) -> bool:
    """Whether some rank computes a part of the channels of a unit of the body."""
    whole = plan.graph.units[unit].out_shape[0]
    return any(0 < len(box.channels) < whole for each in plans_of(plan) for box in each.boxes[unit])


def same_work(one: AnyPlan, other: AnyPlan) -> bool:
    """Whether two plans for a network have every rank do the same."""
    return work_of(one) == work_of(other)


def work_of(plan: AnyPlan) -> tuple[object, ...]:
    """What every rank computes and sends by a plan for a network, to compare it with others."""
    return tuple((tuple(each.graph.unit_names), each.boxes, each.threads, each.wire) for each in plans_of(plan))


def _check(plan: Plan) -> None:
    """Raise MpiconvError for a plan that no ranks can run."""
    if plan.threads and (len(plan.threads) != plan.ranks or min(plan.threads) < 1):
        raise PlanError(f"threads {plan.threads} for {plan.ranks} ranks: a number from 1 up is wanted for each")
    if plan.wire not in WIRES:
        raise PlanError(f"a plan with the wire format {plan.wire!r}: {', '.join(WIRES)} are known")
    if plan.batch < 1:
        raise UsageError(f"a batch of {plan.batch} pictures: at least 1 is needed")
    if len(plan.boxes) != len(plan.graph.body) or len(plan.schemes) != len(plan.graph.body):
        raise PlanError(f"a plan for {len(plan.boxes)} units does not fit a network of {len(plan.graph.body)}")
    for unit, boxes in zip(plan.graph.body, plan.boxes, strict=True):
        if len(boxes) != plan.ranks:
            raise PlanError(f"unit {unit.name} has boxes for {len(boxes)} ranks, the plan is for {plan.ranks}")
        for rank, box in enumerate(boxes):
            if unit.opaque and box != (Box.whole(unit.out_shape) if rank == ROOT else Box()):
                raise PlanError(f"unit {unit.name} cannot be split: rank {ROOT} has to compute it all, not {box}")
            if box not in Box.whole(unit.out_shape):
                raise PlanError(f"the box {box} of rank {rank} leaves the map {unit.out_shape} of {unit.name}")
