"""What is still answered rightly when one device's part of an early map is lost: section 3 of [KPM22], put to the test.

Simulated in one process: the lost values are zeros, which is what a buffer holds that nothing arrived in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mpiconv.data.datasets import LabelledPictures
from mpiconv.partition import Box, make_plan


@dataclass(frozen=True)
class Lost:
    """Shares of right answers, 0 to 1: nothing lost, and one device's part lost, the mean over the devices."""

    pictures: int
    devices: int
    whole: float
    channels: float
    rows: float
    picture_rows: float


def lost_parts(model: Any, data: LabelledPictures, devices: int = 4) -> Lost:
    """Answers of a trained chain ``model.features``, ``model.classifier`` with a part lost of its first unit's map.

    ``channels`` and ``rows`` are what one of the ``devices`` makes of that map under KPM and under WPM;
    ``picture_rows`` is its band of the picture.
    """
    images = torch.stack([data.load(i) for i in range(len(data))])
    answers = torch.tensor([data.answer(i) for i in range(len(data))])
    model = model.eval()
    _, channels, rows, columns = images.shape
    slices, bands = (make_plan(model, (1, channels, rows, columns), scheme, devices) for scheme in ("kpm", "wpm"))
    first = len(slices.graph.units[0].layers)
    rest = nn.Sequential(model.features[first:], nn.Flatten(), model.classifier)

    def right(net: nn.Module, maps: torch.Tensor, *lost: Box) -> float:
        """The mean over the boxes, each lost in turn."""
        found = []
        for box in lost:
            maimed = maps.clone()
            where = (slice(None), *box.within(Box.whole(tuple(maps.shape[1:]))))
            maimed[where] = 0
            found.append(float((net(maimed).argmax(1) == answers).float().mean()))
        return sum(found) / len(found)

    cuts = [(rows * r // devices, rows * (r + 1) // devices) for r in range(devices)]
    with torch.inference_mode():
        early = model.features[:first](images)
        return Lost(
            pictures=len(answers),
            devices=devices,
            whole=float((rest(early).argmax(1) == answers).float().mean()),
            channels=right(rest, early, *slices.boxes[0]),
            rows=right(rest, early, *bands.boxes[0]),
            picture_rows=right(model, images, *(Box.of([(0, channels), cut, (0, columns)]) for cut in cuts)),
        )
