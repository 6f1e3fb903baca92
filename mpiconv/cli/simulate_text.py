"""What ``mpiconv simulate`` says: a table of what is fastest, and where a split or a scheme begins to pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpiconv.planner.forecast import AUTO, AUTO_DEVICES, DIMENSIONS, MULTICAST, QUANTITIES, SINGLE, Question
from mpiconv.study.forecast_figures import fastest
from mpiconv.study.forecast_file import sizes_of
from mpiconv.text import align
from mpiconv.words import counted, seconds


def told(question: Question, latency_s: np.ndarray, device: str) -> list[str]:
    """All lines, for every size of pictures and medium."""
    lines = [
        f"Estimated, not measured: {question.graphs[0].model}, {device}, batch {question.batch}, "
        f"links of {1e3 * question.alpha_s:g} ms."
    ]
    if AUTO in question.schemes and max(question.device_counts) > AUTO_DEVICES:
        lines.append(f"auto is searched over {AUTO_DEVICES} devices at most; of more it leaves the others idle.")
    for size, times in zip(sizes_of(question), latency_s, strict=True):
        for m, medium in enumerate(question.media):
            note = " (simulated only)" if medium.endswith(MULTICAST) else ""
            lines += ["", f"{size}, {medium}{note}: fastest, and how many times faster than one device"]
            lines += table(question, times[:, :, m])
            lines += sentences(question, times[:, :, m])
    return lines


def table(question: Question, times: np.ndarray) -> list[str]:
    """A row per number of devices, a column per rate; ``times`` is (device_count, rate, scheme)."""
    best = fastest(times)
    rows = [["devices", *(f"{rate / 1e6:g} MB/s" for rate in question.rates_bytes_per_s)]]
    for j, count in enumerate(question.device_counts):
        cells = []
        for k, number in enumerate(best[j]):
            name, taken = question.all_schemes[number], times[j, k, number]
            gain = "" if name == SINGLE else f" ({times[j, k, 0] / taken:.1f} x)"
            cells.append(f"{'one device' if name == SINGLE else name} {seconds(float(taken))}{gain}")
        rows.append([str(count), *cells])
    return align(rows)


def sentences(question: Question, times: np.ndarray) -> list[str]:
    """Where nothing beats one device, and where KPM beats WPM."""
    found = [pays(question.rates_bytes_per_s, times)]
    names = question.all_schemes
    if "kpm" in names and "wpm" in names:
        kpm, wpm = (times[:, :, names.index(name)] for name in ("kpm", "wpm"))
        wins = kpm < wpm * (1 - 1e-9)
        where = [
            f"at {rate / 1e6:g} MB/s on {_listed(question.device_counts, wins[:, k])}"
            + (" (one device is faster)" if (kpm >= times[:, :, 0])[wins[:, k], k].all() else "")
            for k, rate in enumerate(question.rates_bytes_per_s)
            if wins[:, k].any()
        ]
        found.append(f"KPM beats WPM {'; '.join(where)}." if where else "KPM beats WPM nowhere here.")
    return found


def pays(rates_bytes_per_s: Sequence[float], times: np.ndarray) -> str:
    """From which of the rates on some split is faster than one device, in a sentence."""
    pay = [bool((times[:, k].T[1:] < times[:, k, 0] * (1 - 1e-9)).any()) for k in range(len(rates_bytes_per_s))]
    if not any(pay):
        return "Nothing beats one device at any of these rates."
    if all(pay):
        return "Some split beats one device at every one of these rates."
    never = [f"{rate / 1e6:g}" for rate, each in zip(rates_bytes_per_s, pay, strict=True) if not each]
    first = next(rate for rate, each in zip(rates_bytes_per_s, pay, strict=True) if each)
    if pay == sorted(pay):
        return f"Below {first / 1e6:g} MB/s nothing beats one device (of the rates here: {', '.join(never)})."
    return f"Nothing beats one device at {', '.join(never)} MB/s."


def _listed(counts: Sequence[int], chosen: np.ndarray) -> str:
    """The chosen numbers of devices: ``2 to 8 devices`` where they follow each other in the list."""
    places = np.flatnonzero(chosen)
    values = [counts[place] for place in places.tolist()]
    if len(values) > 2 and places[-1] - places[0] == len(places) - 1:
        return f"{values[0]} to {values[-1]} devices"
    if len(values) == 1:
        return counted(values[0], "device")
    return f"{', '.join(map(str, values[:-1]))} and {values[-1]} devices"


def as_dict(question: Question, found: Mapping[str, np.ndarray], device: str) -> dict[str, Any]:
    """What ``--json`` prints: one entry for every cell; null where ``auto`` finds no plan that fits."""
    axes = (
        sizes_of(question),
        question.device_counts,
        question.rates_bytes_per_s,
        question.media,
        question.all_schemes,
    )
    cells = [
        {
            **{name: axis[place] for name, axis, place in zip(DIMENSIONS, axes, index, strict=True)},
            **{name: float(found[name][index]) for name in QUANTITIES},
        }
        for index in np.ndindex(*question.shape)
    ]
    return {
        "estimated": True,
        "model": question.graphs[0].model,
        "device": device,
        "batch": question.batch,
        "link_alpha_s": question.alpha_s,
        "units": {"rate": "B/s", **{name: units for name, (units, _) in QUANTITIES.items()}},
        "cells": cells,
    }
