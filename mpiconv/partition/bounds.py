"""Many boxes at once, as one array of numbers: what of them overlaps, for plans of hundreds of ranks."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from mpiconv.partition.box import Box, union_size

LO, HI = slice(0, None, 2), slice(1, None, 2)
"""Where boxes begin and end, in rows of ``bounds``."""

MOST_CELLS = 2**20
"""Up to this number of cells a union is counted cell by cell."""


def bounds(boxes: Iterable[Box]) -> np.ndarray:
    """(box, 6): where each begins and ends in channels, rows and columns."""
    edges = [edge for box in boxes for span in box.spans for edge in (span.lo, span.hi)]
    return np.array(edges, dtype=np.int64).reshape(-1, 6)


def box_of(row: Iterable[int]) -> Box:
    """The box of a row of ``bounds``."""
    a, b, c, d, e, f = row
    return Box.of(((a, b), (c, d), (e, f)))


def common(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(..., 6): what lies in both, box by box, broadcast against each other; may end before it begins."""
    shape = np.broadcast_shapes(one.shape, other.shape)
    found = np.empty(shape, dtype=np.int64)
    np.maximum(one[..., LO], other[..., LO], out=found[..., LO])
    np.minimum(one[..., HI], other[..., HI], out=found[..., HI])
    return found


def sizes(boxes: np.ndarray) -> np.ndarray:
    """(...): number of elements of every box; 0 where it ends before it begins."""
    lengths = np.maximum(boxes[..., HI] - boxes[..., LO], 0)
    return np.asarray(lengths[..., 0] * lengths[..., 1] * lengths[..., 2])


def common_sizes(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(...): number of elements that lie in both, as ``sizes(common(one, other))``, in less memory."""
    total: np.ndarray | None = None
    for lo, hi in ((0, 1), (2, 3), (4, 5)):
        length = np.minimum(one[..., hi], other[..., hi])
        length -= np.maximum(one[..., lo], other[..., lo])
        np.maximum(length, 0, out=length)
        total = length if total is None else np.multiply(total, length, out=total)
    return np.asarray(total)


def overlapping(boxes: np.ndarray) -> bool:
    """Whether any two of the boxes have an element in common."""
    shared = sizes(common(boxes[:, None], boxes[None]))
    np.fill_diagonal(shared, 0)
    return bool(shared.any())


def are_cells(boxes: np.ndarray) -> bool:
    """Whether all boxes but empty ones are cells of one grid: no two alike, cut at the same places on every axis."""
    full = boxes[sizes(boxes) > 0]
    if len(np.unique(full, axis=0)) < len(full):
        return False
    for axis in range(3):
        spans = np.unique(full[:, 2 * axis : 2 * axis + 2], axis=0)
        if (spans[1:, 0] < spans[:-1, 1]).any():
            return False
    return True


def union(boxes: np.ndarray) -> int:
    """Number of elements that lie in at least one of the boxes."""
    boxes = np.unique(boxes[sizes(boxes) > 0], axis=0)
    if len(boxes) < 2:
        return int(sizes(boxes).sum())
    edges = [np.unique(boxes[:, 2 * axis : 2 * axis + 2]) for axis in range(3)]
    shape = tuple(len(each) - 1 for each in edges)
    if np.prod(shape) > MOST_CELLS:
        return union_size(box_of(row) for row in boxes.tolist())
    covered = np.zeros(shape, dtype=bool)
    places = [np.searchsorted(edges[axis], boxes[:, 2 * axis : 2 * axis + 2]).tolist() for axis in range(3)]
    for (a, b), (c, d), (e, f) in zip(*places, strict=True):
        covered[a:b, c:d, e:f] = True
    lengths = [np.diff(each) for each in edges]
    return int(np.einsum("ijk,i,j,k->", covered.astype(np.int64), *lengths))


@lru_cache(maxsize=4)
def nearest(ranks: int) -> np.ndarray:
    """(rank, rank): of every rank all ranks, itself first, then the nearest, of two at a distance the lower first."""
    numbers = np.arange(ranks)
    return np.argsort(np.abs(numbers[:, None] - numbers[None]), axis=1, kind="stable")
