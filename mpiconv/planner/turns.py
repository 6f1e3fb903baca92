"""Whole pictures to different devices, in turn: how many they manage together, estimated. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mpiconv.graph.form import Graph
from mpiconv.partition.holdings import holdings
from mpiconv.partition.plan import FLOAT_BYTES
from mpiconv.partition.schemes import ROOT
from mpiconv.partition.turns import Turns, make_turns
from mpiconv.partition.wire import FLOAT32
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.energy import joules
from mpiconv.planner.estimating import scheduled
from mpiconv.planner.memory import Memory, peak_bytes
from mpiconv.planner.simulation import Timeline, simulate


@dataclass(frozen=True)
class TakingTurns:
    """Plans by which batches go in turn, each all on one device, with what a batch takes by each of them alone.

    Attributes
    ----------
    plan
        The plans, the first on device 0.
    timelines
        How a batch goes by each of them, as simulated.
    memory
        What each device needs for all of them, with ``in_flight`` batches under way.
    in_flight
        How many batches are under way at a time, at least as many as there are plans.
    """

    plan: Turns
    timelines: tuple[Timeline, ...]
    memory: tuple[Memory, ...]
    in_flight: int
    name: str = "whole pictures to each device in turn"

    @property
    def latency_s(self) -> float:
        """Estimated s from a batch to its answer on the slowest device, once it gets to it."""
        return max(timeline.latency_s for timeline in self.timelines)

    def rates(self, cluster: Cluster) -> list[float]:
        """Pictures/s of each device, with the others at work.

        A device computes all the time if its next batch is on its way meanwhile; with one batch of its own under way
        it waits for each. All but device 0 get their pictures over its link: where that is too slow for all of them,
        each gets as large a part of what it could compute.
        """
        batch, turns = self.plan.batch, len(self.timelines)
        own = [len(range(turn, self.in_flight, turns)) for turn in range(turns)]
        alone = [
            batch * min(1 / float(timeline.compute_s.max() or timeline.latency_s), count / timeline.latency_s)
            for timeline, count in zip(self.timelines, own, strict=True)
        ]
        sending = self._sending_s(cluster)
        busy = [sum(rate / batch * each[way] for rate, each in zip(alone, sending, strict=True)) for way in (0, 1)]
        part = 1 / max(1.0, sum(busy) if cluster.medium == "shared" else max(busy))
        return [rate * part if any(each) else rate for rate, each in zip(alone, sending, strict=True)]

    def pictures_per_s(self, cluster: Cluster) -> float:
        """Pictures/s of all devices together."""
        return sum(self.rates(cluster))

    def joules(self, cluster: Cluster) -> list[float] | None:
        """J above idle per batch and device, each device with as many batches as it manages; None where not known."""
        rates, total = self.rates(cluster), self.pictures_per_s(cluster)
        each = [joules(*pair, cluster) for pair in zip(self.plan.plans, self.timelines, strict=True)]
        parts = [(rate / total, found) for rate, found in zip(rates, each, strict=True) if found is not None]
        return [sum(part * found[rank] for part, found in parts) for rank in range(self.plan.ranks)] if parts else None

    @property
    def weight_bytes(self) -> list[int]:
        """B of weights that each rank needs."""
        held = holdings(self.plan)
        return [
            FLOAT_BYTES * sum(param.size // param.shape[0] * len(spans[rank]) for param, spans in held.items())
            for rank in range(self.plan.ranks)
        ]

    def _sending_s(self, cluster: Cluster) -> list[tuple[float, float]]:
        """S in which the link of device 0 carries a batch to each device, and its answer back."""
        found = []
        for plan in self.plan.plans:
            out = back = 0.0
            for number, spread in plan.exchanges.items():
                for each, size in zip(spread.transfers, plan.payloads[number].each.tolist(), strict=True):
                    if cluster.devices[each.source].host != cluster.devices[each.target].host:
                        seconds = size / cluster.link(each.source, each.target).beta_bytes_per_s
                        out, back = (out + seconds, back) if each.source == ROOT else (out, back + seconds)
            found.append((out, back))
        return found


def taking_turns(
    graph: Graph, cluster: Cluster, batch: int = 1, wire: str = FLOAT32.name, *, in_flight: int
) -> TakingTurns:
    """Whole pictures to each device of a cluster.

    Parameters
    ----------
    graph
        The network, in any grouping.
    cluster
        Its device 0 has the pictures and gets the answers.
    batch
        N, the number of pictures that travel together.
    wire
        The number format of messages.
    in_flight
        How many batches are under way at a time; at least as many as devices are taken.
    """
    turns = make_turns(graph, (batch, *graph.input_shape), len(cluster.devices)).each(lambda p: replace(p, wire=wire))
    carried = [scheduled(plan, cluster) for plan in turns.plans]
    timelines = tuple(simulate(schedule, cluster) for schedule in carried)
    many = max(in_flight, len(carried))
    return TakingTurns(turns, timelines, tuple(peak_bytes(carried, in_flight=many)), many)
