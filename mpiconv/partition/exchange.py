"""Who sends what to whom: derived from boxes alone, for any plan. No MPI in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from mpiconv.errors import PlanError
from mpiconv.partition.box import Box, union_size


@dataclass(frozen=True)
class Transfer:
    """One piece of a map that ``target`` needs, does not hold, and gets from ``source``."""

    source: int
    target: int
    box: Box


@dataclass(frozen=True)
class Exchange:
    """What happens to one map between the ranks that made it and those that need it.

    ``owned[r]`` is what rank r computed, ``needed[r]`` what it needs next; both may overlap with other ranks'.
    ``part_of`` is the pattern of the exchange that this one is a part of.
    """

    owned: tuple[Box, ...]
    needed: tuple[Box, ...]
    transfers: tuple[Transfer, ...]
    part_of: str = ""

    @cached_property
    def members(self) -> tuple[int, ...]:
        """The ranks that send or receive, in order."""
        return tuple(sorted({rank for t in self.transfers for rank in (t.source, t.target)}))

    @cached_property
    def pattern(self) -> str:
        """The MPI pattern that fits the need.

        ``none``, ``allgatherv`` (everyone needs all), ``bcast`` and ``scatterv`` (from one), ``gatherv`` (to one),
        ``sendrecv`` (rows, or columns, with the neighbours) or ``p2p`` (anything else).
        """
        if not self.transfers:
            return "none"
        if self.part_of:
            return self.part_of
        sources = {t.source for t in self.transfers}
        targets = {t.target for t in self.transfers}
        if self._everyone_needs_all():
            return "allgatherv"
        if len(sources) == 1 and targets != {0}:
            pieces = [[t.box for t in self.transfers if t.target == rank] for rank in targets]
            return "bcast" if all(boxes == pieces[0] for boxes in pieces) else "scatterv"
        if len(targets) == 1:
            return "gatherv"
        return "sendrecv" if self.halo_axis else "p2p"

    @cached_property
    def halo_axis(self) -> int:
        """Along which axis of a box the halos lie: 1 if all pieces are whole rows, 2 if whole columns, else 0."""
        return next((axis for axis in (1, 2) if all(self._is_halo(t, axis) for t in self.transfers)), 0)

    def part(self, owned: Sequence[Box]) -> Exchange:
        """The part of this exchange that can be sent once each rank has computed the part ``owned`` of its box."""
        cut = (Transfer(t.source, t.target, t.box & owned[t.source]) for t in self.transfers)
        return Exchange(tuple(owned), self.needed, tuple(t for t in cut if t.box), self.pattern)

    def _is_halo(self, transfer: Transfer, axis: int) -> bool:
        """Whether the piece is whole rows (axis 1) or columns (2) of what its target needs."""
        pairs = zip(transfer.box.spans, self.needed[transfer.target].spans, strict=True)
        return all(piece == need for other, (piece, need) in enumerate(pairs) if other != axis)

    def _everyone_needs_all(self) -> bool:
        """Whether every member needs exactly what all of them made, and no two made the same."""
        if len({t.source for t in self.transfers}) < 2 or len({self.needed[rank] for rank in self.members}) != 1:
            return False
        made = [self.owned[rank] & self.needed[rank] for rank in self.members]
        return union_size(made) == sum(box.size for box in made)

    def received(self, rank: int) -> int:
        """Elements per picture that the rank needs and does not hold."""
        return sum(t.box.size for t in self.transfers if t.target == rank)

    def sent(self, rank: int) -> int:
        """Elements per picture that the rank sends, counted once per receiver."""
        return sum(t.box.size for t in self.transfers if t.source == rank)

    def multicast(self, rank: int) -> int:
        """Elements per picture that the rank sends, counted once however many receive them."""
        return union_size(t.box for t in self.transfers if t.source == rank)


def exchange(owned: Sequence[Box], needed: Sequence[Box], what: str) -> Exchange:
    """Each rank's need minus what it owns, piece by piece from the nearest owner.

    Raises PlanError, naming the map (``what``) and the rank, where a needed element is owned by nobody.
    """
    transfers = []
    for target, need in enumerate(needed):
        missing = need.minus(owned[target])
        nearest = sorted((rank for rank in range(len(owned)) if rank != target), key=lambda r: (abs(r - target), r))
        for source in nearest:
            if not missing:
                break
            rest = []
            for piece in missing:
                common = piece & owned[source]
                if common:
                    transfers.append(Transfer(source, target, common))
                rest += piece.minus(common)
            missing = rest
        if missing:
            raise PlanError(f"rank {target} needs {missing[0]} of {what}, which no rank computes")
    return Exchange(tuple(owned), tuple(needed), tuple(transfers))
