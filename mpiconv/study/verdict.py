"""The sentence that a report opens with: what is fastest, against one device alone, and where its time goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mpiconv.measure.record import typical
from mpiconv.study.runs import Run, baseline
from mpiconv.study.style import shortened
from mpiconv.words import counted, seconds

NO_SINGLE = "no single-device run among the files: run mpiconv run --scheme single ... to see what the split gains"
"""In place of what a split gains, where there is nothing to compare it with."""

SAME = 0.01
"""Medians that differ by less than this part are called the same, however little the repeats spread."""

NAMED = 2
"""So many runs that are as fast as the fastest are named."""


def verdicts(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A sentence for every group of runs that may be compared; one that says for which input where models repeat."""
    models = [group[0].network.model for group in groups]
    found = []
    for group, model in zip(groups, models, strict=True):
        about = model if models.count(model) == 1 else str(group[0].network)
        found.append(f"{about}: {verdict(group)}.")
    return found


def verdict(group: Sequence[Run]) -> str:
    """What is fastest of runs that may be compared, by how much, and where its time goes; without a full stop."""
    best, alone = min(group, key=lambda run: run.latency_s), baseline(group)
    if len(group) == 1:
        found = [f"{label(best, group)} takes {_a_picture(best)}", where(best)]
    elif best is alone:
        found = [f"{label(best, group)} is fastest, {_a_picture(best)}", where(best), _next(best, group)]
    else:
        found = [_split_wins(best, alone, group), where(best)]
    return "; ".join([*found, *([] if alone else [NO_SINGLE])])


def label(run: Run, group: Sequence[Run], timed: bool = False) -> str:
    """What to call a run: how it is split over how many devices, or which device does all; with its name if need be."""
    what, *inside = _plainly(run)
    if run.attribute("name", ""):
        names = shortened([each.name for each in group])
        inside.append(next(name for name, each in zip(names, group, strict=True) if each is run))
    elif [_plainly(each) for each in group].count(_plainly(run)) > 1:
        inside.append(Path(run.path).name)
    inside += [seconds(run.latency_s)] * timed
    return f"{what} ({', '.join(inside)})" if inside else what


def alike(one: Run, other: Run) -> bool:
    """Whether two latencies are within noise: the middle halves of the repeats overlap, or the medians are the same."""
    (low, high), (other_low, other_high) = one.middle_half_s, other.middle_half_s
    near = abs(one.latency_s / other.latency_s - 1) < SAME
    return near or (low <= other_high and other_low <= high)


def parts(run: Run) -> tuple[float, float]:
    """Which part of the latency some rank computes a unit before the head, and which part the root computes the head.

    In the rest nobody computes: the ranks exchange. By their spans on the root's clock, in the repeats nearest the
    median latency: who waits for another's computing does not count as exchanging.
    """
    kept = typical(run.array("latency"))
    latency = run.array("latency")[kept]
    first = run.array("exchange_start")[kept, 0, 0]
    starts = run.array("compute_start")[kept]
    ends = starts + run.array("compute_time")[kept]
    begin, end = first[:, None, None], (first + latency)[:, None, None]
    starts, ends = np.clip(starts, begin, end), np.clip(ends, begin, end)
    head = ends[:, 0, -1] - starts[:, 0, -1]
    until = starts[:, :1, -1:]
    computing = _covered(np.minimum(starts[..., :-1], until), np.minimum(ends[..., :-1], until))
    return float((computing / latency).mean()), float((head / latency).mean())


def where(run: Run) -> str:
    """Where the time of a run goes, in words."""
    computing, head = (round(100 * part) for part in parts(run))
    of_all = computing, max(0, 100 - computing - head), head
    names = "computing", "exchanging" if run.ranks > 1 else "the rest", "the head"
    (first, part), *others = [(name, part) for name, part in zip(names, of_all, strict=True) if part]
    return ", ".join([f"{first} takes {part} % of it", *(f"{name} {part} %" for name, part in others)])


def _covered(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """How much of the time is within any of some spans (repeat, rank, unit), for every repeat."""
    count = len(starts)
    starts, ends = starts.reshape(count, -1), ends.reshape(count, -1)
    order = np.argsort(starts, axis=1)
    starts, ends = np.take_along_axis(starts, order, 1), np.take_along_axis(ends, order, 1)
    reached = np.maximum.accumulate(ends, axis=1)
    before = np.concatenate([starts[:, :1], reached[:, :-1]], axis=1)
    return np.asarray(np.maximum(ends - np.maximum(starts, before), 0).sum(axis=1))


def _next(best: Run, group: Sequence[Run]) -> str:
    """What the fastest split takes where a device alone is the fastest; or the next device where there is no split."""
    others = [run for run in group if run is not best]
    splits = [run for run in others if len(run.computing) > 1]
    other = min(splits or others, key=lambda run: run.latency_s)
    so_much = "is as fast" if alike(best, other) else f"takes {_times(other.latency_s / best.latency_s)} as long"
    return f"{'the fastest split' if splits else 'the next'}, {label(other, group, timed=True)}, {so_much}"


def _split_wins(best: Run, alone: Run | None, group: Sequence[Run]) -> str:
    """A split is fastest: what is as fast, and what it gains over one device alone where that is known."""
    same = [run for run in group if run is not best and run is not alone and alike(best, run)]
    same.sort(key=lambda run: run.latency_s)
    found = [f"{label(best, group)} is fastest, {_a_picture(best)}"]
    if alone is not None and alike(best, alone):
        found = [f"{label(best, group)} is as fast as {label(alone, group, timed=True)}, {_a_picture(best)}"]
    elif alone is not None:
        gain = _times(alone.latency_s / best.latency_s)
        found.append(f"{gain} faster than {label(alone, group, timed=True)}")
    if same:
        more = f" and {counted(len(same) - NAMED, 'other')}" if len(same) > NAMED else ""
        found.append(f"as fast as {', '.join(label(run, group, timed=True) for run in same[:NAMED])}{more}")
    return ", ".join(found)


def _plainly(run: Run) -> tuple[str, ...]:
    """How a run is split, or that one device does all and which."""
    count, under_way = len(run.computing), run.attribute("in_flight", "1")
    more = "" if under_way == "1" else f" with {under_way} under way"
    if count > 1:
        scheme = run.attribute("scheme")
        return (f"{'a mixed split' if scheme == 'mixed' else scheme} on {count} devices{more}",)
    hosts, rank = run.array("hostname").tolist(), run.computing[0]
    host = f"rank {rank} on {hosts[rank]}" if hosts.count(hosts[rank]) > 1 else str(hosts[rank])
    return f"one device alone{more}", host


def _a_picture(run: Run) -> str:
    return f"{seconds(run.latency_s)} a {'picture' if run.batch == 1 else f'batch of {run.batch}'}"


def _times(ratio: float) -> str:
    return f"{ratio:.1f} x" if ratio >= 1.1 else f"{ratio:.2f} x"
