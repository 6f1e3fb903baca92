"""What a run's result file holds, and whether one that was read does: names, dimensions, kinds, sane values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from mpiconv.errors import MpiconvError

RANK, UNIT, RANK_UNIT, TIMES = ("rank",), ("unit",), ("rank", "unit"), ("repeat", "rank", "unit")

DIMENSIONS: Mapping[str, tuple[str, ...]] = {
    "latency": ("repeat",),
    **dict.fromkeys(("compute_time", "exchange_time", "exchange_start", "compute_start"), TIMES),
    **dict.fromkeys(
        ("bytes_sent", "bytes_received", "messages_sent", "multicast_bytes", "flops"),
        RANK_UNIT,
    ),
    **dict.fromkeys(("predicted_compute_time", "predicted_exchange_time"), RANK_UNIT),
    **dict.fromkeys(
        ("weight_bytes", "peak_rss", "threads", "pace", "pace_overrun", "compute_energy", "transfer_energy"),
        RANK,
    ),
    **dict.fromkeys(("measured_energy", "clock_offset", "clock_drift", "clock_error"), RANK),
}
"""The variables that are numbers, and their dimensions."""

TEXTS: Mapping[str, tuple[str, ...]] = {
    "unit": UNIT,
    "exchange_pattern": UNIT,
    "hostname": RANK,
    "energy_meter": RANK,
}
"""The variables that are text."""

NUMBERS = (
    "batch", "repeats", "dilation", "link_bytes_per_s", "energy_compute_power_w", "energy_transfer_power_w",
    "check_max_rel_error", "check_equal", "predicted_latency", "gain_single_latency_s",
)  # fmt: skip
LISTS = ("input_shape", "shares")
"""The attributes that are read as a number, and as some numbers."""

MAY_BE_UNKNOWN = ("measured_energy",)
LARGEST = 1e18


def check_run(data: Any) -> None:
    """Raise MpiconvError, without the file's name, unless a Dataset is one that can be worked with."""
    for dimension in ("repeat", "rank", "unit"):
        if not data.sizes.get(dimension):
            raise MpiconvError(f"is damaged: it has no {dimension}")
    for name, dims in DIMENSIONS.items():
        if name in data.variables:
            _check_numbers(name, data[name], dims)
    for name, dims in TEXTS.items():
        if name in data.variables:
            variable = data[name]
            if variable.dims != dims or not all(isinstance(text, str) for text in variable.values.tolist()):
                raise MpiconvError(f"is damaged: {name} is no text along {dims[0]}")
    for name in (*NUMBERS, *LISTS):
        value = np.asarray(data.attrs.get(name, 1))
        if value.dtype.kind not in "biuf" or value.ndim > (name in LISTS) or not _sane(value):
            raise MpiconvError(f"is damaged: its attribute {name} is {data.attrs[name]!r}")
    if (data["latency"].values <= 0).any() or np.asarray(data.attrs.get("batch", 1)) < 1:
        raise MpiconvError("is damaged: it has times or batches of 0 or less")
    plans_tried(data)
    events_of(data)


def plans_tried(data: Any) -> list[dict[str, Any]]:
    """The plans that ``--scheme auto`` tried, in turn; none where it was not asked.

    Each has a ``name``, ``estimated_s``, ``measured_s`` (None where it was not run) and ``why`` that was.

    Raises MpiconvError, without the file's name, where the attribute ``auto_tried`` is something else.
    """
    text = data.attrs.get("auto_tried", "[]")
    try:
        return [
            {
                "name": str(each["name"]),
                "estimated_s": _seconds(each["estimated_s"]),
                "measured_s": None if each["measured_s"] is None else _seconds(each["measured_s"]),
                "why": str(each.get("why", "")),
            }
            for each in json.loads(text)
        ]
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError):
        raise MpiconvError(f"is damaged: its attribute auto_tried is {str(text)[:60]!r}") from None


def _seconds(value: Any) -> float:
    """A time that somebody can have measured; raises ValueError for anything else."""
    if not _sane(np.asarray(float(value))):
        raise ValueError(value)
    return float(value)


def _check_numbers(name: str, variable: Any, dims: tuple[str, ...]) -> None:
    if variable.dims != dims or variable.dtype.kind not in "iuf":
        raise MpiconvError(f"is damaged: {name} is no number along {', '.join(dims)}")
    values = variable.values
    if not _sane(values[np.isfinite(values)] if name in MAY_BE_UNKNOWN else values):
        raise MpiconvError(f"is damaged: {name} has values that nobody measures")


def _sane(values: np.ndarray) -> bool:
    """Whether all are finite, and not so large that sums of them would not be."""
    return bool(np.isfinite(values).all()) and bool((np.abs(values.astype(float)) < LARGEST).all())


def events_of(data: Any) -> list[dict[str, Any]]:
    """What became of the plan in a run: ranks that were lost, plans that were adopted; none where nothing did.

    Each has ``time_s`` since the run began, ``picture`` (how many were done), ``kind``, ``plan``, ``ranks``,
    ``seconds`` that pictures waited for it and ``bytes_moved``, and more by its kind.

    Raises MpiconvError, without the file's name, where the attribute ``events`` is something else.
    """
    text = data.attrs.get("events", "[]")
    try:
        return [
            {
                **each,
                **{name: _seconds(each[name]) for name in ("time_s", "seconds")},
                **{name: int(each[name]) for name in ("picture", "bytes_moved")},
                **{name: str(each[name]) for name in ("kind", "plan")},
                "ranks": [int(rank) for rank in each["ranks"]],
            }
            for each in json.loads(str(text))
        ]
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError):
        raise MpiconvError(f"is damaged: its attribute events is {str(text)[:60]!r}") from None
