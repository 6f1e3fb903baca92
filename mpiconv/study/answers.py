"""What a classifier's outputs say of the pictures: classes, scores, accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mpiconv.data.datasets import LabelledPictures
from mpiconv.data.pictures import Pictures
from mpiconv.models import Info


def answers(output: Any, number: int, pictures: Pictures, info: Info) -> list[dict[str, Any]]:
    """The best class of every picture in a batch: its ``index``, ``image``, ``label`` and ``score``.

    Parameters
    ----------
    output
        What the network made of the batch, (N, classes) for a classifier; of anything else there are no answers.
    number
        The batch's; batch 0 has the first N pictures.
    pictures
        All pictures; the last batch may be longer than what is left of them.
    info
        Knows the names of the classes.
    """
    if not isinstance(output, torch.Tensor) or output.dim() != 2:
        return []
    scores, classes = torch.softmax(output, 1).max(1)
    start = number * len(output)
    return [
        {
            "index": start + i,
            "image": pictures.name(start + i),
            "label": info.label(int(classes[i])),
            "score": float(scores[i]),
        }
        for i in range(min(len(output), len(pictures) - start))
    ]


def accuracy(pictures: Pictures, outputs: Sequence[torch.Tensor]) -> dict[str, Any]:
    """How many of the pictures with an answer got the right class, for a labelled data set; else nothing."""
    if not isinstance(pictures, LabelledPictures):
        return {}
    classes = torch.cat([output.argmax(1) for output in outputs])[: len(pictures)].tolist()
    right = sum(found == pictures.answer(index) for index, found in enumerate(classes))
    return {"accuracy": right / len(classes), "answered": len(classes)}
