"""What a user may not expect of a run, said once on stderr before it."""

from __future__ import annotations

import argparse
import socket

import torch

from mpiconv.job.control import allgather_json
from mpiconv.job.host import cores_here, machine_id
from mpiconv.job.team import Team
from mpiconv.words import counted


def crowded(arguments: argparse.Namespace, team: Team) -> list[str]:
    """A sentence for every host with more threads of ranks than cores for them. Collective.

    None for emulated devices, which sleep most of the time.
    """
    found = allgather_json(team, [machine_id(), cores_here(), torch.get_num_threads(), socket.gethostname()])
    if max(arguments.pace) > 1:
        return []
    return crowding(found)


def crowding(ranks: list[tuple[str, list[int], int, str]]) -> list[str]:
    """The sentences for ranks that are each (machine, numbers of its cores, threads, name of the host)."""
    notes = []
    for machine in dict.fromkeys(rank[0] for rank in ranks):
        here = [rank for rank in ranks if rank[0] == machine]
        cores, threads = len({core for rank in here for core in rank[1]}), sum(rank[2] for rank in here)
        if threads > cores:
            notes.append(
                f"{counted(len(here), 'rank')} with {counted(threads, 'thread')} in all share {counted(cores, 'core')} "
                f"of {here[0][3]}: the times measured mean little"
            )
    return notes
