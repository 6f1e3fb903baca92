"""Which of some plans is the fastest here: each is adopted in turn and run for a few pictures, whose answers count."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from mpiconv.errors import PlanError
from mpiconv.partition.holdings import bytes_moved, holdings
from mpiconv.partition.plan import Plan, at_work, same_work
from mpiconv.partition.schemes import ROOT
from mpiconv.planner.candidates import Candidate
from mpiconv.planner.cluster import Cluster
from mpiconv.runtime.session import Session

SPLITS = 3
"""The number of plans that are tried, those of the best estimates; the best plan on one rank is tried besides."""

WARM, TIMED, MOST = 1, 3, 20
"""Pictures that a plan runs before it is timed, and how many it is timed on at least and at most."""

SHARE = 10
"""A trial takes this part of the pictures to come: one in SHARE."""

KEPT = 3
"""This part of the pictures, one in KEPT, is left for the plan that stays."""

MARGIN = 1.02
"""A few pictures do not tell a gain that is smaller from noise."""

CLOSE = 1.1
"""The fastest split and the fastest plan on one device are timed once more where they differ by less than this."""

HOPELESS = 3.0
"""A trial ends once its first timed picture took more than HOPELESS times the best plan's median."""

BEARABLE_S = 10.0
"""Weights that take longer to send are sent only for a gain that makes up for it."""

Run = Callable[[int], Sequence[float]]
"""Runs a number of pictures by the adopted plan and returns the s that each took; fewer where the run is ended."""


@dataclass(frozen=True)
class Trial:
    """A plan, what a picture was estimated to take by it, and the s that batches took; ``why`` it was not tried."""

    name: str
    plan: Plan
    estimated_s: float
    seconds: tuple[float, ...] = ()
    why: str = ""

    @property
    def measured_s(self) -> float:
        """The median in s; infinite where it was not tried."""
        return median(self.seconds) if self.seconds else math.inf

    @property
    def frames(self) -> int:
        """Over how many batches."""
        return len(self.seconds)


def shortlist(found: Sequence[Candidate]) -> list[Candidate]:
    """The plans to try: rank 0 alone, where the weights are; then the best three and the best on one rank."""
    alone = [each for each in found if len(at_work(each.plan)) == 1]
    own = [each for each in alone if at_work(each.plan) == [ROOT] and not each.plan.threads][:1]
    chosen = [*found[:SPLITS], *alone[:1]]
    rest = [each for each in found if any(each is one for one in chosen) and not any(each is one for one in own)]
    return [*own, *rest]


def choose(net: Session, listed: Sequence[Candidate], cluster: Cluster, run: Run, frames: int) -> list[Trial]:
    """Try plans in turn on rank 0, and leave the network with the fastest as measured; the others are in ``follow``.

    Parameters
    ----------
    net
        The network, which runs the first plan of the list.
    listed
        The plans, as ``shortlist`` gives them.
    cluster
        What the ranks are, which says how long weights travel.
    run
        Runs pictures by the plan that is adopted.
    frames
        How many pictures there are to come, those of the trials among them.

    Returns
    -------
    list of Trial
        In the order of the trials. Where the run is ended meanwhile the plan of the last stays; none where that is the
        first and was not timed.
    """
    tried: list[Trial] = []
    best: Trial | None = None
    each, kept = min(max(TIMED, frames // SHARE - WARM), MOST), frames // KEPT
    for number, candidate in enumerate(listed):
        if number and frames - WARM - each < kept:
            break
        trial = Trial(candidate.name, candidate.plan, candidate.latency_s)
        if number and best is not None and (why := _kept_from(net, best, trial, cluster, frames)):
            tried.append(replace(trial, why=why))
            continue
        seconds, ended = _timed(run, each, best)
        frames -= WARM + len(seconds)
        if seconds:
            tried.append(replace(trial, seconds=tuple(seconds)))
        if ended:
            return tried
        best = fastest(tried)
    if frames - 2 * (WARM + each) >= kept:
        tried, ended = _again(net, tried, run, each)
        if ended:
            return tried
        best = fastest(tried)
    if best is not None and not same_work(best.plan, net.plan):
        net.adopt(best.plan)
    return tried


def fastest(tried: Sequence[Trial]) -> Trial | None:
    """The plan that was fastest as measured; the first, that of rank 0 alone, unless another was so by ``MARGIN``."""
    timed = [each for each in tried if each.frames]
    best = min(timed, key=lambda each: each.measured_s, default=None)
    return best if best is None or MARGIN * best.measured_s <= timed[0].measured_s else timed[0]


def _again(net: Session, tried: Sequence[Trial], run: Run, frames: int) -> tuple[list[Trial], bool]:
    """The trials, with more pictures of those that are too close to tell apart; and whether the run was ended."""
    found, ended = list(tried), False
    for rival in _rivals(tried):
        if not ended:
            if not same_work(rival.plan, net.plan):
                net.adopt(rival.plan)
            more, ended = _timed(run, frames, None)
            found[tried.index(rival)] = replace(rival, seconds=(*rival.seconds, *more))
    return found, ended


def _rivals(tried: Sequence[Trial]) -> list[Trial]:
    """The fastest split and the fastest plan on one device, where they are close to each other; the faster one last."""
    timed = sorted((each for each in tried if each.frames), key=lambda each: -each.measured_s)
    splits = [each for each in timed if len(at_work(each.plan)) > 1]
    alone = [each for each in timed if len(at_work(each.plan)) == 1]
    if not splits or not alone:
        return []
    found = [each for each in timed if each in (splits[-1], alone[-1])]
    return found if found[0].measured_s < CLOSE * found[1].measured_s else []


def _timed(run: Run, frames: int, best: Trial | None) -> tuple[list[float], bool]:
    """What some pictures take each, after one that is not counted, and whether the run was ended meanwhile.

    The first alone where that is hopeless.
    """
    if len(run(WARM)) < WARM:
        return [], True
    seconds = list(run(1))
    if not seconds or (best is not None and seconds[0] > HOPELESS * best.measured_s):
        return seconds, not seconds
    seconds += run(frames - 1)
    return seconds, len(seconds) < frames


def _kept_from(net: Session, best: Trial, trial: Trial, cluster: Cluster, frames: int) -> str:
    """Adopt the plan of a trial; or why it is not tried."""
    why = _not_worth(net, best, trial, cluster, frames)
    try:
        if not why:
            net.adopt(trial.plan)
    except PlanError as error:
        return str(error)
    return why


def _not_worth(net: Session, best: Trial, trial: Trial, cluster: Cluster, frames: int) -> str:
    """Why a plan's weights are not sent for a trial; empty where they are."""
    slowest = min((link.beta_bytes_per_s for link in cluster.links), default=0.0)
    moved = bytes_moved(holdings(net.plan), holdings(trial.plan), net.settings.readers)
    seconds = moved / slowest if slowest else 0.0
    gain = frames * (best.measured_s - trial.estimated_s)
    if seconds <= max(BEARABLE_S, gain):
        return ""
    return f"sending its weights would take {seconds:.0f} s, more than it could gain"
