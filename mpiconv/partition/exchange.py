"""Who sends what to whom: derived from boxes alone, for any plan. No MPI in here."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mpiconv.errors import PlanError
from mpiconv.partition.bounds import are_cells, bounds, box_of, common, nearest, overlapping, sizes, union
from mpiconv.partition.box import Box

_NOTHING: np.ndarray = np.zeros((0, 8), dtype=np.int64)

FEW = 4
"""Up to this number of ranks an exchange is found sooner without looking whether their boxes are cells of a grid."""


@dataclass(frozen=True)
class Transfer:
    """One piece of a map that ``target`` needs, does not hold, and gets from ``source``."""

    source: int
    target: int
    box: Box


@dataclass(frozen=True, eq=False)
class Block:
    """A box that one rank sends to all who need it alike.

    ``targets`` are their numbers, ``size`` its elements, ``transfer`` the number of one of its transfers.
    """

    source: int
    targets: np.ndarray
    size: int
    transfer: int


@dataclass(frozen=True, eq=False)
class Exchange:
    """What happens to one map between the ranks that made it and those that need it.

    ``owned[r]`` is what rank r computed, ``needed[r]`` what it needs next; both may overlap with other ranks'.
    ``table`` has a row for every transfer: source, target, and where its box begins and ends in channels, rows and
    columns. ``part_of`` is the pattern of the exchange that this one is a part of.
    """

    owned: tuple[Box, ...]
    needed: tuple[Box, ...]
    table: np.ndarray
    part_of: str = ""

    @cached_property
    def transfers(self) -> tuple[Transfer, ...]:
        """What is sent, target by target."""
        boxes: dict[tuple[int, ...], Box] = {}
        found = []
        for source, target, *edges in self.table.tolist():
            key = tuple(edges)
            box = boxes.get(key)
            if box is None:
                box = boxes[key] = box_of(key)
            found.append(Transfer(source, target, box))
        return tuple(found)

    @cached_property
    def memo(self) -> dict[Hashable, Any]:
        """What was worked out of this exchange before, for who asks the same for every rank."""
        return {}

    @cached_property
    def sizes(self) -> np.ndarray:
        """(transfer,): elements per picture."""
        return sizes(self.table[:, 2:])

    @cached_property
    def members(self) -> tuple[int, ...]:
        """The ranks that send or receive, in order."""
        return tuple(np.unique(self.table[:, :2]).tolist())

    @cached_property
    def pattern(self) -> str:
        """The MPI pattern that fits the need.

        ``none``, ``allgatherv`` (everyone needs all), ``bcast`` and ``scatterv`` (from one), ``gatherv`` (to one),
        ``sendrecv`` (rows, or columns, with the neighbours) or ``p2p`` (anything else).
        """
        if not len(self.table):
            return "none"
        if self.part_of:
            return self.part_of
        sources, targets = (np.unique(self.table[:, end]).tolist() for end in (0, 1))
        if self._everyone_needs_all(len(sources)):
            return "allgatherv"
        if len(sources) == 1 and targets != [0]:
            pieces = [self.table[self.table[:, 1] == rank, 2:] for rank in targets]
            return "bcast" if all(np.array_equal(boxes, pieces[0]) for boxes in pieces) else "scatterv"
        if len(targets) == 1:
            return "gatherv"
        return "sendrecv" if self.halo_axis else "p2p"

    @cached_property
    def halo_axis(self) -> int:
        """Along which axis of a box the halos lie: 1 if all pieces are whole rows, 2 if whole columns, else 0."""
        need = bounds(self.needed)[self.table[:, 1]]
        same = (self.table[:, 2:] == need).reshape(-1, 3, 2).all(axis=(0, 2))
        return 1 if same[0] and same[2] else 2 if same[0] and same[1] else 0

    def part(self, owned: Sequence[Box]) -> Exchange:
        """The part of this exchange that can be sent once each rank has computed the part ``owned`` of its box."""
        cut = self.table.copy()
        cut[:, 2:] = common(cut[:, 2:], bounds(owned)[cut[:, 0]])
        return Exchange(tuple(owned), self.needed, cut[sizes(cut[:, 2:]) > 0], self.pattern)

    def _everyone_needs_all(self, sources: int) -> bool:
        """Whether every member needs exactly what all of them made, and no two made the same."""
        members = list(self.members)
        if sources < 2 or len({self.needed[rank] for rank in members}) != 1:
            return False
        return not overlapping(common(bounds(self.owned), bounds(self.needed))[members])

    @cached_property
    def _received(self) -> np.ndarray:
        return self._sums(1)

    @cached_property
    def _sent(self) -> np.ndarray:
        return self._sums(0)

    def _sums(self, end: int) -> np.ndarray:
        """(rank,): elements of all transfers at one of their ends."""
        total = np.zeros(len(self.owned), dtype=np.int64)
        np.add.at(total, self.table[:, end], self.sizes)
        return total

    def received(self, rank: int) -> int:
        """Elements per picture that the rank needs and does not hold."""
        return int(self._received[rank])

    def sent(self, rank: int) -> int:
        """Elements per picture that the rank sends, counted once per receiver."""
        return int(self._sent[rank])

    @cached_property
    def blocks(self) -> list[Block]:
        """What is sent where those who need the same box of a rank get it together, in the order of the sources."""
        if not len(self.table):
            return []
        without_target = np.delete(self.table, 1, axis=1)
        boxes, first, which = np.unique(without_target, axis=0, return_index=True, return_inverse=True)
        which = which.reshape(-1)
        order = np.argsort(which, kind="stable")
        targets = np.split(self.table[order, 1], np.cumsum(np.bincount(which))[:-1])
        return [
            Block(source, each, size, transfer)
            for source, each, size, transfer in zip(
                boxes[:, 0].tolist(), targets, sizes(boxes[:, 1:]).tolist(), first.tolist(), strict=True
            )
        ]

    def multicast(self, rank: int) -> int:
        """Elements per picture that the rank sends, counted once however many receive them."""
        return union(self.table[self.table[:, 0] == rank, 2:])


def exchange(owned: Sequence[Box], needed: Sequence[Box], what: str) -> Exchange:
    """Each rank's need minus what it owns, piece by piece from the nearest owner.

    Raises PlanError, naming the map (``what``) and the rank, where a needed element is owned by nobody.
    """
    own, table = tuple(owned), _NOTHING
    if not all(need in box for box, need in zip(own, needed, strict=True)):
        cells = _of_cells(own, needed) if len(own) > FEW else None
        table = _piece_by_piece(own, needed, what) if cells is None else cells
    return Exchange(own, tuple(needed), table)


def _of_cells(owned: Sequence[Box], needed: Sequence[Box]) -> np.ndarray | None:
    """The transfers where what ranks own are cells of a grid: nothing is cut, a rank gets one piece from every owner.

    None where they are not, or where an element is missing.
    """
    own, need = bounds(owned), bounds(needed)
    touching = sizes(common(own[None], need[:, None]))  # (target, source)
    if not are_cells(own) or (touching.sum(axis=1) < sizes(need)).any():
        return None
    order = nearest(len(own))
    targets, places = np.nonzero(np.take_along_axis(touching, order, axis=1))
    sources = order[targets, places]
    apart = sources != targets
    sources, targets = sources[apart], targets[apart]
    return np.column_stack((sources, targets, common(own[sources], need[targets])))


def _piece_by_piece(owned: Sequence[Box], needed: Sequence[Box], what: str) -> np.ndarray:
    """The transfers of any exchange. Raises PlanError where an element is missing."""
    touching = sizes(common(bounds(owned)[None], bounds(needed)[:, None])).tolist()
    rows = []
    for target, need in enumerate(needed):
        missing = need.minus(owned[target])
        for source in nearest(len(owned))[target].tolist() if missing else ():
            if source == target or not touching[target][source]:
                continue
            rest = []
            for piece in missing:
                cut = piece & owned[source]
                if cut:
                    rows.append((source, target, *(edge for span in cut.spans for edge in (span.lo, span.hi))))
                rest += piece.minus(cut)
            missing = rest
            if not missing:
                break
        if missing:
            raise PlanError(f"rank {target} needs {missing[0]} of {what}, which no rank computes")
    return np.array(rows, dtype=np.int64).reshape(-1, 8)
