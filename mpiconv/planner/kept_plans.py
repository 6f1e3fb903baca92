"""The plan that was fastest as measured, kept in a file for the next run on the same devices. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mpiconv.errors import MpiconvError
from mpiconv.files import write_text
from mpiconv.graph.form import Graph
from mpiconv.graph.grouping import grouped
from mpiconv.partition.plan import Plan, same_work
from mpiconv.planner.candidates import Candidate
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.estimating import scheduled, with_threads
from mpiconv.planner.limits import limits_for
from mpiconv.planner.memory import peak_bytes
from mpiconv.planner.proposals import names_of
from mpiconv.planner.simulation import Timeline, simulate
from mpiconv.reading import read_json

KEPT_VERSION = 1
KEPT = "kept from the last run"
LINKS_DIFFER = 2.0
"""A plan is not used where a link's rate is another by more than this factor."""


@dataclass(frozen=True)
class Circumstances:
    """What a plan is the best for: another network, other devices or settings have another file.

    Attributes
    ----------
    network
        As ``network_hash`` gives it.
    batch
        Pictures that are computed together.
    devices
        For each rank its host, processor, threads, version of torch and the like, as plain data.
    settings
        What else the time of a plan depends on, by name, as plain data.
    """

    network: str
    batch: int
    devices: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]

    def as_json(self) -> str:
        """All of it as one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    def path(self, folder: Path) -> Path:
        """The file for it in a folder."""
        return folder / f"plan-{blake2b(self.as_json().encode(), digest_size=8).hexdigest()}.json"


@dataclass(frozen=True)
class KeptPlan:
    """A plan, what it is called, and what a batch took by it, in s from one answer to the next."""

    name: str
    plan: Plan
    measured_s: float


def network_hash(graph: Graph) -> str:
    """What tells a network, with the size of its picture, from others, however its layers are grouped."""
    text = json.dumps(grouped(graph, "pool", "split").to_dict(), sort_keys=True)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def load_plan(folder: Path, found: Circumstances, cluster: Cluster) -> tuple[KeptPlan | None, str]:
    """The plan that is kept for this, if there is one; and a note where it is of no use."""
    path = found.path(folder)
    if not path.exists():
        return None, ""
    try:
        data = read_json(path, "kept plan")
        version = data.get("mpiconv_kept_plan") if isinstance(data, Mapping) else None
        if version != KEPT_VERSION:
            raise MpiconvError(f"{path}: mpiconv_kept_plan is {version!r}, {KEPT_VERSION} is wanted")
        if data.get("for") != json.loads(found.as_json()):
            raise MpiconvError(f"{path}: its plan is for something else than its name says")
        try:
            rates, now = data["bytes_per_s"], [link.beta_bytes_per_s for link in cluster.links]
            if any(not 1 / LINKS_DIFFER < a / b < LINKS_DIFFER for a, b in zip(rates, now, strict=True)):
                raise MpiconvError(f"{path}: links had other rates when its plan was the fastest")
            kept = KeptPlan(str(data["name"]), Plan.from_dict(data["plan"]), float(data["measured_s"]))
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise MpiconvError(f"{path}: {type(error).__name__} {error}") from None
        if (network_hash(kept.plan.graph), kept.plan.batch, kept.plan.ranks) != (
            found.network,
            found.batch,
            len(found.devices),
        ):
            raise MpiconvError(f"{path}: its plan is for another network or other ranks")
        if not 0 < kept.measured_s < float("inf"):
            raise MpiconvError(f"{path}: measured_s is {kept.measured_s!r}, a number above 0 is wanted")
    except MpiconvError as error:
        return None, f"{error}: ignored"
    return kept, ""


def save_plan(folder: Path, found: Circumstances, cluster: Cluster, kept: KeptPlan) -> str:
    """Write a plan in place of the one that was kept for the same; returns a note where it cannot be written."""
    data = {
        "mpiconv_kept_plan": KEPT_VERSION,
        "for": json.loads(found.as_json()),
        "bytes_per_s": [link.beta_bytes_per_s for link in cluster.links],
        "name": kept.name.removeprefix(f"{KEPT}: "),
        "measured_s": kept.measured_s,
        "plan": kept.plan.to_dict(),
    }
    try:
        write_text(found.path(folder), json.dumps(data) + "\n")
    except MpiconvError as error:
        return f"the plan is not kept for the next run: {error}"
    return ""


def with_kept(
    listed: Sequence[Candidate],
    kept: KeptPlan,
    cluster: Cluster,
    memory_limits: Sequence[float | None] | None = None,
    in_flight: int = 1,
) -> list[Candidate]:
    """The plans to try with a kept one after the first, in place of any that is the same; its estimate is what it took.

    A list of one plan, which is not tried but taken, has the quicker of the two. Nothing changes where the kept plan is
    the first one, or a device has no longer the memory for it. ``memory_limits`` and ``in_flight`` are as for
    ``candidates``.
    """
    first, *others = listed
    carried = scheduled(kept.plan, cluster)
    memory = tuple(peak_bytes(carried, in_flight=in_flight))
    limits = limits_for(cluster, names_of(cluster), memory_limits)
    if limits.broken(memory) is not None or same_work(kept.plan, first.plan):
        return [*listed]
    stamps_s = simulate(carried, with_threads(kept.plan, cluster)).stamps_s
    timeline = Timeline(stamps_s * (kept.measured_s / Timeline(stamps_s).latency_s))
    again = Candidate(f"{KEPT}: {kept.name}", kept.plan, timeline, memory)
    if not others:
        return [min(first, again, key=lambda each: each.latency_s)]
    return [first, again, *(each for each in others if not same_work(each.plan, kept.plan))]
