"""What ``mpiconv run`` prints for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mpiconv.cli.turns import pictures_each
from mpiconv.data.pictures import RandomPictures
from mpiconv.measure.record import typical
from mpiconv.text import align, safe_text
from mpiconv.words import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpiconv.cli.setup import Job
    from mpiconv.measure import Record

SHOWN_ANSWERS = 20


def latency(record: Record) -> dict[str, float]:
    """Median, mean, 95th percentile and minimum of the latency in s."""
    times = record.latency_s
    return {
        "median": float(np.median(times)),
        "mean": float(times.mean()),
        "p95": float(np.percentile(times, 95)),
        "min": float(times.min()),
    }


def throughput_fps(record: Record, batch: int, paused_s: float = 0.0) -> float:
    """Pictures per s from the start of the first measured inference to the end of the last, without pauses."""
    begin = record.stamps_s[:, 0, 0, 0]
    count = (len(begin) - 1) * record.kept_every + 1
    return float(batch * count / ((begin + record.latency_s).max() - begin.min() - paused_s))


def summary(
    job: Job,
    record: Record,
    predictions: list[dict[str, Any]],
    check: dict[str, Any] | None,
    paused_s: float = 0.0,
    gain: dict[str, Any] | None = None,
) -> str:
    """The answers, what was run, whether it is exact, how long it took, and what the split gained."""
    plan = job.plan
    lines = _answers(job, predictions)
    threads = sorted({int(n) for n in record.threads})
    lines.append(
        f"{job.info.name}, input {'x'.join(map(str, plan.input_shape))}, {job.scheme} over "
        f"{counted(plan.ranks, 'rank')} on {counted(len(set(record.hostnames)), 'host')}, "
        f"{'-'.join(map(str, threads))} thread{'' if threads == [1] else 's'} a rank, "
        f"gather {plan.gather}, head {plan.head}"
    )
    if check is not None:
        found = (
            "equal bit for bit"
            if check["equal"]
            else f"largest error {check['max_rel_error']:.2g} of the largest output"
        )
        verdict = "passed" if check["passed"] else "FAILED"
        lines.append(
            f"check    {verdict}: {found}, against the unsplit model on {counted(check['batches'], 'batch')}; "
            f"{check['eager_rel_error']:.2g} against eager torch"
            + (
                f"; from double precision {check['exact_rel_error']:.2g}, eager torch {check['eager_rounding']:.2g}"
                if "exact_rel_error" in check
                else ""
            )
        )
    every = f", every {record.kept_every}th of a long series" if record.kept_every > 1 else ""
    times = {name: f"{1e3 * value:.2f}" for name, value in latency(record).items()}
    lines.append(
        f"latency  median {times['median']} ms, mean {times['mean']}, p95 {times['p95']}, min {times['min']} "
        f"({counted(len(record.latency_s), 'repeat')}{every}); "
        f"{throughput_fps(record, plan.batch, paused_s):.1f} pictures/s"
    )
    if turns := pictures_each(plan, record):
        lines.append(turns)
    if job.predicted is not None:
        lines.append(_predicted(job.predicted.latency_s, float(np.median(record.latency_s))))
    if gain is not None:
        lines.append(_gain(gain))
    moved = record.bytes_received.sum() / 1e6
    lines.append(f"moved    {moved:.2f} MB per inference over all ranks")
    return "\n".join(lines)


def restarts(count: int, first: int, answered: int) -> str:
    """How often a supervisor started the run again; ``first`` is the first picture since the last time."""
    since = f"; measured since picture {min(first, answered)} of {answered}" if count else ""
    return f"restarts {count}{since}"


def _answers(job: Job, predictions: list[dict[str, Any]]) -> list[str]:
    """The first answers, a line each; one line for those that mean nothing."""
    meaningless = (
        "pictures are" if isinstance(job.pictures, RandomPictures) else "" if job.info.trained else "weights are"
    )
    if meaningless and predictions:
        return [f"answers  mean nothing, the {meaningless} random: {len(predictions)} not shown (--answers or --json)"]
    lines = [
        safe_text(f"{line['image']}  {line['label']}  {line['score']:.3f}") for line in predictions[:SHOWN_ANSWERS]
    ]
    if len(predictions) > SHOWN_ANSWERS:
        lines.append(f"... and {len(predictions) - SHOWN_ANSWERS} more (--answers or --json give all)")
    return lines


def _predicted(predicted_s: float, measured_s: float) -> str:
    """What was estimated for the plan that ran, beside what was measured."""
    ratio = f"; measured / predicted {measured_s / predicted_s:.2f}" if predicted_s > 0 else ""
    return f"estimate predicted {1e3 * predicted_s:.2f} ms for this plan, one batch at a time{ratio}"


def _gain(gain: dict[str, Any]) -> str:
    """What the split gained over one rank, as a sentence."""
    factor = gain["factor"]
    what = {"latency": "", "pictures/s": " the pictures/s"}[gain["measure"]]
    than = {"latency": " faster than", "pictures/s": " of"}[gain["measure"]] if factor >= 1 else ": slower than"
    alone = f"{1e3 * gain['single_latency_s']:.2f} ms, median of {gain['repeats']}"
    return f"gain     {factor:.2f} x{what}{than} rank 0 alone ({alone})"


def weights_moved(received_bytes: Sequence[int], stored_bytes: Sequence[int]) -> str:
    """How the ranks got their weights."""
    received, stored = sum(received_bytes), sum(stored_bytes)
    disks = f", {stored / 1e6:.2f} MB read from their own disks" if stored else ""
    return f"weights  {received / 1e6:.2f} MB sent to the ranks once{disks}"


def where_time_went(record: Record) -> str:
    """A table of every unit's compute and exchange time on every rank, in ms, that adds up to the latency.

    They are means over the half of the repeats that is nearest to the median latency.
    """
    kept = typical(record.latency_s)
    latency_ms = 1e3 * record.latency_s[kept].mean()
    compute, exchange = (1e3 * times[kept].mean(axis=0) for times in (record.compute_time_s, record.exchange_time_s))
    header = ["unit", *(f"rank {rank}" for rank in range(record.ranks))]
    rows = [
        [unit, *(f"{compute[r, u]:.2f} + {exchange[r, u]:.2f}" for r in range(record.ranks))]
        for u, unit in enumerate(record.units)
    ]
    rows.append(["all", *(f"{compute[r].sum():.2f} + {exchange[r].sum():.2f}" for r in range(record.ranks))])
    others = [""] * (record.ranks - 1)
    rows.append(["between", f"{latency_ms - compute[0].sum() - exchange[0].sum():.2f}", *others])
    rows.append(["latency", f"{latency_ms:.2f}", *others])
    rows.append(["weights", *(f"{weights / 1e6:.1f} MB" for weights in record.weight_bytes)])
    title = [
        "where the time went, ms: compute + exchange (waiting included),",
        f"means of the {counted(len(kept), 'repeat')} nearest the median latency, so that they add up",
    ]
    return "\n".join(["", *title, *align([header, *rows])])


def ranks_at_work(record: Record) -> str:
    """A table of every rank's time over all repeats, computing and exchanging, and the slowest unit by name."""
    compute = record.compute_time_s.sum(axis=(0, 2))
    exchange = record.exchange_time_s.sum(axis=(0, 2))
    split = record.compute_time_s[:, :, :-1].sum(axis=(0, 2))
    mean = split.mean() or 1.0
    header = ["rank", "host", "compute s", "exchange s", "exchange %", "split units vs mean", "peak RSS MB"]
    rows = [
        [
            str(rank),
            record.hostnames[rank],
            f"{compute[rank]:.3f}",
            f"{exchange[rank]:.3f}",
            f"{100 * exchange[rank] / (compute[rank] + exchange[rank]):.1f}",
            f"{100 * (split[rank] / mean - 1):+.1f} %",
            f"{record.peak_rss_bytes[rank] / 1e6:.0f}",
        ]
        for rank in range(record.ranks)
    ]
    slowest = record.compute_time_s.mean(axis=0).max(axis=0)
    unit = int(slowest.argmax())
    lines = align([header, *rows])
    lines.append(
        f"imbalance {100 * (split.max() / mean - 1):.1f} % (max - mean) / mean of computing, the head left out"
    )
    lines.append(f"slowest unit {record.units[unit]}: {1e3 * slowest[unit]:.2f} ms on its slowest rank, mean")
    return "\n".join(["", f"{len(record.latency_s)} repeats, all ranks", *lines])
