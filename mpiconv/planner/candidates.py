"""Plans to choose from for a network on a cluster: all on one device, and every scheme by equal shares and by speed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

from mpiconv.graph.form import Graph
from mpiconv.graph.grouping import grouped
from mpiconv.partition.exchange import Exchange
from mpiconv.partition.holdings import holdings, travels
from mpiconv.partition.making import make_plan
from mpiconv.partition.plan import FLOAT_BYTES, Plan, at_work
from mpiconv.partition.schedule import Schedule, schedule, worth_overlapping
from mpiconv.partition.schemes import NO_SPLIT, ROOT, SCHEMES
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.search import Search
from mpiconv.planner.simulation import Timeline, simulate
from mpiconv.planner.ways import alone, first_of_each, over, speeds_of, teams

MORE_THREADS = 0.9
"""What every thread more adds to the speed of one."""

MEMORY_PART = 0.5
"""The part of a device's memory that weights may take; what else a process needs lies in the rest."""

LEVELLED = 2
"""How often shares are made anew from how long each device computes by those before."""

WEIGHTS = (1.0, 0.5)
"""What a second of sending counts in the search: some of it is hidden behind computing, which it does not look at."""


@dataclass(frozen=True)
class Candidate:
    """A plan with what it is called, and how a frame goes by it as simulated."""

    name: str
    plan: Plan
    timeline: Timeline

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
        units, ranks = range(len(self.plan.graph.units)), range(self.plan.ranks)
        return sum(self.plan.bytes_received(unit, rank) for unit in units for rank in ranks)

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
        for spread in self.plan.exchanges.values():
            for each in spread.transfers:
                if hosts[each.source] != hosts[each.target]:
                    link = cluster.link(each.source, each.target)
                    seconds = FLOAT_BYTES * self.plan.batch * each.box.size / link.beta_bytes_per_s
                    out[each.source] += seconds
                    into[each.target] += seconds
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


def candidates(graph: Graph, cluster: Cluster, batch: int = 1) -> list[Candidate]:
    """All plans to choose from, the fastest by the simulation first; those are left out whose weights find no room.

    Parameters
    ----------
    graph
        The network, in any grouping.
    cluster
        Its device 0 has the pictures and gets the answers.
    batch
        N, the number of pictures that travel together.
    """
    found, seen = [], set()
    for name, plan in chain(
        undivided(graph, cluster, batch), named(graph, cluster, batch), searched(graph, cluster, batch)
    ):
        made = (tuple(plan.graph.unit_names), plan.boxes, plan.threads)
        if made in seen or not (name.startswith(("all on", "body on")) or len(at_work(plan)) > 1):
            continue
        seen.add(made)
        candidate = Candidate(name, plan, estimate(plan, cluster))
        if _fits(candidate, cluster):
            found.append(candidate)
    found.sort(key=lambda candidate: candidate.latency_s)
    return [_told_apart(candidate, found[:number]) for number, candidate in enumerate(found)]


def _told_apart(candidate: Candidate, before: Sequence[Candidate]) -> Candidate:
    """The plan with a number in its name where one before it has the same."""
    alike = sum(each.name == candidate.name for each in before)
    return replace(candidate, name=f"{candidate.name} ({alike + 1})") if alike else candidate


def searched(graph: Graph, cluster: Cluster, batch: int = 1) -> Iterator[tuple[str, Plan]]:
    """What the search finds with the devices of each team alone, and if sending counted less since it overlaps."""
    search = Search(grouped(graph, "pool", "split"), cluster, batch)
    for ranks in teams(speeds_of(search.graph, cluster, batch)):
        for weight in WEIGHTS:
            plan = search.plan({ROOT, *ranks}, weight=weight)
            if plan is not None:
                yield _name(plan, cluster), plan


def levelled(found: Sequence[Candidate], graph: Graph, cluster: Cluster, batch: int = 1) -> Iterator[tuple[str, Plan]]:
    """What the search finds with shares after which all devices of the best split so far compute as long as each other.

    ``found`` is looked at when the first of them is asked for.
    """
    units = grouped(graph, "pool", "split")
    if len(set(speeds_of(units, cluster, batch))) == 1:
        return
    splits = [each for each in found if len(at_work(each.plan)) > 1]
    if not splits:
        return
    best = min(splits, key=lambda each: each.latency_s)
    own = [alone(units, rank, len(cluster.devices)) for rank in first_of_each(cluster)]
    for _ in range(LEVELLED):
        shares = level_shares(best.plan, best.timeline)
        plan = Search(units, cluster, batch, [*own, *over(units, shares)]).plan()
        if plan is None:
            return
        yield _name(plan, cluster), plan
        best = Candidate("", plan, estimate(plan, cluster))


def level_shares(plan: Plan, timeline: Timeline) -> list[float]:
    """A share for each rank by the FLOP/s that it reaches in what several ranks compute; 0 for one that has no part."""
    split = [unit for unit, row in enumerate(plan.boxes) if sum(map(bool, row)) > 1]
    busy_s = (timeline.stamps_s[:, split, 2] - timeline.stamps_s[:, split, 1]).sum(axis=1)
    work = [sum(plan.flops(unit, rank) for unit in split) for rank in range(plan.ranks)]
    speeds = [each / seconds if seconds else 0.0 for each, seconds in zip(work, busy_s.tolist(), strict=True)]
    return speeds if any(speeds) else list(plan.shares)


