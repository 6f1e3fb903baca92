"""The devices and links of this job as a Cluster: speeds, links and the medium, measured in interleaved rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import mpiconv
from mpiconv.job.control import allgather_json
from mpiconv.job.host import describe, machine_id
from mpiconv.planner.cluster import UNIT_KINDS, Cluster, Device, Link
from mpiconv.probe.exchanges import with_exchanges
from mpiconv.probe.links import LinkProbe
from mpiconv.probe.medium import MediumProbe
from mpiconv.probe.speed import SpeedProbe

TOLERANCE = 0.1

if TYPE_CHECKING:
    from mpiconv.job.team import Team


def probe(
    team: Team,
    rounds: int,
    pace: float = 1.0,
    dilation: float = 1.0,
    progress: Callable[[], object] = lambda: None,
    wait: str = "auto",
) -> tuple[Cluster, list[str]]:
    """Measure every rank and every link between two; all ranks return the same. Collective.

    Returns the cluster, and what should be known of how well it was measured: a sentence for every rank that was busy.
    What disturbs a measurement on a shared machine comes and goes, so all is measured in every round, and the rounds
    that were slower are left out.

    Parameters
    ----------
    team
        The ranks to measure.
    rounds
        How often everything is measured.
    pace
        How many times slower than its core this rank computes, time dilation included.
    dilation
        All times are divided by it.
    progress
        Called after every round.
    wait
        How a run is to wait for messages, as ``--wait`` says.
    """
    me = describe()
    about = allgather_json(team, {"host": me["host"], "machine": machine_id(), "pace": pace})
    speed = SpeedProbe(team, UNIT_KINDS, pace, dilation=dilation)
    links = LinkProbe(team, dilation)
    medium = None
    for _ in range(rounds):
        speed.round()
        links.round()
        medium = medium or MediumProbe(team, links, [rank["host"] for rank in about])
        medium.round()
        progress()
    assert medium is not None  # noqa: S101 - there was a round
    device = _device(me, speed, pace)
    fits = [(target, *fit) for target, fit in links.fits().items()]
    everyone = allgather_json(team, [asdict(device), fits, speed.scatter(), links.scatter()])
    notes = [note for rank, (*_, speeds, rates) in enumerate(everyone) for note in _doubts(rank, speeds, rates)]
    kind, ratio, reason = medium.verdict()
    cluster = Cluster(
        devices=tuple(Device(**own) for own, *_ in everyone),
        links=tuple(
            Link(source, target, shorter(alpha), shorter(beta))
            for source, (_, found, *_) in enumerate(everyone)
            for target, alpha, beta in found
        ),
        emulated=dilation > 1 or any(rank["pace"] > 1 for rank in about) or _one_machine(about),
        dilation=dilation,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        creator=f"mpiconv {mpiconv.__version__}",
    )
    kept = None if ratio is None else shorter(ratio)
    return with_exchanges(team, replace(cluster, medium=kind, medium_ratio=kept, medium_reason=reason), wait), notes


def _device(me: dict[str, Any], speed: SpeedProbe, pace: float) -> Device:
    """This rank's device as it was measured."""
    return Device(
        me["host"],
        me["cores"],
        me["threads"],
        me["memory_bytes"],
        {kind: shorter(value) for kind, value in speed.gflop_per_s().items()},
        shorter(speed.weight_bytes_per_s()),
        pace,
    )


def _doubts(rank: int, speeds: float, rates: float) -> list[str]:
    """What to say where the rounds differ by more than the 10 % that the numbers are meant to be good for."""
    found = (("speed", speeds), ("links", rates))
    return [
        f"the {what} of rank {rank} scattered by {100 * value:.0f} % between rounds: "
        "probe again when nothing else runs there"
        for what, value in found
        if value > TOLERANCE
    ]


def shorter(value: float) -> float:
    """A measured value to four digits: it has no more."""
    return float(f"{value:.4g}")


def _one_machine(about: list[dict[str, str]]) -> bool:
    """Whether hosts of different names are one machine, as in a lab of scripts/testbed.py."""
    names: dict[str, set[str]] = {}
    for rank in about:
        names.setdefault(rank["machine"], set()).add(rank["host"])
    return any(len(hosts) > 1 for hosts in names.values())
