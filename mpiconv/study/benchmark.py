"""Benchmarks of engines side by side: the file that scripts/bench.py writes, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpiconv.errors import MpiconvError
from mpiconv.measure.hdf5 import opened, write_hdf5
from mpiconv.measure.results import git_commit
from mpiconv.study.style import colour

KIND = "benchmark"
REFERENCE = "ONNX Runtime, 1 thread"
AT_ONCE = "ONNX Runtime, 1 thread, two at once"
COMPUTING, EXCHANGING = ": computing", ": exchanging"
"""Behind a contender's name: of its time the slower rank's computing, unit by unit; the root's exchanges."""

BAR_INCHES = 0.24
HEADER = ("contender", "median ms", "range ms", "ratio")

AIMS = ("network", "what", "ratio", "at most", "")

WORTH_HIDING = 0.3, 0.7
"""Between which parts of a frame the exchanges should hide under another frame's computing."""

TARGETS = (
    ("one rank against ONNX Runtime, one thread each", "mpiconv 1 rank", REFERENCE, {"conv part": 1.05, "whole": 1.25}),
    (
        "two ranks against ONNX Runtime, one thread",
        "mpiconv * 2 ranks",
        REFERENCE,
        {"alexnet, conv": 0.57, "vgg11, conv": 0.54},
    ),
    (
        "two ranks against ONNX Runtime, two threads",
        "mpiconv * 2 ranks",
        "ONNX Runtime, 2 threads",
        {"conv part": 1.08},
    ),
    (
        "two ranks against eager torch, two threads",
        "mpiconv * 2 ranks",
        "torch eager, 2 threads",
        {"vgg11, conv": 1 / 1.3},
    ),
    ("two ranks against DistVAE on two", "mpiconv * 2 ranks", "DistVAE, 2 ranks", {"vgg11, conv": 1 / 1.5}),
    *(
        (
            "two pictures under way against one",
            f"{scheme}, --in-flight 2",
            f"mpiconv {scheme}, 2 ranks",
            {"links": 1 / 1.3},
        )
        for scheme in ("kpm", "wpm")
    ),
)
"""What was aimed at: a ratio, at most, by a part of the network's name."""


