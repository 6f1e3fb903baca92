"""Slower devices emulated on this one, from outside: whatever computes is wrapped into something that takes longer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from time import perf_counter, sleep, thread_time
from typing import Any

from mpiconv.runtime.faults import Slow


class Paced:
    """A computation on a slower device: it takes ``pace`` times as long, the rest of it asleep.

    How long it takes on this core undisturbed is the least CPU time of further runs on the same input during the first
    calls: later ones find the caches cold from sleeping, which a slower device would not, and other emulated devices
    that compute at the same time only add to it. ``overrun`` counts the calls
    after those that took longer than ``pace`` times that anyway, because others wanted the core too.

    ``slow`` is what the device is slowed by in the middle of the run, whose frame is ``frame``; all that has begun by
    then counts, as a product. A device is made no faster than its core. From frame ``corrupt`` on, if that is not
    None, one number of what it computes is wrong.
    """

    TRIED, AGAIN = 3, 2

    def __init__(
        self, compute: Callable[..., Any], pace: float, slow: Sequence[Slow] = (), corrupt: int | None = None
    ) -> None:
        self.compute, self.pace, self.slow, self.corrupt = compute, pace, slow, corrupt
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
        if self.corrupt is not None and self.frame >= self.corrupt:
            output = output.clone()
            output[(0,) * output.dim()] += 1.0
        return output
