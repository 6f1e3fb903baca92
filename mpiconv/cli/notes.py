"""What a user may not expect of a run, said on stderr before it: notes, and a bar while the weights travel."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from mpiconv.runtime.host import machine_id
from mpiconv.runtime.messages import allgather_json
from mpiconv.runtime.world import on_terminal
from mpiconv.words import counted

if TYPE_CHECKING:
    from mpi4py import MPI

SHOWN_AFTER_S = 1.0


def sending_bar(*, quiet: bool) -> Callable[[int, int], None]:
    """What shows a person on a terminal how the weights travel, where that takes more than ``SHOWN_AFTER_S``."""
    bars: list[tqdm] = []

    def show(sent: int, total: int) -> None:
        if not bars:
            hidden = quiet or not on_terminal()
            about = {"desc": "sending weights", "unit": "B", "unit_scale": True, "delay": SHOWN_AFTER_S, "leave": False}
            bars.append(tqdm(total=total, file=sys.stderr, disable=hidden, **about))
        bars[0].update(sent - bars[0].n)
        if sent >= total:
            bars[0].close()

    return show


def crowded(arguments: argparse.Namespace, comm: MPI.Intracomm) -> list[str]:
    """A sentence for every host with more threads of ranks than cores for them. Collective.

    None for emulated devices, which sleep most of the time.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    found = allgather_json(comm, [machine_id(), cores, torch.get_num_threads(), socket.gethostname()])
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