@dataclass(frozen=True)
class Benchmark:
    """Times in s of contenders on networks, taken in turns.

    ``times[network][contender]`` are those of the turns in order; ``overhead[network][contender]`` is the median of
    latency less computing less exchanging less 20 us a unit, of mpiconv's own contenders; ``taken[network]`` says when
    and at which commit, for a network may be measured again alone.
    """

    times: Mapping[str, Mapping[str, np.ndarray]]
    overhead: Mapping[str, Mapping[str, float]]
    machine: str
    created: str
    commit: str
    taken: Mapping[str, str]

    @classmethod
    def of(cls, found: Mapping[str, Mapping[str, Any]], machine: str) -> Benchmark:
        """From what scripts/bench.py measured."""
        times = {
            label: {name: np.array(values) for name, values in one["times"].items()} for label, one in found.items()
        }
        overhead = {
            label: {name: float(np.median(values)) for name, values in one["overhead"].items()}
            for label, one in found.items()
        }
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        commit = git_commit()
        taken = dict.fromkeys(found, f"{now} at commit {commit[:9] or 'unknown'}")
        return cls(times, overhead, machine, now, commit, taken)

    def updated(self, newer: Benchmark) -> Benchmark:
        """With the networks of a newer one in place of its own, in this one's order; they are of one machine.

        Raises MpiconvError where they are not.
        """
        if self.machine != newer.machine:
            raise MpiconvError(f"not of one machine, so not to be put together: {self.machine} and {newer.machine}")
        return replace(
            newer,
            times={**self.times, **newer.times},
            overhead={**self.overhead, **newer.overhead},
            taken={**self.taken, **newer.taken},
        )

    def save(self, path: str | Path) -> None:
        """Write an HDF5 file with the dimensions network, contender and sample; what was not measured is NaN."""
        contenders = list(dict.fromkeys(name for one in self.times.values() for name in one))
        most = max(len(values) for one in self.times.values() for values in one.values())
        cube = np.full((len(self.times), len(contenders), most), np.nan)
        spare = np.full(cube.shape[:2], np.nan)
        for i, (label, one) in enumerate(self.times.items()):
            for name, values in one.items():
                cube[i, contenders.index(name), : len(values)] = values
                spare[i, contenders.index(name)] = self.overhead.get(label, {}).get(name, np.nan)

        def fill(file: h5py.File) -> None:
            dims = ("network", "contender", "sample")
            for name, axis_values in zip(dims, (list(self.times), contenders, range(most)), strict=True):
                kind = object if name != "sample" else np.int64
                file.create_dataset(name, data=np.array(list(axis_values), kind)).make_scale(name)
                file[name].attrs.update(units="", long_name=name)
            for name, data, text in (
                (
                    "time",
                    cube,
                    "median time of a turn from picture to answer, or per picture where several are in flight",
                ),
                ("overhead", spare, "median of latency less computing, exchanging and 20 us a unit"),
            ):
                made = file.create_dataset(name, data=data, compression="gzip")
                made.attrs.update(units="s", long_name=text)
                for axis in range(data.ndim):
                    made.dims[axis].attach_scale(file[dims[axis]])
            said = np.array([self.taken[label] for label in self.times], object)
            taken = file.create_dataset("taken", data=said)
            taken.attrs.update(units="", long_name="when and at which commit the network was measured")
            taken.dims[0].attach_scale(file["network"])
            file.attrs.update(kind=KIND, machine=self.machine, created=self.created, git_commit=self.commit)

        write_hdf5(path, fill)

    @classmethod
    def load(cls, path: str | Path) -> Benchmark:
        """Read it back.

        Raises MpiconvError, naming the file, where it is no benchmark.
        """
        with opened(path) as file:
            if file.attrs.get("kind") != KIND:
                raise MpiconvError("is no benchmark of scripts/bench.py")
            labels, names = ([str(v) for v in file[key].asstr()[:]] for key in ("network", "contender"))
            cube, spare, about = (
                np.asarray(file["time"], float),
                np.asarray(file["overhead"], float),
                dict(file.attrs),
            )
            said = [str(v) for v in file["taken"].asstr()[:]] if "taken" in file else []
            if cube.ndim != 3 or cube.shape[:2] != (len(labels), len(names)) or spare.shape != cube.shape[:2]:
                raise MpiconvError("is damaged: its times are not along network, contender and sample")
            if said and len(said) != len(labels):
                raise MpiconvError("is damaged: it does not say of all networks when they were measured")
            if (cube[np.isfinite(cube)] <= 0).any() or not np.isfinite(cube).any(axis=(1, 2)).all():
                raise MpiconvError("is damaged: it has networks without a time, or times of 0 or less")
        times = {
            label: {n: row[np.isfinite(row)] for n, row in zip(names, cube[i], strict=True) if np.isfinite(row).any()}
            for i, label in enumerate(labels)
        }
        overhead = {
            label: {n: float(v) for n, v in zip(names, spare[i], strict=True) if np.isfinite(v)}
            for i, label in enumerate(labels)
        }
        machine, created, commit = (str(about.get(key, "")) for key in ("machine", "created", "git_commit"))
        said = said or [f"{created} at commit {commit[:9] or 'unknown'}"] * len(labels)  # older files are of one run
        return cls(times, overhead, machine, created, commit, dict(zip(labels, said, strict=True)))


def is_benchmark(path: str | Path) -> bool:
    """Whether a file is one of scripts/bench.py."""
    try:
        with opened(path) as file:
            return bool(file.attrs.get("kind") == KIND)
    except MpiconvError:
        return False


def ratio(mine: np.ndarray, theirs: np.ndarray) -> float:
    """The median ratio over the rounds, in each of which both had a turn; of the medians where rounds are missing."""
    if len(mine) == len(theirs):
        return float(np.median(mine / theirs))
    return float(np.median(mine) / np.median(theirs))


def _exchanging(times: Mapping[str, np.ndarray], name: str) -> float | None:
    """The exchanges' part of a contender's time, None where it was not measured."""
    part = times.get(name + EXCHANGING)
    return None if part is None else ratio(part, times[name])


