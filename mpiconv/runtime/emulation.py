"""Slower devices emulated on this one, from outside: whatever computes is wrapped into something that takes longer."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter, sleep, thread_time
from typing import Any


class Paced:
    """A computation on a slower device: it takes ``pace`` times as long, the rest of it asleep.

    How long it takes on this core undisturbed is the median CPU time of second runs on the same input during the first
    calls: later ones find the caches cold from sleeping, which a slower device would not. ``overrun`` counts the calls
    after those that took longer than ``pace`` times that anyway, because others wanted the core too.
    """

    TRIED = 3

    def __init__(self, compute: Callable[..., Any], pace: float) -> None:
        self.compute, self.pace = compute, pace
        self.tried: list[float] = []
        self.calls = self.overrun = 0

    def __call__(self, *inputs: Any) -> Any:
        """Compute, then sleep."""
        begin = perf_counter()
        output = self.compute(*inputs)
        if len(self.tried) < self.TRIED:
            busy = thread_time()
            output = self.compute(*inputs)
            self.tried.append(thread_time() - busy)
        else:
            self.calls += 1
        rest = begin + self.pace * median(self.tried) - perf_counter()
        if rest > 0:
            sleep(rest)
        elif len(self.tried) == self.TRIED and self.calls:
            self.overrun += 1
        return output
