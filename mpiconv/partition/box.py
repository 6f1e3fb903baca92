"""Spans and boxes: the integer arithmetic of who has which part of a feature map."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mpiconv.errors import UsageError
from mpiconv.words import counted


@dataclass(frozen=True, order=True)
class Span:
    """A half-open range of indices; every empty span equals ``Span(0, 0)``."""

    lo: int = 0
    hi: int = 0

    def __post_init__(self) -> None:
        if self.hi <= self.lo:
            object.__setattr__(self, "lo", 0)
            object.__setattr__(self, "hi", 0)

    def __len__(self) -> int:
        return self.hi - self.lo

    def __bool__(self) -> bool:
        return self.hi > self.lo

    def __and__(self, other: Span) -> Span:
        """The indices in both."""
        return Span(max(self.lo, other.lo), min(self.hi, other.hi))

    def __contains__(self, other: Span) -> bool:
        """Whether ``other`` lies within this one; an empty span lies in any."""
        return not other or (self.lo <= other.lo and other.hi <= self.hi)

    def hull(self, other: Span) -> Span:
        """The smallest span around both."""
        if not self or not other:
            return self or other
        return Span(min(self.lo, other.lo), max(self.hi, other.hi))

    def wider(self, around: tuple[int, int]) -> Span:
        """The span with ``around[0]`` indices more before it and ``around[1]`` more after it."""
        return Span(self.lo - around[0], self.hi + around[1])

    def __str__(self) -> str:
        return f"{self.lo}:{self.hi}"


@dataclass(frozen=True)
class Box:
    """A range of channels x rows x columns of a feature map; empty if one of them is."""

    channels: Span = Span()
    rows: Span = Span()
    columns: Span = Span()

    def __post_init__(self) -> None:
        a, b, c = self.channels, self.rows, self.columns
        if a.hi <= a.lo or b.hi <= b.lo or c.hi <= c.lo:  # written out: millions of boxes are made
            for name in ("channels", "rows", "columns"):
                object.__setattr__(self, name, Span())

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Box:
        """The box of a whole map of shape (C, H, W)."""
        channels, rows, columns = shape
        return cls(Span(0, channels), Span(0, rows), Span(0, columns))

    @classmethod
    def of(cls, bounds: Sequence[Sequence[int]]) -> Box:
        """The box from three (lo, hi) pairs."""
        channels, rows, columns = (Span(int(lo), int(hi)) for lo, hi in bounds)
        return cls(channels, rows, columns)

    @property
    def spans(self) -> tuple[Span, Span, Span]:
        """Channels, rows, columns."""
        return self.channels, self.rows, self.columns

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the box."""
        return len(self.channels), len(self.rows), len(self.columns)

    @property
    def size(self) -> int:
        """Number of elements for one picture."""
        return math.prod(self.shape)

    def __bool__(self) -> bool:
        return self.channels.hi > self.channels.lo

    def __and__(self, other: Box) -> Box:
        """The elements in both."""
        return Box(self.channels & other.channels, self.rows & other.rows, self.columns & other.columns)

    def __contains__(self, other: Box) -> bool:
        """Whether ``other`` lies within this one; an empty box lies in any."""
        return not other or all(b in a for a, b in zip(self.spans, other.spans, strict=True))

    def __str__(self) -> str:
        return f"c{self.channels} r{self.rows} w{self.columns}" if self else "-"

    def hull(self, other: Box) -> Box:
        """The smallest box around both."""
        if not self or not other:
            return self or other
        return Box(*(a.hull(b) for a, b in zip(self.spans, other.spans, strict=True)))

    def minus(self, other: Box) -> list[Box]:
        """What is in this box and not in ``other``, as at most six boxes that do not overlap."""
        common = self & other
        if not common:
            return [self] if self else []
        parts, rest = [], list(self.spans)
        for axis, cut in enumerate(common.spans):
            whole = rest[axis]
            for side in (Span(whole.lo, cut.lo), Span(cut.hi, whole.hi)):
                if side:
                    parts.append(Box(*(side if i == axis else span for i, span in enumerate(rest))))
            rest[axis] = cut
        return parts

    def within(self, whole: Box) -> tuple[slice, slice, slice]:
        """The slices of this box in a (C, H, W) tensor that holds ``whole``."""
        c, r, w = (slice(a.lo - b.lo, a.hi - b.lo) for a, b in zip(self.spans, whole.spans, strict=True))
        return c, r, w

    def to_list(self) -> list[list[int]]:
        """Three [lo, hi] pairs, for JSON."""
        return [[span.lo, span.hi] for span in self.spans]


def hull(boxes: Iterable[Box]) -> Box:
    """The smallest box around all of them."""
    result = Box()
    for box in boxes:
        result = result.hull(box)
    return result


def union_size(boxes: Iterable[Box]) -> int:
    """Number of elements that lie in at least one of the boxes."""
    seen: list[Box] = []
    for box in boxes:
        fresh = [box] if box else []
        for old in seen:
            fresh = [part for piece in fresh for part in piece.minus(old)]
        seen += fresh
    return sum(box.size for box in seen)


def normalised(shares: Sequence[float], ranks: int) -> list[float]:
    """Shares that sum to 1, from any positive scale.

    Raises UsageError if there is not one per rank, or if one is negative, not finite, or all are 0.
    """
    values = [float(share) for share in shares]
    if len(values) != ranks:
        raise UsageError(f"{counted(len(values), 'share')} for {counted(ranks, 'rank')}: give one number per rank")
    for rank, value in enumerate(values):
        if not math.isfinite(value) or value < 0:
            raise UsageError(f"the share of rank {rank} is {value:g}: a share is a number from 0 up")
    total = sum(values)
    if total == 0:
        raise UsageError("all shares are 0: at least one rank has to compute")
    return [value / total for value in values]


def split(total: int, shares: Sequence[float]) -> list[Span]:
    """Cut ``range(total)`` into one contiguous span per share, largest remainder first.

    A share of 0 gets an empty span. The spans cover the range without gaps.
    """
    whole = sum(shares)
    exact = [total * share / whole for share in shares]
    sizes = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: (sizes[i] - exact[i], i))
    for i in [i for i in by_remainder if shares[i] > 0][: total - sum(sizes)]:
        sizes[i] += 1
    spans, lo = [], 0
    for size in sizes:
        spans.append(Span(lo, lo + size))
        lo += size
    return spans
