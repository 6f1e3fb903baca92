"""Several plans for one network, by which batches go in turn: whole pictures to different devices, for one. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpiconv.errors import PlanError
from mpiconv.files import write_text
from mpiconv.graph.form import Graph
from mpiconv.graph.grouping import Gather, grouped
from mpiconv.partition.making import graph_of, on_rank
from mpiconv.partition.plan import Plan, at_work
from mpiconv.partition.plan_files import READ_VERSIONS, plan_of, read_plan
from mpiconv.words import counted

if TYPE_CHECKING:
    from torch import nn

TURNS = "turns"
"""In place of a scheme's name: several plans, by which batches go in turn."""

OWN = ("schemes", "shares", "boxes")
"""What each of the plans has of its own in a file."""


@dataclass(frozen=True)
class Turns:
    """Plans for the same units, ranks and batch: each batch goes by one of them.

    With K batches in flight, the k-th of them goes by plan k modulo the number of plans, and the next batch takes the
    first place that is free: devices of different speed get as many as they manage. Answers stay in order.

    Raises
    ------
    PlanError
        No plan, plans that differ in units, ranks or batch, or that give ranks other threads.

    Examples
    --------
    >>> turns = mpiconv.make_turns(model, (1, 3, 224, 224), ranks=2)  # pictures 0, 2, ... on rank 0, the others on 1
    >>> with mpiconv.distribute(model, turns, comm, Settings(in_flight=4)) as net:
    ...     for output in net.stream(batches):
    ...         print(output)
    """

    plans: tuple[Plan, ...]

    def __post_init__(self) -> None:
        _check(self.plans)

    @property
    def graph(self) -> Graph:
        """The network, the same in all plans."""
        return self.plans[0].graph

    @property
    def ranks(self) -> int:
        """How many ranks the plans are for."""
        return self.plans[0].ranks

    @property
    def batch(self) -> int:
        """The number of pictures that travel together."""
        return self.plans[0].batch

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W) of what the network is called with."""
        return self.plans[0].input_shape

    @property
    def threads(self) -> tuple[int, ...]:
        """None: each rank computes with as many as it was started with."""
        return ()

    @property
    def wire(self) -> str:
        """The number format of messages, the same in all plans."""
        return self.plans[0].wire

    @property
    def scheme(self) -> str:
        """``turns``."""
        return TURNS

    @property
    def shares(self) -> tuple[float, ...]:
        """Each rank's share if as many batches went by one plan as by another."""
        return tuple(sum(each) / len(self.plans) for each in zip(*(plan.shares for plan in self.plans), strict=True))

    @property
    def gather(self) -> str:
        """Where units end and maps are exchanged: as in each plan."""
        return self.plans[0].gather

    @property
    def head(self) -> str:
        """Who computes fully connected layers, as in each plan; ``mixed`` where that differs between them."""
        names = {plan.head for plan in self.plans}
        return names.pop() if len(names) == 1 else "mixed"

    def each(self, change: Callable[[Plan], Plan]) -> Turns:
        """The same of other plans, made of these one by one."""
        return replace(self, plans=tuple(map(change, self.plans)))

    def __str__(self) -> str:
        title = (
            f"{self.graph.model}, input {'x'.join(map(str, self.input_shape))}, scheme {TURNS}, {self.ranks} ranks: "
            f"each batch goes by one of {counted(len(self.plans), 'plan')}, by the first that is free"
        )
        return "\n".join([title, *(f"turn {number}: {_told(plan)}" for number, plan in enumerate(self.plans))])

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings that JSON can hold."""
        turns = [{key: value for key, value in plan.to_dict().items() if key in OWN} for plan in self.plans]
        same = {key: value for key, value in self.plans[0].to_dict().items() if key not in OWN}
        return {**same, "turns": turns}

    def to_json(self) -> str:
        """The plans as one line of JSON."""
        return json.dumps(self.to_dict(), separators=(",", ":"))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Turns:
        """Rebuild what ``to_dict`` gave; raises PlanError for anything else."""
        if not isinstance(data, Mapping) or data.get("mpiconv_plan") not in READ_VERSIONS or "turns" not in data:
            raise PlanError("not several plans in turn (made by mpiconv plan --scheme turns --save)")
        rest = {key: value for key, value in data.items() if key != "turns"}
        turns = data["turns"]
        if not isinstance(turns, Sequence) or not all(isinstance(own, Mapping) for own in turns):
            raise PlanError("broken plans: turns are a list of plans")
        first, *others = (plan_of({**rest, **own}) for own in turns) if turns else (None,)
        return cls((first, *(replace(plan, graph=first.graph) for plan in others)) if first else ())

    def save(self, path: str | Path) -> None:
        """Write the plans as JSON, whole or not at all; raises MpiconvError, naming the file, if they cannot be."""
        write_text(path, json.dumps(self.to_dict()) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Turns:
        """Read what ``save`` wrote; raises PlanError, naming the file, where it is missing or holds something else."""
        return read_plan(path, cls.from_dict)


AnyPlan = Plan | Turns
"""One plan for all batches, or several in turn."""


def in_turn(plan: AnyPlan | Sequence[Plan]) -> AnyPlan:
    """A plan, or several as ``Turns``; one in a list is that plan. Raises PlanError for plans that do not fit."""
    if isinstance(plan, Plan | Turns):
        return plan
    return plan[0] if len(plan) == 1 else Turns(tuple(plan))


def each_of(plan: AnyPlan, change: Callable[[Plan], Plan]) -> AnyPlan:
    """What ``change`` makes of a plan, or of each of several in turn."""
    return plan.each(change) if isinstance(plan, Turns) else change(plan)


def any_plan_of(data: Mapping[str, Any]) -> AnyPlan:
    """What ``to_dict`` of a Plan or of Turns gave; raises PlanError for anything else."""
    return Turns.from_dict(data) if isinstance(data, Mapping) and "turns" in data else Plan.from_dict(data)


def load_any(path: str | Path) -> AnyPlan:
    """The plan, or the plans in turn, in a file; raises PlanError, naming it, where it is missing or holds neither."""
    return read_plan(path, any_plan_of)


def make_turns(
    model: nn.Module | Graph, input_shape: Sequence[int], ranks: int = 2, gather: Gather | None = None
) -> Turns:
    """Whole pictures to different devices, in turn: as many plans as ranks, each of them all on one rank.

    Parameters
    ----------
    model
        Any ``nn.Module`` that can be traced, or the Graph of one.
    input_shape
        (N, C, H, W) of the pictures.
    ranks
        Number of ranks; what cannot be split stays on rank 0 in all plans.
    gather
        Where a unit ends, as for ``make_plan``.

    Raises
    ------
    UsageError
        No ranks, or no pictures.
    ModelError
        A layer that cannot be split, named.
    """
    graph, batch = graph_of(model, input_shape, ranks)
    units = grouped(graph, gather or "pool", "split")
    return Turns(tuple(on_rank(units, rank, ranks, batch) for rank in range(ranks)))


def _check(plans: Sequence[Plan]) -> None:
    """Raise PlanError for plans between which batches cannot take turns."""
    if not plans:
        raise PlanError("no plans to take turns between")
    first = plans[0]
    for number, plan in enumerate(plans):
        for what, mine, wanted in (("ranks", plan.ranks, first.ranks), ("pictures a batch", plan.batch, first.batch)):
            if mine != wanted:
                raise PlanError(f"plan {number} is for {mine} {what}, plan 0 for {wanted}: plans in turn need the same")
        if plan.graph is not first.graph and plan.graph != first.graph:
            raise PlanError(f"plan {number} has other units than plan 0: plans in turn need the same")
        if plan.wire != first.wire:
            raise PlanError(f"plan {number} sends {plan.wire}, plan 0 {first.wire}: plans in turn need the same format")
        if plan.threads:
            raise PlanError(f"plan {number} gives ranks other threads, which plans in turn cannot")


def _told(plan: Plan) -> str:
    """A plan in a line where one rank computes all, else as a table."""
    working = at_work(plan)
    return f"all on rank {working[0]}" if len(working) == 1 else str(plan).replace("\n", "\n    ")
