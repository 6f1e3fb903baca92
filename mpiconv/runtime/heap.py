"""Keeps malloc from returning memory that every frame frees and takes again, and has it return what is left over."""

from __future__ import annotations

import ctypes
from contextlib import suppress

import torch

HEAP_BYTES = 30 * 2**20


def settle_heap() -> None:
    """Let malloc keep up to ``HEAP_BYTES`` of freed memory instead of returning it, as after a larger network's maps.

    It learns that from the largest block freed so far. With less, each map's pages are given back and taken anew, or
    not, as the heap happens to lie: that is half the speed or twice.
    """
    torch.empty(HEAP_BYTES, dtype=torch.uint8)


def trim_heap() -> None:
    """Return freed memory that lies between what is in use: what is taken once, to reorder weights or to compile.

    A block that was freed there is seldom taken again, since the next one of its size is aligned and needs a little
    more. Only glibc can do it; elsewhere nothing happens.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
