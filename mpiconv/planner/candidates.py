"""Plans to choose from for a network on a cluster, the best by the simulation first. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from time import perf_counter
from typing import Any

from mpiconv.errors import MpiconvError
from mpiconv.graph.form import Graph
from mpiconv.partition.holdings import holdings, travels
from mpiconv.partition.plan import FLOAT_BYTES, Plan, at_work, plans_of, work_of
from mpiconv.partition.schemes import ROOT
from mpiconv.partition.turns import AnyPlan
from mpiconv.partition.wire import FLOAT32, WIRES
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.coding import in_format, priced
from mpiconv.planner.energy import joules
from mpiconv.planner.estimating import scheduled, with_threads
from mpiconv.planner.limits import Limits, energy_refusal, limits_for
from mpiconv.planner.memory import Memory, peak_bytes
from mpiconv.planner.objective import LATENCY, OBJECTIVES, Objective
from mpiconv.planner.pipelines import pipelined
from mpiconv.planner.proposals import Proposals, levelled, lighter, named, names_of, published, searched, undivided
from mpiconv.planner.simulation import Timeline, simulate
from mpiconv.planner.throughput import DEPTHS, Flow, flow, pictures_per_s_at_most
from mpiconv.planner.turns import TakingTurns, taking_turns
from mpiconv.planner.ways import MANY

FLOWING = 8
"""Plans whose flow is simulated at least where that is wanted; and more until no other can have more pictures/s."""

AGAIN = 12
"""So many of the best plans are simulated once more in every other number format."""


@dataclass(frozen=True)
class Candidate:
    """A plan with what it is called, how a frame goes by it as simulated, and what memory each rank needs for it.

    ``flow`` is what comes out with several batches in flight, where that was simulated; ``memory`` is then for as many
    where that is the objective. ``turns``: each device has whole batches, and ``plan`` is how the slowest computes one.
    """

    name: str
    plan: Plan
    timeline: Timeline
    memory: tuple[Memory, ...] = ()
    flow: Flow | None = None
    turns: TakingTurns | None = None

    @property
    def runs(self) -> AnyPlan:
        """What a network adopts to go by it."""
        return self.plan if self.turns is None else self.turns.plan

    @property
    def latency_s(self) -> float:
        """Estimated s from a picture to its answer."""
        return self.timeline.latency_s

    @cached_property
    def divided(self) -> bool:
        """Whether several devices compute parts of some unit."""
        return any(sum(map(bool, row)) > 1 for row in self.plan.boxes)

    @property
    def bytes_moved(self) -> int:
        """B that travel between ranks for a frame, once per receiver."""
        each = [sum(int(one.each.sum()) for one in plan.payloads.values()) for plan in plans_of(self.runs)]
        return sum(each) // len(each)

    @property
    def weight_bytes(self) -> list[int]:
        """B of weights that each rank computes with."""
        if self.turns is not None:
            return self.turns.weight_bytes
        units = range(len(self.plan.graph.units))
        return [sum(self.plan.weight_bytes(unit, rank) for unit in units) for rank in range(self.plan.ranks)]

    def pictures_per_s(self, cluster: Cluster) -> float:
        """Pictures/s with several batches in flight, as simulated; where that was not done, what it cannot exceed."""
        if self.flow is not None:
            return self.flow.pictures_per_s
        return pictures_per_s_at_most(self.plan, self.timeline, cluster)

    def joules(self, cluster: Cluster) -> list[float] | None:
        """J above idle per batch and device, one batch at a time; None where it is not known what devices draw."""
        return joules(self.plan, self.timeline, cluster) if self.turns is None else self.turns.joules(cluster)

    def first_start_s(self, cluster: Cluster) -> float:
        """S in which the weights come to the devices at the first start, from the root one after the other."""
        held = holdings(self.runs)
        total = dict.fromkeys(range(self.plan.ranks), 0)
        for spread in travels({}, held).values():
            for each in spread.transfers:
                total[each.target] += FLOAT_BYTES * each.box.size
        hosts = [device.host for device in cluster.devices]
        return sum(
            each / cluster.link(ROOT, rank).beta_bytes_per_s
            for rank, each in total.items()
            if rank != ROOT and hosts[rank] != hosts[ROOT]
        )

    @property
    def most_memory(self) -> tuple[int, int]:
        """Which rank needs the most memory, and how many B at most."""
        needed = [each.peak_bytes for each in self.memory]
        return needed.index(max(needed)), max(needed)


def candidates(
    graph: Graph,
    cluster: Cluster,
    batch: int = 1,
    *,
    memory_limits: Sequence[float | None] | None = None,
    energy_limit_j: float = math.inf,
    objective: Objective = LATENCY,
    front: bool = False,
    in_flight: int | None = None,
    search: bool = True,
    most_s: float = math.inf,
    wires: Sequence[str] = (FLOAT32.name,),
    tell: Callable[[str], object] = lambda _: None,
) -> list[Candidate]:
    """All plans to choose from, the best by the simulation first; only those for which every device has the memory.

    Parameters
    ----------
    graph
        The network, in any grouping.
    cluster
        Its device 0 has the pictures and gets the answers.
    batch
        N, the number of pictures that travel together.
    memory_limits
        The most B that each rank may take for the network, None for what its device's memory allows.
    energy_limit_j
        The most J above idle that a picture may take on all devices together.
    objective
        What the best is best in.
    front
        Whether plans that are best in something else are wanted too, for ``pareto``.
    in_flight
        How many batches are under way at a time. None: one, or where throughput is wanted as many as that takes.
    search
        Whether those are among them that a search finds, or a baseline; these take longest.
    most_s
        Time limit in s: later finds are left out, but for plans on one device.
    wires
        Number formats of messages to choose from, the usual one first.
    tell
        Called with a sentence where no split keeps within the limits that were asked for, so that one device does all.

    Raises
    ------
    MpiconvError
        No plan keeps within a limit, which is named; or energy matters and it is not known what some device draws.
    """
    limits = limits_for(cluster, names_of(cluster), memory_limits)
    end_s, streams = perf_counter() + most_s, objective.streams or front
    sifted = _Sifted(cluster, limits, energy_limit_j, in_flight or 1, end_s)
    _propose(sifted, graph, priced(cluster, WIRES[wires[0]]), batch, wires[0], search=search, streams=streams)
    sifted.add_formats(graph, batch, wires[1:], search=search)
    found = sifted.kept(graph.model, tell if memory_limits is not None or energy_limit_j < math.inf else None)
    if streams and len(cluster.devices) <= MANY:
        found = Flowing(cluster, in_flight, limits if objective.streams else None, end_s, every=front).of(found)
        found += in_turn(graph, cluster, batch, wires[0], in_flight, limits)
    found.sort(key=lambda each: (objective.streams and each.flow is None, objective.value(each, cluster)))
    return [_told_apart(candidate, found[:number]) for number, candidate in enumerate(found)]


def _propose(sifted: _Sifted, graph: Graph, on: Cluster, batch: int, wire: str, *, search: bool, streams: bool) -> None:
    """Look at all proposals in turn, in a number format for which ``on`` is priced; ``streams``: at pipelines too."""
    pipelines = (pipelined,) if streams else ()
    for propose in (undivided, *pipelines, *((searched,) if search else ()), named, *((published,) if search else ())):
        sifted.add(propose(graph, on, batch), wire)
    if search and (splits := [each for each in sifted.found if each.divided]):
        sifted.add(levelled(graph, on, batch, min(splits, key=lambda each: each.latency_s).plan), wire)
    if sifted.left_out:
        sifted.add(lighter(graph, on, batch, sifted.limits), wire)


@dataclass(frozen=True)
class Flowing:
    """Simulates the pictures/s of plans with several batches in flight: ``in_flight``, or as many as it takes.

    With ``limits`` no more than every rank has the memory for, and a plan's memory is for as many. ``every``: of all
    plans, not only of those that may have the most.
    """

    cluster: Cluster
    in_flight: int | None = None
    limits: Limits | None = None
    end_s: float = math.inf
    every: bool = False

    def of(self, found: Sequence[Candidate]) -> list[Candidate]:
        """The plans with their flow: those that may have the most pictures/s, and all on one device.

        After ``end_s`` of two at least.
        """
        waiting = sorted(found, key=lambda each: -each.pictures_per_s(self.cluster))
        done: list[Candidate] = []
        most = 0.0
        for each in waiting:
            late = len(done) > 1 and perf_counter() > self.end_s
            worth = self.every or len(done) < FLOWING or each.pictures_per_s(self.cluster) > most
            done.append(self.one(each) if not late and (worth or len(at_work(each.plan)) == 1) else each)
            most = max(most, done[-1].flow.pictures_per_s if done[-1].flow else 0.0)
        return done

    def one(self, candidate: Candidate) -> Candidate:
        """A plan with its flow."""
        carried, limits = scheduled(candidate.plan, self.cluster), self.limits
        memory = {depth: tuple(peak_bytes(carried, in_flight=depth)) for depth in (DEPTHS if limits else ())}
        fits = [depth for depth, needed in memory.items() if limits and limits.broken(needed) is None]
        most = max(fits, default=1) if limits else DEPTHS[-1]
        found = flow(carried, with_threads(candidate.plan, self.cluster), self.in_flight, most)
        return replace(candidate, flow=found, memory=memory.get(found.in_flight, candidate.memory))


def in_turn(
    graph: Graph, cluster: Cluster, batch: int, wire: str, in_flight: int | None, limits: Limits
) -> list[Candidate]:
    """Whole batches to each device, one more than it computes on its way to it; or none where that cannot be.

    That is where there is one device, not as many batches in flight, or not the memory.
    """
    many = len(cluster.devices)
    if many == 1 or (in_flight or many) < many:
        return []
    turns = taking_turns(graph, cluster, batch, wire, in_flight=in_flight or 2 * many)
    if limits.broken(turns.memory) is not None:
        return []
    slowest = max(range(many), key=lambda rank: turns.timelines[rank].latency_s)
    come = Flow(turns.pictures_per_s(cluster), turns.in_flight)
    return [Candidate(turns.name, turns.plan.plans[slowest], turns.timelines[slowest], turns.memory, come, turns)]


class _Sifted:
    """Proposals, simulated: those that keep within the memory of the devices, and those that do not.

    What comes after ``end_s`` is left out, once there is something.
    """

    def __init__(self, cluster: Cluster, limits: Limits, most_j: float, in_flight: int, end_s: float) -> None:
        """``most_j`` is the most J that a picture may take."""
        self._cluster, self.limits, self._most_j, self._in_flight = cluster, limits, most_j, in_flight
        self._end_s = end_s
        self.found: list[Candidate] = []
        self.left_out: list[Candidate] = []  # they need too much memory
        self.dear: list[Candidate] = []  # they have the memory, and take too much energy
        self._seen: set[Any] = set()

    def add_formats(self, graph: Graph, batch: int, wires: Sequence[str], *, search: bool) -> None:
        """Simulate the best proposals so far in other number formats, and those that are searched for for these."""
        best = sorted(self.found, key=lambda each: each.latency_s)[:AGAIN]
        known: dict[int, list[tuple[str, Plan]]] = {}  # by the B of a number: what is best depends on no more
        for name in wires:
            wire = WIRES[name]
            if wire.item_bytes not in known:
                more = searched(graph, priced(self._cluster, wire), batch) if search else ()
                in_time = takewhile(lambda _: perf_counter() < self._end_s, more)
                known[wire.item_bytes] = [*((each.name, each.plan) for each in best), *in_time]
            self.add(in_format(known[wire.item_bytes], name), name)

    def add(self, proposals: Proposals, wire: str) -> None:
        """Simulate some proposals in a number format, but those that were there before or split nothing."""
        whole = ("all on", "body on")
        for name, proposed in proposals if not self.found or perf_counter() < self._end_s else ():
            plan = replace(proposed, wire=wire)
            made = work_of(plan)
            if made in self._seen or not (name.startswith(whole) or len(at_work(plan)) > 1):
                continue
            self._seen.add(made)
            candidate = _candidate(name, plan, self._cluster, self._in_flight)
            self._kind(candidate).append(candidate)
            if self.found and not name.startswith(whole) and perf_counter() > self._end_s:
                return

    def kept(self, model: str, tell: Callable[[str], object] | None) -> list[Candidate]:
        """The plans that keep within the limits; ``tell`` is told where no split does.

        Raises MpiconvError where none does.
        """
        if not self.found:
            raise MpiconvError(self._refusal(f"no plan for {model}"))
        refused = any(each.divided for each in self.left_out + self.dear)
        if tell is not None and refused and not any(each.divided for each in self.found):
            tell(self._refusal(f"no split of {model}", divided=True))
        return self.found

    def _refusal(self, what: str, *, divided: bool = False) -> str:
        """The sentence on plans, or only on those that split something, that all break a limit: which, by how much."""
        heavy, dear = ([each for each in some if each.divided or not divided] for some in (self.left_out, self.dear))
        if dear:
            joules_j, nearest = min(((self._joules(each), each) for each in dear), key=lambda pair: pair[0])
            return energy_refusal(what, nearest.name, joules_j, self._most_j)
        nearest = min(heavy, key=lambda each: self.limits.ratio(each.memory))
        return self.limits.refusal(what, f"the nearest, {nearest.name},", nearest.memory)

    def _kind(self, candidate: Candidate) -> list[Candidate]:
        if self.limits.broken(candidate.memory) is not None:
            return self.left_out
        return self.dear if self._most_j < math.inf and self._joules(candidate) > self._most_j else self.found

    def _joules(self, candidate: Candidate) -> float:
        return OBJECTIVES["energy"].value(candidate, self._cluster) / candidate.plan.batch


def _candidate(name: str, plan: Plan, cluster: Cluster, in_flight: int) -> Candidate:
    carried = scheduled(plan, cluster)
    timeline = simulate(carried, with_threads(plan, cluster))
    return Candidate(name, plan, timeline, tuple(peak_bytes(carried, in_flight=in_flight)))


def _told_apart(candidate: Candidate, before: Sequence[Candidate]) -> Candidate:
    """The plan with a number in its name where one before it has the same."""
    alike = sum(each.name == candidate.name for each in before)
    return replace(candidate, name=f"{candidate.name} ({alike + 1})") if alike else candidate
