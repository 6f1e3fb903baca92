"""A model of a user's own, for ``--model tests.own_model:make``."""

from __future__ import annotations

from torch import nn


def make() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3, 2), nn.AvgPool2d(2)
    )


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(4, 3))


def learner() -> nn.Module:
    """Grey pictures of 16 x 16, 10 classes, no dropout and no BatchNorm."""
    return nn.Sequential(nn.Conv2d(1, 6, 5, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 10))
