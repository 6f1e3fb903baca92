"""Spans, boxes and the cut of a range."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiconv.errors import UsageError
from mpiconv.partition import Box, Span, normalised, split
from mpiconv.partition.box import union_size
from mpiconv.partition.receptive import grouped, window

SPANS = st.builds(Span, st.integers(0, 6), st.integers(0, 6))
BOXES = st.builds(Box, SPANS, SPANS, SPANS)


def cells(box: Box) -> set[tuple[int, int, int]]:
    c, r, w = (range(span.lo, span.hi) for span in box.spans)
    return {(i, j, k) for i in c for j in r for k in w}


@given(BOXES, BOXES)
def test_boxes_are_sets_of_cells(a, b):
    assert cells(a & b) == cells(a) & cells(b)
    parts = a.minus(b)
    assert set().union(*map(cells, parts)) == cells(a) - cells(b)
    assert sum(part.size for part in parts) == len(cells(a) - cells(b)), "the parts overlap"
    assert cells(a) | cells(b) <= cells(a.hull(b))
    assert (b in a) == (cells(b) <= cells(a))
    assert Box.of(a.to_list()) == a


@given(st.lists(BOXES, max_size=5))
def test_union_counts_every_cell_once(boxes):
    assert union_size(boxes) == len(set().union(*map(cells, boxes)))


@pytest.mark.parametrize(
    ("total", "shares", "sizes"),
    [
        pytest.param(10, [1, 1, 1], [4, 3, 3], id="remainder-to-the-first"),
        pytest.param(96, [0.7, 0.2, 0.1], [67, 19, 10], id="largest-remainder"),
        pytest.param(13, [1, 0, 1], [7, 0, 6], id="idle-rank"),
        pytest.param(3, [1] * 5, [1, 1, 1, 0, 0], id="more-ranks-than-rows"),
        pytest.param(0, [1, 1], [0, 0], id="nothing"),
        pytest.param(1, [0.0, 1e-9], [0, 1], id="a-share-of-zero-gets-nothing"),
    ],
)
def test_split(total, shares, sizes):
    assert [len(span) for span in split(total, shares)] == sizes


@pytest.mark.parametrize(
    ("span", "kernel", "stride", "padding", "dilation", "rows"),
    [
        pytest.param(Span(0, 27), 11, 4, 0, 1, Span(0, 115), id="alexnet-conv1"),
        pytest.param(Span(3, 4), 3, 1, 1, 1, Span(2, 5), id="3x3"),
        pytest.param(Span(2, 4), 2, 2, 0, 1, Span(4, 8), id="even-kernel"),
        pytest.param(Span(2, 3), 1, 4, 0, 1, Span(8, 9), id="stride-over-kernel"),
        pytest.param(Span(0, 1), 3, 1, 2, 2, Span(-2, 3), id="dilated"),
        pytest.param(Span(), 3, 1, 1, 1, Span(), id="nothing"),
    ],
)
def test_window(span, kernel, stride, padding, dilation, rows):
    assert window(span, kernel, stride, padding, dilation) == rows


@pytest.mark.parametrize(
    ("span", "ins", "outs", "groups", "channels"),
    [
        pytest.param(Span(5, 9), 8, 16, 1, Span(0, 8), id="dense"),
        pytest.param(Span(5, 9), 16, 16, 16, Span(5, 9), id="depthwise"),
        pytest.param(Span(5, 9), 8, 16, 8, Span(2, 5), id="depthwise-twice"),
        pytest.param(Span(3, 5), 8, 8, 2, Span(0, 8), id="across-two-groups"),
    ],
)
def test_grouped(span, ins, outs, groups, channels):
    assert grouped(span, ins, outs, groups) == channels


@pytest.mark.parametrize(
    ("shares", "word"),
    [
        pytest.param([1, 1, 1], "3 shares for 2 ranks", id="wrong-length"),
        pytest.param([1, -1], "rank 1 is -1", id="negative"),
        pytest.param([float("nan"), 1], "rank 0 is nan", id="nan"),
        pytest.param([1, float("inf")], "rank 1 is inf", id="infinite"),
        pytest.param([0, 0], "all shares are 0", id="all-zero"),
    ],
)
def test_bad_shares(shares, word):
    with pytest.raises(UsageError, match=word):
        normalised(shares, 2)
