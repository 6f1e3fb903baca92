"""How fast this rank computes units of each kind, by the very code that a run computes them with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter, thread_time
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mpiconv.graph.trace import trace
from mpiconv.job.control import allgather_json
from mpiconv.job.host import machine_id
from mpiconv.measure.estimate import scatter, undisturbed
from mpiconv.partition import Box
from mpiconv.runtime.compute.engines import local_unit
from mpiconv.runtime.emulation import Paced
from mpiconv.runtime.heap import settle_heap

if TYPE_CHECKING:
    from mpiconv.job.team import Team
from mpiconv.job.together import meeting

POLL_S = 0.0005
LEAST_CALLS = 3

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "conv1x1": (lambda: nn.Conv2d(256, 256, 1), (256, 28, 28)),
    "conv3x3": (lambda: nn.Conv2d(64, 128, 3, padding=1), (64, 56, 56)),
    "conv5x5": (lambda: nn.Conv2d(64, 128, 5, padding=2), (64, 27, 27)),
    "conv7x7": (lambda: nn.Conv2d(3, 64, 7, 2, 3), (3, 224, 224)),
    "conv11x11": (lambda: nn.Conv2d(3, 96, 11, 4), (3, 227, 227)),
    "depthwise3x3": (lambda: nn.Conv2d(128, 128, 3, padding=1, groups=128), (128, 56, 56)),
    "linear": (lambda: nn.Linear(4096, 4096), (4096, 1, 1)),
}
"""A layer of every kind as networks have them, and the (C, H, W) of its input; what is measured is a unit of it."""


@dataclass
class Work:
    """A unit of one kind, ready to be computed, and the times in s that it took, the least of every round."""

    compute: Callable[..., Any]
    inputs: torch.Tensor
    flops: int
    weight_bytes: int
    seconds: list[float] = field(default_factory=list)


def make_work(kind: str, pace: float = 1.0) -> Work:
    """A unit of a kind as a run has it: a convolution and its ReLU on a box, or a linear layer."""
    make, shape = CASES[kind]
    layer = make()
    linear = isinstance(layer, nn.Linear)
    model = nn.Sequential(nn.Flatten(), layer) if linear else nn.Sequential(layer, nn.ReLU())
    unit, state = trace(model, shape).grouped(head="split").body[0], model.state_dict()
    weights = [{param.role: state[param.key] for param in part.params} for part in unit.layers]
    compute = local_unit(unit, Box.whole(unit.out_shape), weights, 1, "auto")
    slowed = Paced(compute, pace) if pace > 1 else compute
    images = torch.randn(1, *shape).contiguous(memory_format=torch.channels_last)
    return Work(slowed, images, unit.flops, sum(4 * param.size for param in unit.params))


class SpeedProbe:
    """Measures this rank's speed round by round; no rank of the same machine computes meanwhile.

    With one thread its CPU time counts, times the pace: a core that others take away for a while is not a slower one.
    Making one, and every ``round``, is collective. ``budget_s`` is about how long each kind is computed in a round.
    """

    def __init__(
        self, team: Team, kinds: Sequence[str], pace: float = 1.0, budget_s: float = 0.03, dilation: float = 1
    ) -> None:
        self.team, self.budget_s, self.dilation = team, budget_s * pace, dilation
        machines = allgather_json(team, machine_id())
        self.turn = machines[: team.rank].count(machines[team.rank])
        self.turns = max(machines.count(machine) for machine in machines)
        self.works = {kind: make_work(kind, pace) for kind in kinds}
        self.clock, self.factor = (thread_time, pace) if torch.get_num_threads() == 1 else (perf_counter, 1.0)
        settle_heap()

    def round(self) -> None:
        """Measure every kind once. Collective."""
        for turn in range(self.turns):
            wait_quietly(self.team)
            if turn == self.turn:
                with torch.inference_mode():
                    for work in self.works.values():
                        work.seconds.append(self._measure(work))
        wait_quietly(self.team)

    def _measure(self, work: Work) -> float:
        """The least time in s of some calls in a row: what else the machine does only adds to it."""
        work.compute(work.inputs)
        times: list[float] = []
        begin = perf_counter()
        while len(times) < LEAST_CALLS or perf_counter() - begin < self.budget_s:
            start = self.clock()
            work.compute(work.inputs)
            times.append(self.factor * (self.clock() - start))
        return min(times)

    def gflop_per_s(self) -> dict[str, float]:
        """The speed of every kind in 1e9 FLOP/s, of the lab where time is dilated."""
        return {kind: work.flops / self._seconds(work) / 1e9 for kind, work in self.works.items()}

    def weight_bytes_per_s(self) -> float:
        """B of weights that the linear layer gets through per s."""
        work = self.works["linear"]
        return work.weight_bytes / self._seconds(work)

    def scatter(self) -> float:
        """By how much of itself the time of a kind scatters, of the kind where it is most."""
        return max(scatter(work.seconds) for work in self.works.values())

    def _seconds(self, work: Work) -> float:
        return undisturbed(work.seconds) / self.dilation


def wait_quietly(team: Team) -> None:
    """A barrier that sleeps where MPI's own spins: it leaves the core to those who are measured. Collective."""
    requests = meeting(team)
    while not all(request.Test() for request in requests):
        team.watch.check()
        time.sleep(POLL_S)
