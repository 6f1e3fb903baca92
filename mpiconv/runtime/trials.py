"""Which of some plans is the fastest here: each is adopted in turn and run for a few pictures, whose answers count."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from mpiconv.errors import PlanError
from mpiconv.partition.holdings import bytes_moved, holdings
from mpiconv.partition.plan import at_work, same_work
from mpiconv.partition.schemes import ROOT
from mpiconv.partition.turns import AnyPlan
from mpiconv.partition.wire import WIRES
from mpiconv.planner.candidates import Candidate
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.objective import LATENCY, Objective
from mpiconv.runtime.session import Session
from mpiconv.words import percent

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

FORMATS = 2
"""The number of plans that are tried of each smaller number format of messages."""

Errs = Callable[[float], float | None]
"""The largest relative error of the adopted plan on pictures that the first one answered; None where the run is ended.

It need not look at the rest once it is more than the number that it is given.
"""

Run = Callable[[int], Sequence[float]]
"""Runs a number of pictures by the adopted plan and returns the s that each took; fewer where the run is ended."""


@dataclass(frozen=True)
class Trial:
    """A plan, what a batch was estimated to take by it, and the s that batches took; ``why`` it was not tried.

    ``error``: by how much its outputs were found to differ from the exact ones, where its format is a smaller one.
    ``measure`` makes one number of the s that can be compared with the estimate.
    """

    name: str
    plan: AnyPlan
    estimated_s: float
    seconds: tuple[float, ...] = ()
    why: str = ""
    error: float | None = None
    measure: Callable[[Sequence[float]], float] = median

    @property
    def measured_s(self) -> float:
        """What a batch took in s; infinite where it was not tried."""
        return self.measure(self.seconds) if self.seconds else math.inf

    @property
    def frames(self) -> int:
        """Over how many batches."""
        return len(self.seconds)


@dataclass(frozen=True)
class Limit:
    """The relative error that is accepted of a plan, and what finds it on some pictures."""

    most: float
    errs: Errs

    def judged(self, trial: Trial) -> Trial:
        """The trial with the error of its plan, which is adopted, and ``why`` it is refused; None for an ended run."""
        error = self.errs(self.most)
        if error is None or error <= self.most:
            return replace(trial, error=error)
        why = f"{trial.plan.wire}: errs by {percent(error)}, more than {percent(self.most)}"
        return replace(trial, error=error, why=why)


def shortlist(found: Sequence[Candidate]) -> list[Candidate]:
    """The plans to try: rank 0 alone, where the weights are; then the best three and the best on one rank.

    All of these have one number format for messages. Of each other one the best come to them that may be faster.
    """
    usual = next(each.plan.wire for each in found if at_work(each.runs) == [ROOT])
    exact = [each for each in found if each.plan.wire == usual]
    alone = [each for each in exact if len(at_work(each.runs)) == 1]
    own = [each for each in alone if at_work(each.runs) == [ROOT] and not each.plan.threads][:1]
    chosen = [*exact[:SPLITS], *alone[:1]]
    for wire in dict.fromkeys(each.plan.wire for each in found if each.latency_s < exact[0].latency_s):
        chosen += [each for each in found if each.plan.wire == wire != usual][:FORMATS]
    rest = [each for each in found if any(each is one for one in chosen) and not any(each is one for one in own)]
    return [*own, *rest]


def choose(
    net: Session,
    listed: Sequence[Candidate],
    cluster: Cluster,
    run: Run,
    frames: int,
    objective: Objective = LATENCY,
    limit: Limit | None = None,
) -> list[Trial]:
    """Try plans in turn on rank 0, and leave the network with the best as measured; the others are in ``follow``.

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
    objective
        What the best is best in, as measured.
    limit
        How exact plans with other number formats than the first have to be; None where there are none.

    Returns
    -------
    list of Trial
        In the order of the trials. Where the run is ended meanwhile the plan of the last stays; none where that is the
        first and was not timed.
    """
    tried, best, ended = list[Trial](), None, False
    filling = net.settings.in_flight if objective.streams and net.settings.in_flight > 1 else 0
    warm = WARM + filling + (filling > 0)
    each, kept = min(max(TIMED, filling, frames // SHARE - warm), MOST), frames // KEPT
    for number, candidate in enumerate(listed):
        if number and frames - warm - each < kept:
            break
        trial = _trial(candidate, objective, cluster)
        if _needless(trial, tried):
            continue
        if best is not None:
            smaller = trial.plan.wire != listed[0].plan.wire
            trial, ended = _admitted(net, best, trial, cluster, frames, limit if smaller else None)
        seconds, ended = _timed(run, each, best, filling) if not (trial.why or ended) else ([], ended)
        frames -= warm + len(seconds) if seconds else 0
        tried += [replace(trial, seconds=tuple(seconds))] if seconds or trial.why else []
        if ended:
            return tried
        best = fastest(tried)
    if frames - 2 * (warm + each) >= kept:
        tried, ended = _again(net, tried, run, each, filling)
    if not ended and (best := fastest(tried)) is not None and not same_work(best.plan, net.plan):
        net.adopt(best.plan)
    return tried


def _trial(candidate: Candidate, objective: Objective, cluster: Cluster) -> Trial:
    estimated = objective.value(candidate, cluster)
    return Trial(candidate.name, candidate.runs, estimated, measure=objective.measured or median)


def _needless(trial: Trial, tried: Sequence[Trial]) -> bool:
    """Whether a more exact number format that takes no more bytes was found to be exact enough."""
    wire = WIRES[trial.plan.wire]
    fine = [WIRES[each.plan.wire] for each in tried if each.error is not None and not each.why]
    return any(each.item_bytes <= wire.item_bytes and each.tolerance < wire.tolerance for each in fine)


def fastest(tried: Sequence[Trial]) -> Trial | None:
    """The plan that was fastest as measured; the first, that of rank 0 alone, unless another was so by ``MARGIN``."""
    timed = [each for each in tried if each.frames]
    best = min(timed, key=lambda each: each.measured_s, default=None)
    return best if best is None or MARGIN * best.measured_s <= timed[0].measured_s else timed[0]


def _again(net: Session, tried: Sequence[Trial], run: Run, frames: int, filling: int) -> tuple[list[Trial], bool]:
    """The trials, with more pictures of those that are too close to tell apart; and whether the run was ended."""
    found, ended = list(tried), False
    for rival in _rivals(tried):
        if not ended:
            if not same_work(rival.plan, net.plan):
                net.adopt(rival.plan)
            more, ended = _timed(run, frames, None, filling)
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


def _timed(run: Run, frames: int, best: Trial | None, filling: int) -> tuple[list[float], bool]:
    """What some pictures take each, after one that is not counted, and whether the run was ended meanwhile.

    The first alone where that is hopeless. Where several are under way, ``filling`` of them, these do not count either.
    """
    if len(run(WARM)) < WARM:
        return [], True
    seconds = list(run(1))
    if not seconds or (best is not None and seconds[0] > HOPELESS * max(filling, 1) * best.measured_s):
        return seconds, not seconds
    if filling:
        seconds = list(run(filling + frames))[filling:]
        return seconds, len(seconds) < frames
    seconds += run(frames - 1)
    return seconds, len(seconds) < frames


def _admitted(
    net: Session, best: Trial, trial: Trial, cluster: Cluster, frames: int, limit: Limit | None
) -> tuple[Trial, bool]:
    """Adopt the plan of a trial; the trial with its error, and ``why`` it is not tried; whether the run was ended."""
    why = _not_worth(net, best, trial, cluster, frames)
    try:
        if not why:
            net.adopt(trial.plan)
    except PlanError as error:
        why = str(error)
    if why or limit is None:
        return replace(trial, why=why), False
    judged = limit.judged(trial)
    return judged, judged.error is None


def _not_worth(net: Session, best: Trial, trial: Trial, cluster: Cluster, frames: int) -> str:
    """Why a plan's weights are not sent for a trial; empty where they are."""
    slowest = min((link.beta_bytes_per_s for link in cluster.links), default=0.0)
    moved = bytes_moved(holdings(net.plan), holdings(trial.plan), net.settings.readers)
    seconds = moved / slowest if slowest else 0.0
    gain = frames * (best.measured_s - trial.estimated_s)
    if seconds <= max(BEARABLE_S, gain):
        return ""
    return f"sending its weights would take {seconds:.0f} s, more than it could gain"
