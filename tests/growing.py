"""How much the last rank of a job grows by running a network, and what is modelled: MODEL SCHEME, under mpirun.

Without words: how much ``trim_heap`` returns of a heap with holes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from mpi4py import MPI

import mpiconv
from mpiconv.planner.memory import peak_bytes
from mpiconv.runtime.heap import settle_heap, trim_heap
from mpiconv.runtime.net import DistributedNet

COMM = MPI.COMM_WORLD


def resident() -> dict[str, int]:
    """What this process has resident, and had at most, in B."""
    lines = [line.split() for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines()]
    return {line[0].rstrip(":"): 1024 * int(line[1]) for line in lines if line[0] in ("VmHWM:", "VmRSS:")}


def grown(name: str, scheme: str) -> tuple[int, DistributedNet]:
    """By how many B this process grows at most while it runs a network, which is given back with that."""
    root = COMM.rank == 0
    model = mpiconv.load_model(name) if root else None
    plan = mpiconv.make_plan(model, (1, *model.info.input_shape), scheme, COMM.size) if root else None
    picture = torch.rand(1, *model.info.input_shape) if root else None
    COMM.Barrier()
    trim_heap()
    before = resident()["VmRSS"]
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the most so far is what there is now
    net = mpiconv.distribute(model, plan, COMM)
    for _ in range(4):
        net(picture)
    return resident()["VmHWM"] - before, net


def returned() -> int:
    """B that are given back of 20 blocks of 2 MiB, freed between others of that size that are in use.

    Smaller ones would be put where the imports have left room, and what was freed would not lie between them.
    """
    blocks = [torch.ones(2**19) for _ in range(40)]
    del blocks[0::2]
    before = resident()["VmRSS"]
    trim_heap()
    assert all(bool((each == 1).all()) for each in blocks)
    return before - resident()["VmRSS"]


def main() -> dict[str, int]:
    torch.set_num_threads(1)
    settle_heap()
    if not sys.argv[1:]:
        return {"returned": returned()}
    with grown("digits", "kpm")[1]:
        pass  # loads the code of MPI and torch
    measured, net = grown(*sys.argv[1:])
    with net:
        modelled = peak_bytes(net._built.slots[0].schedule)[COMM.rank].peak_bytes
    return {"measured": measured, "modelled": modelled}


if __name__ == "__main__":
    found = main()
    if COMM.rank == COMM.size - 1:
        print(json.dumps(found), flush=True)
