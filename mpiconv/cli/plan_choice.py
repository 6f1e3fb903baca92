"""The work behind ``mpiconv plan --cluster``: what to do on these devices, what else there is, and what each takes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpiconv.cli.options import AUTO
from mpiconv.cli.setup import build_model
from mpiconv.cli.tables import align
from mpiconv.errors import MpiconvError, UsageError
from mpiconv.graph.form import Graph
from mpiconv.graph.trace import trace
from mpiconv.partition.plan import at_work
from mpiconv.partition.schemes import ROOT, check_scheme
from mpiconv.planner.baselines import BASELINES
from mpiconv.planner.candidates import Candidate, candidates, estimate, undivided
from mpiconv.planner.cluster import Cluster
from mpiconv.text import to_json
from mpiconv.words import counted

SHOWN = 8


def choose(arguments: argparse.Namespace) -> int:
    """Print what to do and the alternatives, all of it estimated; save the best plan if that is asked for."""
    _check(arguments)
    cluster = Cluster.load(arguments.cluster)
    model, info = build_model(arguments)
    graph = trace(model, info.input_shape, batch=arguments.batch or 1).layers
    if arguments.scheme in BASELINES:
        return _show_baseline(arguments, graph, cluster)
    found = candidates(graph, cluster, arguments.batch or 1)
    if not found:
        raise MpiconvError(
            f"no plan for {graph.model} fits the memory of the devices in {arguments.cluster}: more or larger devices "
            "are wanted"
        )
    if arguments.save:
        found[0].plan.save(arguments.save)
    if arguments.json:
        print(to_json(as_dict(found, arguments.cluster)))
        return 0
    print(sentence(found, cluster))
    print(f"Estimated from {arguments.cluster}, not measured.")
    print()
    print("\n".join(table(found)))
    print()
    _tell_next(arguments, cluster, "the first as a plan")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raise UsageError for an option that says what is chosen for the cluster."""
    if arguments.scheme is not None:
        check_scheme(arguments.scheme, (*BASELINES, AUTO))
    for name in ("scheme", "shares", "offload", "gather", "head", "ranks", "plan"):
        if getattr(arguments, name) not in (None, AUTO, *BASELINES):
            raise UsageError(f"--cluster chooses a plan by itself: leave --{name} out, or leave --cluster out")


def _show_baseline(arguments: argparse.Namespace, graph: Graph, cluster: Cluster) -> int:
    """Print what a baseline takes and its plan, estimated; save the plan if that is asked for."""
    name, batch = arguments.scheme, arguments.batch or 1
    plan = BASELINES[name](graph, cluster, batch)
    found = Candidate(name, plan, estimate(plan, cluster))
    if arguments.save:
        plan.save(arguments.save)
    if arguments.json:
        print(to_json(as_dict([found], arguments.cluster)))
        return 0
    _, alone = next(undivided(graph, cluster, batch))
    alone_s = estimate(alone, cluster).latency_s
    print(
        f"{name}: over {counted(len(at_work(plan)), 'device')}, {seconds(found.latency_s)} a "
        f"{'picture' if batch == 1 else 'batch'}; {cluster.devices[ROOT].host} alone takes {seconds(alone_s)}."
    )
    print(f"Estimated from {arguments.cluster}, not measured.")
    print()
    print(plan)
    print()
    _tell_next(arguments, cluster, "this plan")
    return 0


def _tell_next(arguments: argparse.Namespace, cluster: Cluster, what: str) -> None:
    """Say how the plan is run, or saved."""
    if arguments.save:
        words = f"mpirun --hostfile FILE -n {len(cluster.devices)} mpiconv run --model {arguments.model}"
        print(f"{words} --plan {arguments.save} --check    # runs it; FILE lists the hosts in the order of the devices")
    else:
        print(f"--save FILE.json writes {what}, for mpiconv run --plan FILE.json")


def sentence(found: Sequence[Candidate], cluster: Cluster) -> str:
    """What to do and what it gains over device 0 alone, in a sentence or two."""
    best, first = found[0], cluster.devices[0].host
    own = next((each for each in found if each.name.startswith("all on") and at_work(each.plan) == [0]), None)
    takes = f"{seconds(best.latency_s)} a {'picture' if best.plan.batch == 1 else 'batch'}"
    gain = ""
    if own is not None and own is not best:
        gain = f", {own.latency_s / best.latency_s:.1f} x faster than {first} alone"
    if len([rank for rank in at_work(best.plan) if rank]) <= 1 and best.name.startswith(("all on", "body on")):
        split = next((each for each in found if not each.name.startswith(("all on", "body on"))), None)
        other = f" The fastest split, {split.name}, takes {seconds(split.latency_s)}." if split is not None else ""
        return f"Do not split: run it {best.name}, {takes}{gain}.{other}"
    return f"Split it: {best.name}, over {counted(len(at_work(best.plan)), 'device')}, {takes}{gain}."


def table(found: Sequence[Candidate]) -> list[str]:
    """The fastest plans, and every one that leaves all to one device."""
    shown = [each for i, each in enumerate(found) if i < SHOWN or each.name.startswith("all on")]
    rows = [["plan", "latency", "moved MB", "most weights MB"]]
    rows += [
        [
            each.name,
            seconds(each.latency_s),
            f"{each.bytes_moved / 1e6:.2f}",
            f"{max(each.weight_bytes) / 1e6:.1f}",
        ]
        for each in shown
    ]
    return align(rows)


def as_dict(found: Sequence[Candidate], path: str | Path) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "estimated": True,
        "cluster": str(path),
        "best": found[0].name,
        "candidates": [
            {
                "name": each.name,
                "latency_s": each.latency_s,
                "bytes_moved": each.bytes_moved,
                "weight_bytes": each.weight_bytes,
                "devices": at_work(each.plan),
            }
            for each in found
        ],
        "plan": found[0].plan.to_dict(),
    }


def seconds(value: float) -> str:
    """A time in s or ms, to three digits."""
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"
