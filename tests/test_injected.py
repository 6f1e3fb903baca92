"""Whatever happens to one rank, in any phase: the job ends soon, says why once, and leaves nothing behind.

A few cases run by themselves; ``python -m tests.test_injected [PHASE...]`` runs all, or those of some phases, and
prints a table.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import ROOT, Ended, execute

SECONDS_TO_END = 5
RANKS = 3
LONG = 100000

PHASES = {
    "joining": ("mpiconv.cli.place:join_world", 1, (0, 2)),
    "building": ("mpiconv.cli.setup:build_model", 1, (0,)),
    "tracing": ("mpiconv.graph.trace:trace", 1, (0,)),
    "plan": ("mpiconv.runtime.building:Plan.from_dict", 1, (0, 2)),
    "weights": ("mpiconv.runtime.weights:Weights._moved", 2, (0, 2)),
    "buffers": ("mpiconv.runtime.exchange.shared:share", 1, (0, 2)),
    "exchange": ("mpiconv.runtime.exchange.shared:SharedExchanger.start", 1, (0, 2)),
    "messages": ("mpiconv.runtime.exchange.messages:Messages.start", 4, (0, 2)),
    "compute": ("mpiconv.runtime.compute.local:LocalUnit.__call__", 20, (0, 2)),
    "last-unit": ("mpiconv.runtime.stamps:Stamps.add", 9, (0, 2)),
    "in-flight": ("mpiconv.runtime.exchange.shared:SharedExchanger.finish", 40, (0, 2)),
    "collecting": ("mpiconv.runtime.recording:Recorder.collect", 1, (0, 2)),
    "writing": ("mpiconv.cli.inference:write_results", 1, (0,)),
}
WORDS = {"messages": ["--same-host", "messages"], "in-flight": ["--in-flight", "3"]}
ENDLESS = ("compute", "last-unit", "in-flight")  # so that the series does not end before what is injected does
EXCEPTIONS = ("MpiconvError", "RuntimeError", "Cancelled", "MemoryError", "SystemExit", "KeyboardInterrupt")
SIGNALS = ("SIGTERM", "SIGINT", "SIGKILL")


def run(what: str, phase: str, rank: int, folder: Path) -> tuple[Ended, float]:
    """The job, and how long it went on after what was injected."""
    place, call, _ = PHASES[phase]
    when = folder / "when"
    words = ["run", "--model", "digits", "--scheme", "kpm"]
    words += ["--repeats", str(LONG if phase in ENDLESS else 3), *WORDS.get(phase, [])]
    words += ["--output", str(folder / "r.h5"), "--quiet"]
    command = ["mpirun", "-n", str(RANKS), sys.executable, "-m", "tests.injected", str(rank), what, place, str(call)]
    ended = execute([*command, *words], cwd=ROOT, timeout=90, MPICONV_INJECTED=str(when))
    return ended, time.time() - float(when.read_text())


def wrong(what: str, phase: str, ended: Ended, seconds: float, folder: Path) -> str:
    """What is wrong with how the job ended, empty for nothing."""
    whole = what == "SIGTERM" and phase in (*ENDLESS, "collecting", "writing")
    if whole:  # it is obeyed between two frames, or no longer; before the first repeat there is nothing to write
        if ended.status or not (folder / "r.h5").exists():
            return f"status {ended.status}, results: {(folder / 'r.h5').exists()}"
    elif not ended.status:
        return "status 0"
    elif what != "SIGKILL" and len(ended.errors) != 1:
        return f"{len(ended.errors)} lines of errors"
    elif what in EXCEPTIONS and what not in ended.errors[0] and what not in ("MpiconvError", "KeyboardInterrupt"):
        return f"does not name {what}"
    if "Traceback" in ended.err:
        return "a traceback"
    if seconds > SECONDS_TO_END * (3 if whole else 1):
        return "too long"
    if alive(folder):
        return f"still alive: {alive(folder)}"
    left = [path.name for path in folder.iterdir() if path.name not in ("when", "r.h5")]
    left += [path.name for path in Path("/dev/shm").glob("mpiconv*")]
    return f"left: {left}" if left else ""


def alive(folder: Path) -> list[int]:
    """Processes that were started with this folder's mark."""
    mark, found = f"MPICONV_INJECTED={folder}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in path.read_bytes():
                found.append(int(path.parent.name))
    return found


@pytest.mark.alone
@pytest.mark.parametrize(
    ("what", "phase", "rank"),
    [
        ("Cancelled", "building", 0),
        ("SystemExit", "weights", 2),
        ("KeyboardInterrupt", "in-flight", 0),
        ("MemoryError", "compute", 2),
        ("SIGTERM", "plan", 2),
        ("SIGTERM", "last-unit", 0),
        ("SIGKILL", "buffers", 0),
        ("SIGINT", "messages", 2),
    ],
)
def test_what_happens_to_a_rank(what, phase, rank, tmp_path):
    ended, seconds = run(what, phase, rank, tmp_path)
    assert not wrong(what, phase, ended, seconds, tmp_path), ended.err


def table(phases: list[str]) -> int:
    """Run all cases, print a line for each and how many went wrong."""
    cases = [
        (what, phase, rank)
        for phase, what in itertools.product(phases, (*EXCEPTIONS, *SIGNALS))
        for rank in PHASES[phase][2]
    ]
    failed, longest = 0, 0.0
    for what, phase, rank in cases:
        with tempfile.TemporaryDirectory() as name:
            try:
                ended, seconds = run(what, phase, rank, Path(name))
                reason = wrong(what, phase, ended, seconds, Path(name))
            except Exception as error:  # a hang, say: the rest is to be seen all the same
                ended, seconds, reason = Ended(-1, "", "", 0.0), 99.0, f"{type(error).__name__}: {error}"
        failed += bool(reason)
        longest = max(longest, seconds)
        said = reason or (ended.errors[0].strip() if ended.errors else "")
        mark = "WRONG " if reason else ""
        print(f"{phase:10} rank {rank} {what:17} status {ended.status:3} {seconds:5.1f} s {mark}{said[:90]}")
        if reason and os.environ.get("MPICONV_DEBUG"):
            print(ended.err)
        sys.stdout.flush()
    print(f"{len(cases)} cases, {failed} wrong, {longest:.1f} s the longest")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(table(sys.argv[1:] or list(PHASES)))
