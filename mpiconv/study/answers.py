"""What a classifier's outputs say of the pictures: classes, scores, accuracy."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mpiconv.data.datasets import LabelledPictures
from mpiconv.data.pictures import Pictures
from mpiconv.measure.answers import Identity
from mpiconv.models import Info
from mpiconv.text import safe_text


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


def accuracy(pictures: Pictures, predictions: Sequence[Mapping[str, Any]], info: Info) -> dict[str, Any]:
    """How many of the pictures with an answer got the right class, for a labelled data set; else nothing."""
    if not isinstance(pictures, LabelledPictures) or not predictions:
        return {}
    wanted = (info.label(pictures.answer(line["index"])) for line in predictions)
    right = sum(safe_text(line["label"]) == safe_text(label) for line, label in zip(predictions, wanted, strict=True))
    return {"accuracy": right / len(predictions), "answered": len(predictions)}


def identity_of(model: nn.Module, info: Info, pictures: Pictures) -> Identity:
    """What the answers of a model for these pictures depend on; reads all weights, but of picture files their sizes."""
    weights = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            data = tensor.detach().cpu().contiguous().reshape(-1)
            weights.update(f"{key} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            weights.update(data.view(torch.uint8).numpy().data)
    names = hashlib.sha256()
    for index in range(len(pictures)):
        names.update(os.fsencode(pictures.mark(index)) + b"\0")
    how = f"{info.input_shape} {info.mean} {info.std} {info.labels}"
    return Identity(
        safe_text(info.name),
        weights.hexdigest(),
        names.hexdigest(),
        hashlib.sha256(os.fsencode(how)).hexdigest(),
        len(pictures),
    )