def rows(times: Mapping[str, np.ndarray]) -> list[tuple[str, ...]]:
    """A row per contender: median, range, and its ratio to ONNX Runtime's one thread, else to the first."""
    reference = times[REFERENCE] if REFERENCE in times else next(iter(times.values()))
    found: list[tuple[str, ...]] = []
    for name, values in times.items():
        middle = float(np.median(values))
        low, high = np.percentile(values, (5, 95))
        found.append(
            (name, f"{1e3 * middle:.2f}", f"{1e3 * low:.2f} - {1e3 * high:.2f}", f"{ratio(values, reference):.2f}")
        )
    return found


def targets(result: Benchmark) -> list[tuple[str, str, str, str, str]]:
    """What was aimed at and came out: network, what, ratio, at most, whether it holds."""
    found = []
    for label, times in result.times.items():
        for what, mine, theirs, limits in TARGETS:
            limit = next((value for part, value in limits.items() if part in label), None)
            prefix, _, suffix = mine.partition(" * ")
            names = [n for n in times if n == mine or (suffix and n.startswith(prefix) and n.endswith(suffix))]
            if limit is None or theirs not in times or not names:
                continue
            best = min(names, key=lambda name: np.median(times[name]))
            reached, share = ratio(times[best], times[theirs]), _exchanging(times, theirs)
            verdict, text = "holds" if reached <= limit else "missed", f"{what} ({best.removeprefix('mpiconv ')})"
            if share is not None:
                text += f", where {share:.0%} of one is exchange"
                verdict = verdict if WORTH_HIDING[0] <= share <= WORTH_HIDING[1] else "no aim there"
            found.append((label, text, f"{reached:.3f}", f"{limit:.3f}", verdict))
            if theirs == REFERENCE and suffix:
                found += [(label, *limit) for limit in _limits(times, best)]
        for name, spare in result.overhead.get(label, {}).items():
            if name.startswith("mpiconv"):
                verdict = "holds" if spare <= 2e-4 else "missed"
                what = f"overhead beyond 20 us a unit, ms ({name.removeprefix('mpiconv ')})"
                found.append((label, what, f"{1e3 * spare:.3f}", "0.200", verdict))
    return found


def _limits(times: Mapping[str, np.ndarray], best: str) -> list[tuple[str, str, str, str]]:
    """What the cores gave in the same rounds, whatever the exchanges take."""
    found = []
    if AT_ONCE in times:
        half = ratio(times[AT_ONCE], times[REFERENCE]) / 2
        found.append(("half the time of two ONNX Runtimes at once against one", f"{half:.3f}", "-", "limit"))
    if best + COMPUTING in times:
        alone = ratio(times[best + COMPUTING], times[REFERENCE])
        text = f"of the two ranks' time: computing, unit by unit the slower rank's ({best.removeprefix('mpiconv ')})"
        found.append((text, f"{alone:.3f}", "-", "limit"))
    return found


def contenders(plt: Any, times: Mapping[str, np.ndarray]) -> Any:
    """Every contender's median time, with the range from the 5th to the 95th percentile; mpiconv's are dark.

    What is a part of a contender's time has a narrow bar.
    """
    figure, axes = plt.subplots(figsize=(6.4, 1 + BAR_INCHES * len(times)))
    bars(axes, times)
    return figure


def bars(axes: Any, times: Mapping[str, np.ndarray]) -> None:
    """A bar per contender, with its range."""
    for i, (name, values) in enumerate(times.items()):
        low, middle, high = 1e3 * np.percentile(values, (5, 50, 95))
        part = name.endswith((COMPUTING, EXCHANGING))
        axes.barh(i, middle, 0.35 if part else 0.7, color=colour(0 if name.startswith("mpiconv") else 4))
        axes.plot([low, high], [i, i], color="black", linewidth=1)
        axes.annotate(f" {middle:.1f}", (max(high, middle), i), va="center", fontsize="x-small")
    axes.set_yticks(range(len(times)), list(times), fontsize="x-small")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("ms")
