"""By how much the outputs of a plan with a smaller number format differ from the exact ones, as measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from mpiconv.graph.outputs import Difference
from mpiconv.runtime.net import DistributedNet

KEPT = 8
"""The most batches that plans are compared on."""


class Exactness:
    """Keeps the first batches with their answers, which exact plans give, and has other plans answer them again.

    On rank 0; the others are in ``follow``. Batches that are one and the same tensor are compared once.
    """

    def __init__(self, net: DistributedNet, ended: Callable[[], bool]) -> None:
        """``ended`` says whether the run was ended meanwhile."""
        self._net, self._ended = net, ended
        self._batches: list[torch.Tensor] = []
        self._outputs: list[Any] = []
        self._open = True

    def asking(self, batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The same batches, of which the first are kept."""
        for images in batches:
            if self._open and len(self._batches) < KEPT:
                self._batches.append(images)
            yield images

    def answered(self, output: Any) -> None:
        """Keep an answer, in the order of the batches."""
        if self._open and len(self._outputs) < len(self._batches):
            self._outputs.append(output)

    def errs(self, most: float) -> float | None:
        """The largest error of the plan that runs now, as a part of the largest number of the exact output.

        None where the run was ended. Batches after the first with an error over ``most`` are left out.
        """
        self._open = False
        found, last = Difference(), None
        for images, wanted in zip(self._batches, self._outputs, strict=False):
            if images is last:
                continue
            if self._ended():
                return None
            found.add(self._net(images), wanted)
            if found.relative > most:
                break
            last = images
        return found.relative
