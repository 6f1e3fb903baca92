"""Keeps malloc from returning memory that every frame frees and takes again."""

from __future__ import annotations

import torch

HEAP_BYTES = 30 * 2**20


def settle_heap() -> None:
    """Let malloc keep up to ``HEAP_BYTES`` of freed memory instead of returning it, as after a larger network's maps.

    It learns that from the largest block freed so far. With less, each map's pages are given back and taken anew, or
    not, as the heap happens to lie: that is half the speed or twice.
    """
    torch.empty(HEAP_BYTES, dtype=torch.uint8)
