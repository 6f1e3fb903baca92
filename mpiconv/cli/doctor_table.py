"""The work behind ``mpiconv doctor``: examine, print tables, say what to mend."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from math import isnan

import torch

from mpiconv.cli.options import pace_of
from mpiconv.errors import MpiconvError
from mpiconv.job.world import join_world, launcher_rank, leave
from mpiconv.probe.doctor import Findings, examine
from mpiconv.probe.preflight import ask_hosts, read_hosts
from mpiconv.text import align, to_json


def diagnose(arguments: argparse.Namespace) -> int:
    """Examine all ranks; the root prints. Collective.

    Raises MpiconvError if something would break a run, once it is printed.
    """
    team = join_world(same_version=False)
    torch.set_num_threads(arguments.threads)
    found = examine(team, pace_of(arguments, team.rank, team.size), arguments.dilation)
    if team.rank == 0:
        print(to_json(asdict(found)) if arguments.json else _tables(found), flush=True)
        if found.errors:
            raise MpiconvError(found.errors[0])
    leave(team)
    return 0


def call_hosts(arguments: argparse.Namespace) -> int:
    """Ask the hosts of a hostfile for an answer and print a line for each. Not collective.

    Raises MpiconvError if one gives none, once all are printed.
    """
    if launcher_rank():
        return 0
    answers = ask_hosts(read_hosts(arguments.hostfile))
    if arguments.json:
        print(to_json(answers))
    else:
        width = max(len(host) for host in answers)
        print("\n".join(f"{host:{width}}  {reason or 'answers'}" for host, reason in answers.items()))
    silent = [host for host, reason in answers.items() if reason]
    if silent:
        raise MpiconvError(
            f"{arguments.hostfile}: mpirun cannot start ranks on {', '.join(silent)}: mend the name there or in "
            f"~/.ssh/config or /etc/hosts, until 'ssh {silent[0]} true' works without a password"
        )
    return 0


def _tables(found: Findings) -> str:
    header = ["rank", "host", "cores", "threads", "memory GB", "conv GFLOP/s", "clock ms", "mpiconv", "torch", "MPI"]
    rows = [
        [
            str(i),
            rank["host"],
            str(rank["cores"]),
            str(rank["threads"]),
            f"{rank['memory_bytes'] / 1e9:.1f}",
            f"{rank['conv_gflop_per_s']:.1f}",
            f"{1e3 * found.offset_s[i]:+.3f}",
            rank["mpiconv"],
            rank["torch"],
            rank["mpi"],
        ]
        for i, rank in enumerate(found.ranks)
    ]
    lines = align([header, *rows])
    if len(found.ranks) > 1:
        lines += ["", "MB/s and one-way latency in us, from the rank on the left to the rank above"]
        above = ["", *(f"rank {b}" for b in range(len(found.ranks)))]
        table = [
            [
                f"rank {a}",
                *(
                    "-" if isnan(rate) else f"{rate / 1e6:.1f}, {1e6 * found.latency_s[a][b]:.0f}"
                    for b, rate in enumerate(row)
                ),
            ]
            for a, row in enumerate(found.bytes_per_s)
        ]
        lines += align([above, *table])
    lines += ["", *(f"error    {text}" for text in found.errors), *(f"warning  {text}" for text in found.warnings)]
    lines.append("all is well" if not found.errors and not found.warnings else "")
    return "\n".join(lines).rstrip()
