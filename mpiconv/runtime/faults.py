"""Faults to order: ranks that die, stop, lose their link or compute wrongly in the middle of a run, and a full disk."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from mpiconv import files
from mpiconv.errors import UsageError

LINK = "eth0"
"""The only link of a device of a lab (scripts/testbed.py)."""


@dataclass(frozen=True)
class Slow:
    """From frame ``frame`` on, the run's first being 0, rank ``rank`` computes ``factor`` times slower than before."""

    rank: int
    frame: int
    factor: float
    kind: str = "slow"

    def __str__(self) -> str:
        return f"slow:rank={self.rank},frame={self.frame},factor={self.factor:.9f}"


@dataclass(frozen=True)
class Fault:
    """What happens to rank ``rank`` when frame ``frame`` begins there.

    ``kill``: it dies at once; ``stop``: it stops as by Ctrl-Z; ``drop``: the link of its device goes down, on a lab;
    ``corrupt``: what it computes has a wrong number from then on; ``full-disk``: its disk is full from then on.
    """

    rank: int
    frame: int
    kind: str

    def __str__(self) -> str:
        return f"{self.kind}:rank={self.rank},frame={self.frame}"


KINDS = {"slow": ("rank", "frame", "factor")} | dict.fromkeys(
    ("kill", "stop", "drop", "corrupt", "full-disk"), ("rank", "frame")
)
"""What can be made to happen in the middle of a run, and the numbers that say it in full."""


def injected(text: str) -> Slow | Fault:
    """What ``KIND:NAME=NUMBER,...`` asks for, as in ``slow:rank=1,frame=60,factor=2`` or ``kill:rank=2,frame=40``.

    Raises UsageError, naming what would be right, for another kind, and for numbers that are missing or out of range.
    """
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise UsageError(f"--inject {text}: {kind!r} is not known, but {known}, as in slow:rank=1,frame=60,factor=2")
    numbers = [re.fullmatch(r"([a-z]+)=(\d{1,9}(?:\.\d{1,9})?)", part, re.ASCII) for part in rest.split(",")]
    found = {number[1]: float(number[2]) for number in numbers if number}
    whole = all(found.get(name, 0.0).is_integer() for name in ("rank", "frame"))
    names = KINDS[kind]
    if len(numbers) != len(names) or set(found) != set(names) or not whole:
        wanted = ",".join(f"{name}=NUMBER" for name in names)
        raise UsageError(f"--inject {text}: wanted is {kind}:{wanted}, where rank and frame are whole numbers")
    if kind != "slow":
        return Fault(int(found["rank"]), int(found["frame"]), kind)
    if not found["factor"]:
        raise UsageError(f"--inject {text}: a factor above 0 is wanted")
    return Slow(int(found["rank"]), int(found["frame"]), found["factor"])


def happen(faults: Sequence[Slow | Fault], frame: int) -> None:
    """Do what is to happen on this rank as a frame begins."""
    for fault in faults:
        if fault.frame == frame and fault.kind in ("kill", "stop"):
            os.kill(os.getpid(), signal.SIGKILL if fault.kind == "kill" else signal.SIGSTOP)
        elif fault.frame == frame and fault.kind == "drop":
            subprocess.run(["ip", "link", "set", LINK, "down"], check=False)
        elif fault.frame == frame and fault.kind == "full-disk":
            files.disk.full = True
