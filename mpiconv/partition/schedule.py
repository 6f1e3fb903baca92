"""What a plan comes to on certain hosts: pieces, padding, media and bytes. Derived once, the same on every rank. Pure.

The engine obeys it, and whoever wants to know what a plan costs reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mpiconv.graph.form import PICTURE
from mpiconv.partition.box import Box
from mpiconv.partition.exchange import Exchange
from mpiconv.partition.padding import margin
from mpiconv.partition.pieces import Pieces, pieces
from mpiconv.partition.plan import Plan
from mpiconv.partition.wire import FLOAT32, WIRES, Payload, Wire

WORTH_S = 0.5e-3
"""A message that takes less is not worth computing a unit in pieces for."""

MESSAGES = "messages"
"""The medium whose maps travel in the plan's number format; others, such as shared memory, carry float32."""

Around = tuple[tuple[int, int], tuple[int, int], float]
"""Rows and columns (before, after) that are kept around what a rank needs, and their value."""


@dataclass(frozen=True)
class Held:
    """The part of a map that a rank has after the exchange: ``box``, with the padding around it where it is ``padded``.

    ``holds``: it is what the rank computed, in no buffer of its own.
    """

    box: Box
    holds: bool
    padded: bool = False
    padding: float = 0.0

    @classmethod
    def of(cls, exchange: Exchange, rank: int, around: Around | None = None, *, partial: bool = False) -> Held:
        """A rank's; ``partial`` if the map is made and exchanged in parts, which come together in a buffer."""
        own, need = exchange.owned[rank], exchange.needed[rank]
        if not need if partial else need in own:
            return cls(own, holds=True)
        if around is None:
            return cls(need, holds=False)
        rows, columns, value = around
        return cls(Box(need.channels, need.rows.wider(rows), need.columns.wider(columns)), False, True, value)


@dataclass(frozen=True)
class Move:
    """How one map changes hands.

    ``parts`` are the exchanges in which it does, one after the other; ``held[r]`` is what rank r has of it
    afterwards; ``medium`` is the name of what carries it; ``wire`` the number format in which it does.
    """

    exchange: Exchange
    parts: tuple[Exchange, ...]
    held: tuple[Held, ...]
    medium: str
    wire: Wire = FLOAT32


@dataclass(frozen=True)
class Schedule:
    """A plan with all that follows from it where it runs.

    ``pieces[u]`` are the pieces in which unit u of the body is computed; ``moves`` has the maps that change hands, by
    the number of the unit that makes them.
    """

    plan: Plan
    pieces: tuple[Pieces, ...]
    moves: Mapping[int, Move]

    def padded(self, unit: int, rank: int) -> bool:
        """Whether a unit's input comes to a rank with the padding of its first layer around it."""
        sources = self.plan.graph.units[unit].inputs
        return all(source in self.moves and self.moves[source].held[rank].padded for source in sources)

    def bytes_sent(self, source: int, rank: int) -> int:
        """B that a rank sends of a map per inference, counted once per receiver."""
        return sum(int(each.sent[rank]) for each in self.payloads[source])

    def bytes_received(self, source: int, rank: int) -> int:
        """B that a rank receives of a map per inference."""
        return sum(int(each.received[rank]) for each in self.payloads[source])

    @cached_property
    def payloads(self) -> dict[int, list[Payload]]:
        """What every part of every map comes to in B."""
        batch, moves = self.plan.batch, self.moves.items()
        return {source: [Payload(part, move.wire, batch) for part in move.parts] for source, move in moves}


def schedule(
    plan: Plan,
    medium_of: Callable[[Exchange], str],
    *,
    overlap: Callable[[Exchange], bool] = lambda _: False,
    slow_at_edges: Sequence[bool] = (),
) -> Schedule:
    """The schedule of a plan.

    Parameters
    ----------
    plan
        The plan.
    medium_of
        The name of what carries a map with this exchange.
    overlap
        Whether a unit is computed in pieces, so that a map with this exchange travels while the rest is computed.
    slow_at_edges
        Of every rank whether its processor convolves large kernels faster on a map that is padded before.
    """
    slow = tuple(slow_at_edges) or (False,) * plan.ranks
    cuts: list[Pieces] = []
    for index, unit in enumerate(plan.graph.body):
        spread = plan.exchanges.get(index)
        cuts.append((plan.boxes[index],) if spread is None or not overlap(spread) else pieces(unit, spread))
    moves = {}
    for source, spread in plan.exchanges.items():
        made = cuts[source] if source != PICTURE else (spread.owned,)
        several = len(made) > 1
        held = [
            Held.of(spread, rank, _around(plan, source, rank, slow_at_edges=slow[rank]), partial=several)
            for rank in range(plan.ranks)
        ]
        parts = [spread.part(owned) for owned in made] if several else [spread]
        medium = medium_of(spread)
        wire = WIRES[plan.wire] if medium == MESSAGES else FLOAT32
        moves[source] = Move(spread, tuple(parts), tuple(held), medium, wire)
    return Schedule(plan, tuple(cuts), moves)


def worth_overlapping(plan: Plan, spread: Exchange, seconds_per_byte: float) -> bool:
    """Whether a map's largest message takes so long on the slowest link that more computing could hide it."""
    most = Payload(spread, WIRES[plan.wire], plan.batch).received.max()
    return bool(most * seconds_per_byte >= WORTH_S)


def _around(plan: Plan, source: int, rank: int, *, slow_at_edges: bool) -> Around | None:
    """The padding that a rank's buffer of a map has around it: its only reader's; None where several read the map."""
    readers = plan.graph.consumers(source)
    reader = plan.graph.units[readers[0]]
    if len(readers) > 1 or readers[0] == len(plan.boxes) or len(reader.inputs) > 1:
        return None
    box = plan.owned[readers[0]][rank]
    if not box:
        return None
    rows, columns, value = margin(reader, box, slow_at_edges=slow_at_edges)
    return (rows, columns, value) if any(rows) or any(columns) else None