def _name(plan: Plan, cluster: Cluster) -> str:
    """What a plan that was searched for is called: by the schemes in it, or the devices that take turns."""
    schemes = [name for name in dict.fromkeys(plan.schemes) if name in SCHEMES]
    if schemes:
        return f"unit by unit: {', '.join(schemes)}"
    names = names_of(cluster)
    turns = [names[rank] for rank in dict.fromkeys(rank for row in plan.boxes for rank, box in enumerate(row) if box)]
    return f"all on {turns[0]}" if len(turns) == 1 else f"first on {', then on '.join(turns)}"


def estimate(plan: Plan, cluster: Cluster) -> Timeline:
    """How a frame goes by a plan on a cluster, as ``distribute`` would run it there."""
    return simulate(on_links(plan, cluster), with_threads(plan, cluster))


def with_threads(plan: Plan, cluster: Cluster) -> Cluster:
    """The cluster with devices as fast as they are with the threads that the plan has for them."""
    if not plan.threads:
        return cluster
    pairs = zip(cluster.devices, plan.threads, strict=True)
    devices = [device.faster(1 + MORE_THREADS * (threads / device.threads - 1)) for device, threads in pairs]
    return replace(cluster, devices=tuple(devices))


def on_links(plan: Plan, cluster: Cluster) -> Schedule:
    """The schedule that a plan would come to on a cluster: memory between ranks of a host, pieces on slow links."""
    hosts = [device.host for device in cluster.devices]
    slowest = max((1 / link.beta_bytes_per_s for link in cluster.links), default=0.0)

    def medium(spread: Exchange) -> str:
        return "shared" if len({hosts[rank] for rank in spread.members}) <= 1 else "messages"

    def overlap(spread: Exchange) -> bool:
        return medium(spread) == "messages" and worth_overlapping(plan, spread, slowest)

    return schedule(plan, medium, overlap=overlap)


def undivided(graph: Graph, cluster: Cluster, batch: int) -> Iterator[tuple[str, Plan]]:
    """All on one device of each kind, or all but the fully connected layers."""
    count, names = len(cluster.devices), names_of(cluster)
    for rank in first_of_each(cluster):
        shares = tuple(float(other == rank) for other in range(count))
        for head in ("split", "root") if rank != ROOT else ("root",):
            units = grouped(graph, "pool", head)
            way = alone(units, rank, count)
            plan = Plan(units, way.names, shares, batch, tuple(map(tuple, way.boxes)))
            whole = rank == ROOT or head == "split"
            yield f"all on {names[rank]}" if whole else f"body on {names[rank]}, head on {names[ROOT]}", plan
            threads = lent(cluster, rank)
            beside = rank != ROOT and cluster.devices[rank].host == cluster.devices[ROOT].host
            if whole and not beside and threads > cluster.devices[rank].threads:
                each = tuple(threads if r == rank else d.threads for r, d in enumerate(cluster.devices))
                yield f"all on {names[rank]} with {threads} threads", replace(plan, threads=each)


def lent(cluster: Cluster, rank: int) -> int:
    """Threads that a rank has if the other ranks of its host lend it their cores; its own where it is emulated.

    A rank that may use more cores than it has threads is bound to none, so that these are all that the host has.
    """
    device = cluster.devices[rank]
    together = [other for other in cluster.devices if other.host == device.host]
    if device.pace > 1:
        return device.threads
    cores = device.cores if device.cores > device.threads else sum(other.cores for other in together)
    return max(min(sum(other.threads for other in together), cores), device.threads)


def named(graph: Graph, cluster: Cluster, batch: int) -> Iterator[tuple[str, Plan]]:
    """Every scheme by equal shares and by speed, with every place for the head."""
    count, names = len(cluster.devices), names_of(cluster)
    if count == 1:
        return
    shares = speeds_of(grouped(graph, "pool", "split"), cluster, batch)
    uneven = max(shares) > min(shares)
    fastest = max(range(count), key=lambda rank: shares[rank])
    heads: list[tuple[str, str | int]] = [("", "root"), (", head split", "split")]
    heads += [(f", head on {names[fastest]}", fastest)] if fastest != ROOT else []
    for scheme in SCHEMES:
        if scheme in NO_SPLIT:
            continue
        for how, each in (("equal shares", [1.0] * count), ("shares by speed", shares))[: 1 + uneven]:
            for words, head in heads:
                plan = make_plan(graph, (batch, *graph.input_shape), scheme, count, each, "pool", head)
                yield f"{scheme}, {how}{words}", plan


def names_of(cluster: Cluster) -> list[str]:
    """A name for every rank: its host's, with its number where several are on that host."""
    hosts = [device.host for device in cluster.devices]
    return [host if hosts.count(host) == 1 else f"{host} (rank {rank})" for rank, host in enumerate(hosts)]


def _fits(candidate: Candidate, cluster: Cluster) -> bool:
    """Whether every device has room for its weights, as far as its memory is known."""
    pairs = zip(candidate.weight_bytes, cluster.devices, strict=True)
    return all(not device.memory_bytes or held <= MEMORY_PART * device.memory_bytes for held, device in pairs)
