"""Memory that is freed and taken again frame by frame."""

from __future__ import annotations

import torch

HEAP_BYTES = 30 * 2**20


def settle_heap() -> None:
    """Let glibc keep what is freed up to so many B, as after a larger network's maps.

    It learns that from the largest block freed so far. With less, each map's pages are given back and taken anew, or
    not, as the heap happens to lie: that is half the speed or twice.
    """
    torch.empty(HEAP_BYTES, dtype=torch.uint8)
