"""The work behind ``mpiconv probe``: measure, write the file, print tables."""

from __future__ import annotations

import argparse
import sys

import torch
from tqdm import tqdm

from mpiconv.cli.options import pace_of
from mpiconv.cli.tables import align
from mpiconv.files import check_writable
from mpiconv.job.control import on_root
from mpiconv.job.world import join_world, on_terminal
from mpiconv.planner.cluster import UNIT_KINDS, Cluster
from mpiconv.probe.probing import probe
from mpiconv.text import to_json


def measure(arguments: argparse.Namespace) -> int:
    """Measure all ranks and links; the root writes the file and prints. Collective."""
    team = join_world()
    torch.set_num_threads(arguments.threads)
    pace = pace_of(arguments, team.rank, team.size)
    on_root(team, lambda: check_writable(arguments.out))
    hidden = team.rank > 0 or not on_terminal()
    with tqdm(total=arguments.repeats, desc="rounds", unit="", disable=hidden, file=sys.stderr) as bar:
        cluster, notes = probe(team, arguments.repeats, pace, arguments.dilation, bar.update)

    def write() -> None:
        for note in notes:
            print(f"mpiconv: note: {note}", file=sys.stderr, flush=True)
        cluster.save(arguments.out)
        print(to_json(cluster.to_dict()) if arguments.json else f"{tables(cluster)}\ncluster  {arguments.out}")
        sys.stdout.flush()

    on_root(team, write)
    return 0


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
            medium += f": a pair keeps {100 * cluster.medium_ratio:.0f} % of its rate while another talks"
        elif cluster.medium_reason:
            medium += f": {cluster.medium_reason}"
        lines += ["", medium]
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
