"""The work behind ``mpiconv probe``: measure, write the file, print tables."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from tqdm import tqdm

from mpiconv.cli.networks import build_graph
from mpiconv.cli.notes import note
from mpiconv.cli.options import pace_of
from mpiconv.errors import MpiconvError
from mpiconv.files import check_writable, user_cache
from mpiconv.graph.form import Graph
from mpiconv.job.control import allgather_json, on_root
from mpiconv.job.team import Team
from mpiconv.job.world import join_world, on_terminal
from mpiconv.planner.cluster import UNIT_KINDS, Cluster
from mpiconv.planner.speed import FAST_GFLOP_PER_S
from mpiconv.planner.wisdom import forget
from mpiconv.probe.probing import probe
from mpiconv.probe.units import UnitProbe, with_unit_times
from mpiconv.text import align, to_json
from mpiconv.words import counted

SECONDS_PER_ROUND = 0.5
"""How long a core of usual speed measures units for every round of the probe: 4.5 s, 1.5 s with --quick."""

MOST_TIMES_LONGER = 15.0


def measure(arguments: argparse.Namespace) -> int:
    """Measure all ranks and links; the root writes the file and prints. Collective."""
    team = join_world()
    torch.set_num_threads(arguments.threads)
    pace = pace_of(arguments, team.rank, team.size)
    if arguments.forget:
        _forget(team)
        if not arguments.model:
            return 0
    on_root(team, lambda: check_writable(arguments.out))
    graph = on_root(team, lambda: build_graph(arguments) if arguments.model else None)
    with _bar(team, arguments.repeats, "rounds") as bar:
        cluster, notes = probe(team, arguments.repeats, pace, arguments.dilation, bar.update, arguments.wait)
    if arguments.model:
        cluster, more = _units(arguments, team, cluster, graph, pace)
        notes += more

    def write() -> None:
        for text in notes:
            note(text)
        cluster.save(arguments.out)
        print(to_json(cluster.to_dict()) if arguments.json else f"{tables(cluster)}\ncluster  {arguments.out}")
        sys.stdout.flush()

    on_root(team, write)
    return 0


def _units(
    arguments: argparse.Namespace, team: Team, cluster: Cluster, graph: Graph | None, pace: float
) -> tuple[Cluster, list[str]]:
    """The cluster with the times of a network's units; a slow core gets more time to measure them. Collective."""
    core_gflop_per_s = cluster.devices[team.rank].gflop_per_s["conv3x3"] * pace / arguments.dilation
    longer = min(max(FAST_GFLOP_PER_S / core_gflop_per_s, 1.0), MOST_TIMES_LONGER)
    with _bar(team, 0, "units") as bar:

        def progress(of: int) -> None:
            bar.total = of
            bar.update()

        budget_s = SECONDS_PER_ROUND * arguments.repeats * longer
        probe = UnitProbe(arguments.batch, budget_s, (arguments.repeats + 1) // 2, pace=pace)
        return with_unit_times(team, cluster, graph, probe, progress=progress)


def _bar(team: Team, total: int, what: str) -> tqdm[Any]:
    """A progress bar on the terminal, of rank 0."""
    hidden = team.rank > 0 or not on_terminal()
    return tqdm(total=total, desc=what, unit="", disable=hidden, file=sys.stderr)


def _forget(team: Team) -> None:
    """Remove the measured times and kept plans on every host, and say how many files there were. Collective."""
    try:
        found, problem = forget(user_cache("wisdom")), ""
    except MpiconvError as error:
        found, problem = 0, str(error)
    everyone = allgather_json(team, [found, problem])

    def tell() -> None:
        problems = [f"rank {rank}: {text}" for rank, (_, text) in enumerate(everyone) if text]
        if problems:
            raise MpiconvError(problems[0])
        files = counted(sum(each for each, _ in everyone), "file")
        print(f"forgotten  {files} of measured times and plans", flush=True)

    on_root(team, tell)


def tables(cluster: Cluster) -> str:
    """The devices, the links and the medium, for a person."""
    header = ["rank", "host", "cores", "threads", "memory GB", *UNIT_KINDS, "weights GB/s"]
    rows = [
        [
            str(rank),
            device.host,
            str(device.cores),
            str(device.threads),
            f"{device.memory_bytes / 1e9:.1f}",
            *(f"{device.gflop_per_s[kind]:.3g}" for kind in UNIT_KINDS),
            f"{device.weight_bytes_per_s / 1e9:.3g}",
        ]
        for rank, device in enumerate(cluster.devices)
    ]
    lines = ["GFLOP/s by kind of unit", *align([header, *rows])]
    count = len(cluster.devices)
    if count > 1:
        lines += ["", "alpha in us, beta in MB/s, from the rank on the left to the rank above", *_links(cluster)]
        medium = f"medium   {cluster.medium}"
        if cluster.medium_ratio is not None:
            others = "two others talk" if len({device.host for device in cluster.devices}) == 3 else "another talks"
            medium += f": a pair keeps {100 * cluster.medium_ratio:.0f} % of its rate while {others}"
        elif cluster.medium_reason:
            medium += f": {cluster.medium_reason}"
        lines += ["", medium]
    if any(device.unit_seconds for device in cluster.devices):
        lines.append("")
    for rank, device in enumerate(cluster.devices):
        if device.unit_seconds:
            boxes = sum(map(len, device.unit_seconds.values()))
            shapes = counted(len(device.unit_seconds), "shape")
            lines.append(f"units    of {shapes} measured as {boxes} boxes, rank {rank}")
    if cluster.emulated:
        lines.append(f"emulated devices, time dilation {cluster.dilation:g}: the numbers are the lab's, not of boards")
    return "\n".join(lines)


def _links(cluster: Cluster) -> list[str]:
    ranks = range(len(cluster.devices))

    def cell(a: int, b: int) -> str:
        if a == b:
            return "-"
        link = cluster.link(a, b)
        return f"{1e6 * link.alpha_s:.0f}, {link.beta_bytes_per_s / 1e6:.1f}"

    return align([["", *(f"rank {b}" for b in ranks)], *([f"rank {a}", *(cell(a, b) for b in ranks)] for a in ranks)])
