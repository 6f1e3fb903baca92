"""In which order a rank computes its box so that what others need can travel while the rest is computed."""

from __future__ import annotations

from mpiconv.graph.form import Unit
from mpiconv.partition.box import Box, Span, hull
from mpiconv.partition.exchange import Exchange

GROUPS = 2
LEAST_KERNELS = 16
LEAST_INNER = 2
"""A band is cut if its inner rows (or columns) are at least this many times as many as its edges."""

Pieces = tuple[tuple[Box, ...], ...]
"""``pieces[g][r]``: what rank r computes as its g-th; together they are its box, without overlap."""


def pieces(unit: Unit, spread: Exchange) -> Pieces:
    """The pieces in which the map of ``unit`` is computed and sent, one if cutting it cannot help.

    Kernels that all ranks need go in groups, each sent while the next is computed. Of bands of rows the edges that the
    neighbours need come first and travel while the inner rows are computed, and so of bands of columns; a band that is
    little more than its edges is not cut.
    """
    if spread.pattern == "allgatherv" and unit.out_shape[0] > 1:
        kernels = [box.channels for box in spread.owned]
        if min((len(span) for span in kernels if span), default=0) >= GROUPS * LEAST_KERNELS:
            cuts = [_groups(span) for span in kernels]
            return tuple(
                tuple(Box(cut[g], box.rows, box.columns) for cut, box in zip(cuts, spread.owned, strict=True))
                for g in range(GROUPS)
            )
    if spread.pattern == "sendrecv":
        bands = [_band(spread, rank) for rank in range(len(spread.owned))]
        if any(band[1] or band[2] for band in bands):
            return tuple(tuple(band[g] for band in bands) for g in range(3))
    return (spread.owned,)


def _groups(span: Span) -> list[Span]:
    """A span in ``GROUPS``, cut at multiples of what oneDNN likes."""
    step = -(-len(span) // GROUPS // LEAST_KERNELS) * LEAST_KERNELS
    return [
        Span(span.lo + g * step, span.hi if g == GROUPS - 1 else min(span.lo + (g + 1) * step, span.hi))
        for g in range(GROUPS)
    ]


def _band(spread: Exchange, rank: int) -> tuple[Box, Box, Box]:
    """First edge, last edge and the rest of a rank's band; all of it as the first where it is thin."""
    own, axis = spread.owned[rank], spread.halo_axis
    before = hull(t.box for t in spread.transfers if t.source == rank and t.target < rank).spans[axis]
    after = hull(t.box for t in spread.transfers if t.source == rank and t.target > rank).spans[axis]
    band = own.spans[axis]
    first, last = before.hi if before else band.lo, after.lo if after else band.hi
    if last - first < LEAST_INNER * max(len(band) - (last - first), 1) or not (before or after):
        return own, Box(), Box()
    cuts = Span(band.lo, first), Span(last, band.hi), Span(first, last)
    edge, other_edge, inner = (Box(*(cut if i == axis else span for i, span in enumerate(own.spans))) for cut in cuts)
    return edge, other_edge, inner
