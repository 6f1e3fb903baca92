"""Plans to choose from for a network on a cluster, the fastest by the simulation first. Pure."""

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
from mpiconv.partition.plan import FLOAT_BYTES, Plan, at_work, work_of
from mpiconv.partition.schemes import ROOT
from mpiconv.partition.wire import FLOAT32, WIRES
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.coding import in_format, priced
from mpiconv.planner.estimating import scheduled, with_threads
from mpiconv.planner.limits import Limits, limits_for
from mpiconv.planner.memory import Memory, peak_bytes
from mpiconv.planner.proposals import Proposals, levelled, lighter, named, names_of, published, searched, undivided
from mpiconv.planner.simulation import Timeline, simulate

AGAIN = 12
"""So many of the best plans are simulated once more in every other number format."""


@dataclass(frozen=True)
class Candidate:
    """A plan with what it is called, how a frame goes by it as simulated, and what memory each rank needs for it."""

    name: str
    plan: Plan
    timeline: Timeline
    memory: tuple[Memory, ...] = ()

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
        return sum(int(payload.each.sum()) for payload in self.plan.payloads.values())

    @property
    def weight_bytes(self) -> list[int]:
        """B of weights that each rank computes with."""
        units = range(len(self.plan.graph.units))
        return [sum(self.plan.weight_bytes(unit, rank) for unit in units) for rank in range(self.plan.ranks)]

    def pictures_per_s(self, cluster: Cluster) -> float:
        """Pictures/s with several batches in flight: what is busy longest, a device or a link, is always busy."""
        busy_s = max(float(self.timeline.compute_s.max()), self._sending_s(cluster))
        return self.plan.batch / min(busy_s, self.latency_s)

    def _sending_s(self, cluster: Cluster) -> float:
        """S per batch in which the busiest end of a link carries messages, or the medium where all share one."""
        hosts = [device.host for device in cluster.devices]
        out, into = [0.0] * self.plan.ranks, [0.0] * self.plan.ranks
        for number, spread in self.plan.exchanges.items():
            each = self.plan.payloads[number].each.tolist()
            for block in spread.blocks:
                far = [rank for rank in block.targets.tolist() if hosts[rank] != hosts[block.source]]
                takes = [each[block.transfer] / cluster.link(block.source, rank).beta_bytes_per_s for rank in far]
                for rank, seconds in zip(far, takes, strict=True):
                    into[rank] += seconds
                out[block.source] += max(takes, default=0.0) if cluster.medium == "multicast" else sum(takes)
        return sum(out) if cluster.medium == "shared" else max(*out, *into)

    def first_start_s(self, cluster: Cluster) -> float:
        """S in which the weights come to the devices at the first start, from the root one after the other."""
        held = holdings(self.plan)
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
    in_flight: int = 1,
    search: bool = True,
    most_s: float = math.inf,
    wires: Sequence[str] = (FLOAT32.name,),
    tell: Callable[[str], object] = lambda _: None,
) -> list[Candidate]:
    """All plans to choose from, the fastest by the simulation first; only those for which every device has the memory.

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
    in_flight
        How many batches are under way at a time.
    search
        Whether those are among them that a search finds, or a baseline; these take longest.
    most_s
        Time limit in s: what is found later is left out, but for the plans on one device.
    wires
        Number formats of messages to choose from: all plans are made for the first, the best of them and some that are
        searched for for each other.
    tell
        Called with a sentence where no split keeps within ``memory_limits``, so that one device does all.

    Raises
    ------
    MpiconvError
        No plan keeps within the memory; the device, the limit and the nearest plan are named.
    """
    limits = limits_for(cluster, names_of(cluster), memory_limits)
    sifted = _Sifted(cluster, limits, in_flight, perf_counter() + most_s)
    on = priced(cluster, WIRES[wires[0]])
    for propose in (undivided, *((searched,) if search else ()), named, *((published,) if search else ())):
        sifted.add(propose(graph, on, batch), wires[0])
    if search and (splits := [each for each in sifted.found if each.divided]):
        sifted.add(levelled(graph, on, batch, min(splits, key=lambda each: each.latency_s).plan), wires[0])
    if sifted.left_out:
        sifted.add(lighter(graph, on, batch, limits), wires[0])
    sifted.add_formats(graph, batch, wires[1:], search=search)
    found, left_out = sifted.found, sifted.left_out
    if not found:
        raise MpiconvError(_refusal(f"no plan for {graph.model}", left_out, limits))
    without = [each for each in left_out if each.divided]
    if memory_limits is not None and without and not any(each.divided for each in found):
        tell(_refusal(f"no split of {graph.model}", without, limits))
    found.sort(key=lambda candidate: candidate.latency_s)
    return [_told_apart(candidate, found[:number]) for number, candidate in enumerate(found)]


class _Sifted:
    """Proposals, simulated: those that keep within the memory of the devices, and those that do not.

    What comes after ``end_s`` is left out, once there is something.
    """

    def __init__(self, cluster: Cluster, limits: Limits, in_flight: int, end_s: float) -> None:
        self._cluster, self._limits, self._in_flight, self._end_s = cluster, limits, in_flight, end_s
        self.found: list[Candidate] = []
        self.left_out: list[Candidate] = []
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
            (self.found if self._limits.broken(candidate.memory) is None else self.left_out).append(candidate)
            if self.found and not name.startswith(whole) and perf_counter() > self._end_s:
                return


def _refusal(what: str, left_out: Sequence[Candidate], limits: Limits) -> str:
    """The sentence on plans that all break a limit: which, and by how much at least."""
    nearest = min(left_out, key=lambda each: limits.ratio(each.memory))
    return limits.refusal(what, f"the nearest, {nearest.name},", nearest.memory)


def _candidate(name: str, plan: Plan, cluster: Cluster, in_flight: int) -> Candidate:
    carried = scheduled(plan, cluster)
    timeline = simulate(carried, with_threads(plan, cluster))
    return Candidate(name, plan, timeline, tuple(peak_bytes(carried, in_flight=in_flight)))


def _told_apart(candidate: Candidate, before: Sequence[Candidate]) -> Candidate:
    """The plan with a number in its name where one before it has the same."""
    alike = sum(each.name == candidate.name for each in before)
    return replace(candidate, name=f"{candidate.name} ({alike + 1})") if alike else candidate
