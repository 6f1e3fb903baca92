"""What ``mpiconv plan --cluster`` found: plans for a network on a cluster, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from mpiconv.graph.form import Graph
from mpiconv.partition.plan import at_work
from mpiconv.planner.advice import BreakEven, break_even, helps, lower_bound_s
from mpiconv.planner.candidates import Candidate
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.objective import LATENCY, Objective
from mpiconv.planner.pareto import pareto

SHOWN = 8


@dataclass(frozen=True)
class Answer:
    """A network, a cluster and the plans for it, the best first; what follows is worked out when it is asked for."""

    path: str
    graph: Graph
    cluster: Cluster
    found: Sequence[Candidate]
    batch: int = 1
    objective: Objective = LATENCY
    front: bool = False
    about_wires: str = ""

    @property
    def best(self) -> Candidate:
        """The best plan by the objective."""
        return self.found[0]

    @property
    def timed(self) -> bool:
        """Whether the objective is the latency, or a percentile of it."""
        return self.objective.name in ("latency", "p90")

    @property
    def streams(self) -> bool:
        """Whether several batches in flight were simulated."""
        return self.objective.streams or self.front

    @cached_property
    def pareto(self) -> list[Candidate]:
        """The plans that are best in something, if they are asked for."""
        return pareto(self.found, self.cluster) if self.front else []

    @property
    def in_flight(self) -> str:
        """The option for which pictures/s are estimated; empty where that is not the objective."""
        flow = self.best.flow if self.objective.streams else None
        return f" --in-flight {flow.in_flight}" if flow else ""

    def said(self, candidate: Candidate) -> str:
        """What the objective comes to by a plan, in words."""
        return self.objective.said(self.objective.value(candidate, self.cluster), self.batch)

    def times_better(self, candidate: Candidate) -> float:
        """How many times better the best plan is than another."""
        value = self.objective.value
        return value(candidate, self.cluster) / value(self.best, self.cluster)

    @cached_property
    def own(self) -> Candidate | None:
        """All on device 0."""
        return next((each for each in self.found if at_work(each.runs) == [0] and not each.divided), None)

    @cached_property
    def shown(self) -> list[Candidate]:
        """The best plans, and every one that leaves all to one device."""
        return [each for i, each in enumerate(self.found) if i < SHOWN or each.name.startswith("all on")]

    @cached_property
    def break_even(self) -> BreakEven | None:
        """From which link rate on splitting pays."""
        return break_even(self.graph, self.cluster, self.found, self.batch)

    @cached_property
    def helps(self) -> list[tuple[str, float]]:
        """What some changes of the cluster would come to."""
        return helps(self.graph, self.cluster, self.best.latency_s, self.batch, self.best.plan.wire)

    @cached_property
    def lower_bound_s(self) -> float:
        """S below which no split comes."""
        return lower_bound_s(self.graph, self.cluster, self.batch)
