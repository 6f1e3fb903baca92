"""A cluster as it was measured, corrected by what ranks take in a run, and the plans to choose from then. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mpiconv.partition.making import make_plan
from mpiconv.partition.plan import Plan
from mpiconv.partition.schemes import NO_SPLIT, SCHEMES
from mpiconv.planner.candidates import Candidate, candidates
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.estimating import estimate
from mpiconv.planner.speed import FAST_GFLOP_PER_S
from mpiconv.planner.ways import speeds_of

BALANCED = 1.05
"""Shares are good where no rank computes longer than the mean by more than this factor."""

TRIES = 5
"""How often shares are corrected by what they come to."""

FARTHEST = math.log(1000.0)
"""How far a link may be off, as a logarithm."""

HALVINGS = 14
"""Steps of the bisection for that: within 0.1 % of the logarithm's range."""

SEARCH_S = 10e-3
"""What a search takes per unit and rank on a fast core, as measured with VGG11 on 3, VGG16 and MobileNetV2 on 16."""


@dataclass(frozen=True)
class State:
    """How many times slower than in the cluster's numbers each rank computes, and its links are: (rank,) each."""

    devices: tuple[float, ...]
    links: tuple[float, ...]

    def of(self, cluster: Cluster) -> Cluster:
        """The cluster in this state; a link is as slow as the slower of its two ends."""
        pairs = zip(cluster.devices, self.devices, strict=True)
        devices = [device.faster(1 / slower) for device, slower in pairs]
        ends = [max(self.links[link.source], self.links[link.target]) for link in cluster.links]
        links = [
            replace(link, beta_bytes_per_s=link.beta_bytes_per_s / slower)
            for link, slower in zip(cluster.links, ends, strict=True)
        ]
        return replace(cluster, devices=tuple(devices), links=tuple(links))


def reshared(plan: Plan, cluster: Cluster) -> Plan | None:
    """The running scheme with shares by which all ranks compute equally long; None where there is no one scheme."""
    schemes = {name for name in plan.schemes if name in SCHEMES and name not in NO_SPLIT}
    if len(schemes) != 1 or plan.gather not in ("conv", "pool"):
        return None
    scheme, shares = schemes.pop(), np.array(speeds_of(plan.graph, cluster, plan.batch))
    best: Plan | None = None
    least = math.inf
    for _ in range(TRIES):
        made = make_plan(
            plan.graph, plan.input_shape, scheme, plan.ranks, shares.tolist(), plan.gather, plan.head, plan.wire
        )
        found = estimate(made, cluster)
        if found.latency_s < least:
            best, least = made, found.latency_s
        spent = found.stamps_s[:, _divided(made)]
        seconds = (spent[..., 2] - spent[..., 1]).sum(axis=1)
        if not seconds.min() or seconds.max() <= BALANCED * seconds.mean():
            break
        shares = shares * seconds.mean() / seconds
    return best


def _divided(plan: Plan) -> list[int]:
    """The units that several ranks compute."""
    return [unit for unit, boxes in enumerate(plan.boxes) if sum(map(bool, boxes)) > 1]


def options(plan: Plan, cluster: Cluster, spare_s: float) -> list[Candidate]:
    """Plans for the network, the fastest by the simulation first: the running scheme's new shares among them.

    What a search finds is among them where it probably takes no longer than ``spare_s``.
    """
    ranks, root = plan.ranks, cluster.devices[0]
    core = min(root.gflop_per_s["conv3x3"] * root.pace / FAST_GFLOP_PER_S, 1.0)
    search_s = SEARCH_S * len(plan.graph.units) * ranks / core
    found = candidates(plan.graph, cluster, plan.batch, search=search_s <= spare_s, wires=[plan.wire])
    made = reshared(plan, cluster)
    if made is not None:
        found.append(Candidate(f"{made.scheme}, new shares", made, estimate(made, cluster)))
    return sorted(found, key=lambda candidate: candidate.latency_s)


def blamed(
    plan: Plan, cluster: Cluster, state: State, latency_s: float, more_exchange_s: np.ndarray
) -> tuple[State, tuple[int, ...]] | None:
    """The state in which the links explain a latency that the devices do not, and the ranks whose links differ.

    Waiting for a slow rank is not a slow link: the simulation of the state has that waiting in it, so that what is left
    is up to the links. Those of each rank alone, and all of them, are made so much slower or faster that the latency
    comes out; what then fits the change of all ranks' exchanges best is it.

    Parameters
    ----------
    plan
        That runs.
    cluster, state
        The devices and links, and what is known of them; its devices are right.
    latency_s
        To be explained, in s.
    more_exchange_s
        (rank, unit): by how many s each exchange takes longer than it did.

    Returns
    -------
    tuple or None
        None where no links explain it: ranks of one host, say.
    """
    ranks = range(plan.ranks)
    groups = [(rank,) for rank in ranks] if plan.ranks > 2 else []
    found, least = None, math.inf
    usual = _exchange_s(plan, cluster, state)[1]
    for group in (*groups, tuple(ranks)):
        fitting = _fitted(plan, cluster, state, group, latency_s)
        if fitting is None:
            continue
        rest = np.abs(more_exchange_s - (_exchange_s(plan, cluster, fitting)[1] - usual)).sum()
        if rest < least:
            found, least = (fitting, group), rest
    return found


def _fitted(plan: Plan, cluster: Cluster, state: State, group: Sequence[int], latency_s: float) -> State | None:
    """The state with some ranks' links so much slower or faster that the latency comes out, within 5 %."""
    low, high = -FARTHEST, FARTHEST
    made = state
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        slower = [each * math.exp(middle) if rank in group else each for rank, each in enumerate(state.links)]
        made = replace(state, links=tuple(slower))
        if _exchange_s(plan, cluster, made)[0] > latency_s:
            high = middle
        else:
            low = middle
    fits = 0.95 < _exchange_s(plan, cluster, made)[0] / latency_s < 1.05
    return made if fits else None


def _exchange_s(plan: Plan, cluster: Cluster, state: State) -> tuple[float, np.ndarray]:
    """The latency, and what each exchange takes (rank, unit), in s."""
    found = estimate(plan, state.of(cluster))
    return found.latency_s, found.stamps_s[..., 1] - found.stamps_s[..., 0]
