"""A long stream of digits: every answer has to be right, and the memory of every rank level.

``mpirun -n 3 python -m mpi4py scripts/soak.py``; exit status 1 if an answer is wrong or a rank grows by more than 1 MB
per 10 000 frames, of which the first 1 MB is forgiven.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from time import monotonic

import numpy as np
import torch
from mpi4py import MPI

import mpiconv
from mpiconv.job.control import allgather_json
from mpiconv.job.team import Team
from mpiconv.runtime.settings import Settings

PICTURES = 61
SAMPLES = 50
MOST_MB = 1.0
PER_FRAMES = 10_000
SETTLED = 0.1  # of the frames: until then caches and pools fill


def resident_mb() -> float:
    """The memory that this process has resident, in MB (Linux)."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) / 1000 for line in file if line.startswith("VmRSS"))


def slope(memory: list[tuple[int, float]], frames: int) -> float:
    """MB per ``PER_FRAMES`` frames by least squares, once settled."""
    count, mb = np.array([(n, size) for n, size in memory if n >= SETTLED * frames]).T
    return float(np.polyfit(count, mb, 1)[0] * PER_FRAMES)


def main() -> int:
    """Run it. Collective."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--in-flight", type=int, default=3)
    parser.add_argument("--same-host", choices=("auto", "messages"), default="auto")
    arguments = parser.parse_args()
    comm, frames = MPI.COMM_WORLD, arguments.frames
    root = comm.rank == 0
    torch.set_num_threads(1)
    model = mpiconv.load_model("digits")
    plan = mpiconv.make_plan(model, (1, 1, 32, 32), ranks=comm.size)
    settings = Settings(in_flight=arguments.in_flight, same_host=arguments.same_host)
    pictures = torch.randn(PICTURES, 1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = [model(picture) for picture in pictures]

    def camera() -> Iterator[torch.Tensor]:
        buffer = torch.empty_like(pictures[0])
        for number in range(frames):
            yield buffer.copy_(pictures[number % PICTURES])

    wrong, memory, begin = 0, [(0, resident_mb())], monotonic()
    with mpiconv.distribute(model if root else None, plan if root else None, comm, settings) as net:
        for number, output in enumerate(net.stream(camera() if root else None)):
            if root and not torch.allclose(output, wanted[number % PICTURES], atol=1e-4):
                wrong += 1
            if (number + 1) % max(1, frames // SAMPLES) == 0:
                memory.append((number + 1, resident_mb()))
                if root:
                    print(f"{number + 1} frames, {wrong} wrong, {memory[-1][1]:.1f} MB", file=sys.stderr, flush=True)
        record = net.collect()
    with Team.of(comm) as team:
        grown = allgather_json(team, [slope(memory, frames), memory[-1][1] - memory[1][1]])
    if record is not None:
        ranks = ", ".join(
            f"rank {r} {by:+.3f} MB per {PER_FRAMES} ({all_:+.1f} in all)" for r, (by, all_) in enumerate(grown)
        )
        kept = f"{len(record.latency_s)} repeats kept, every {record.kept_every}"
        print(f"{frames} frames in {monotonic() - begin:.0f} s, {wrong} wrong; memory: {ranks}; {kept}")
    parts = frames / PER_FRAMES
    return int(bool(wrong) or max(by * parts for by, _ in grown) > MOST_MB * max(parts, 1))


if __name__ == "__main__":
    sys.exit(main())
