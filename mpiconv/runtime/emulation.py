"""Slower devices emulated on this one, from outside: whatever computes is wrapped into something that takes longer."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter, sleep, thread_time
from typing import Any

from mpiconv.errors import UsageError


@dataclass(frozen=True)
class Slow:
    """From frame ``frame`` on, the run's first being 0, rank ``rank`` computes ``factor`` times slower than before."""

    rank: int
    frame: int
    factor: float

    def __str__(self) -> str:
        return f"slow:rank={self.rank},frame={self.frame},factor={self.factor:.9f}"


INJECTED = {"slow": (Slow, ("rank", "frame", "factor"))}
"""What can be made to happen in the middle of a run: by its kind what it is, and the numbers that say it in full."""


def injected(text: str) -> Slow:
    """What ``KIND:NAME=NUMBER,...`` asks for, as in ``slow:rank=1,frame=60,factor=2``.

    Raises UsageError, naming what would be right, for another kind, and for numbers that are missing or out of range.
    """
    kind, _, rest = text.partition(":")
    if kind not in INJECTED:
        known = ", ".join(INJECTED)
        raise UsageError(f"--inject {text}: {kind!r} is not known, but {known} is, as in slow:rank=1,frame=60,factor=2")
    made, names = INJECTED[kind]
    numbers = [re.fullmatch(r"([a-z]+)=(\d{1,9}(?:\.\d{1,9})?)", part, re.ASCII) for part in rest.split(",")]
    found = {number[1]: float(number[2]) for number in numbers if number}
    whole = all(found.get(name, 0.0).is_integer() for name in ("rank", "frame"))
    if len(numbers) != len(names) or set(found) != set(names) or not whole:
        wanted = ",".join(f"{name}=NUMBER" for name in names)
        raise UsageError(f"--inject {text}: wanted is {kind}:{wanted}, where rank and frame are whole numbers")
    if not found["factor"]:
        raise UsageError(f"--inject {text}: a factor above 0 is wanted")
    return made(int(found["rank"]), int(found["frame"]), found["factor"])


class Paced:
    """A computation on a slower device: it takes ``pace`` times as long, the rest of it asleep.

    How long it takes on this core undisturbed is the least CPU time of further runs on the same input during the first
    calls: later ones find the caches cold from sleeping, which a slower device would not, and other emulated devices
    that compute at the same time only add to it. ``overrun`` counts the calls
    after those that took longer than ``pace`` times that anyway, because others wanted the core too.

    ``slow`` is what the device is slowed by in the middle of the run, whose frame is ``frame``; all that has begun by
    then counts, as a product. A device is made no faster than its core.
    """

    TRIED, AGAIN = 3, 2

    def __init__(self, compute: Callable[..., Any], pace: float, slow: Sequence[Slow] = ()) -> None:
        self.compute, self.pace, self.slow = compute, pace, slow
        self.frame = 0
        self.tried: list[float] = []
        self.calls = self.overrun = 0

    def __call__(self, *inputs: Any) -> Any:
        """Compute, then sleep."""
        begin = perf_counter()
        output = self.compute(*inputs)
        if len(self.tried) < self.TRIED * self.AGAIN:
            for _ in range(self.AGAIN):
                busy = thread_time()
                output = self.compute(*inputs)
                self.tried.append(thread_time() - busy)
        else:
            self.calls += 1
        pace = self.pace * math.prod(each.factor for each in self.slow if each.frame <= self.frame)
        rest = begin + pace * min(self.tried) - perf_counter()
        if rest > 0:
            sleep(rest)
        elif self.calls and pace > 1:
            self.overrun += 1
        return output
