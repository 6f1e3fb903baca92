"""Models of a user's own with mistakes in them, for ``--model tests.broken_models:NAME``."""

from __future__ import annotations

import torch
from torch import nn


class Cancelled(BaseException):
    """Not an Exception, as some libraries have it."""


def cancelled() -> nn.Module:
    raise Cancelled("stopped")


def divides() -> nn.Module:
    return nn.Conv2d(3, 1 // 0, 3)


def within_torch() -> nn.Module:
    return nn.Conv2d(3, 5, 3, groups=2)


def leaves() -> nn.Module:
    raise SystemExit(3)


def nothing() -> nn.Module:
    nn.Conv2d(3, 4, 3)


def interrupted() -> nn.Module:
    raise KeyboardInterrupt


def unset() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[1].running_var[2:] = torch.nan
    return model


number = 5
made = nn.Sequential(nn.Conv2d(3, 4, 3))
