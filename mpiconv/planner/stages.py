"""The stages of a network: some units in a row that are split one way, with what they cost by themselves. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mpiconv.graph.form import PICTURE, Graph
from mpiconv.partition.bounds import bounds
from mpiconv.partition.schemes import needs_all
from mpiconv.planner.bounds import Costs, Needs, hulls
from mpiconv.planner.rates import Rates
from mpiconv.planner.ways import Way, blocks

MOST_FUSED = 8
"""Blocks in a row that are fused at most."""


@dataclass(frozen=True)
class Stage:
    """Some units in a row that are split one way: what they cost by themselves, and where they lead.

    ``boxes[u]`` are the bounds (rank, 6) of what is computed of the u-th of its units; ``needs`` those of what each
    rank needs of the map before. ``each_s`` (rank,) is how long each rank computes until something changes hands
    again, ``rest_s`` what all take together from then on.
    """

    units: range
    way: int
    boxes: tuple[np.ndarray, ...]
    names: tuple[str, ...]
    each_s: np.ndarray
    rest_s: float
    needs: np.ndarray

    @property
    def made(self) -> np.ndarray:
        """(rank, 6): what each rank has of the map after it."""
        return self.boxes[-1]


class Stages:
    """Makes the stages, all ways at once.

    Attributes
    ----------
    blocks
        The body's units from cut point to cut point.
    boxes
        ``boxes[u]`` are the bounds (way, rank, 6) of what is computed of unit u.
    """

    def __init__(self, graph: Graph, ways: Sequence[Way], costs: Costs, links: Rates, most_fused: int) -> None:
        self._graph, self._ways, self._costs, self._links, self._most_fused = graph, ways, costs, links, most_fused
        self._needs, self.blocks = Needs(graph), blocks(graph)
        self.boxes = [np.stack([bounds(way.boxes[unit]) for way in ways]) for unit in range(len(graph.body))]

    def starting(self) -> list[list[Stage]]:
        """All stages, by the block that they begin with."""
        found: list[list[Stage]] = [[] for _ in self.blocks]
        for last in range(len(self.blocks)):
            for first, stages in self._ending(last):
                found[first] += stages
        return found

    def _ending(self, last: int) -> Iterator[tuple[int, list[Stage]]]:
        """All stages that end with a block, with the block that they begin with."""
        block = self.blocks[last]
        rows = [self.boxes[unit] for unit in block]
        each_s, *later = (self._costs(unit, boxes) for unit, boxes in zip(block, rows, strict=True))
        rest_s = sum((seconds.max(axis=-1) for seconds in later), np.zeros(len(self._ways)))
        needs = {unit: self._needs(unit, boxes) for unit, boxes in zip(block, rows, strict=True)}
        for unit in block[:-1]:
            rest_s = rest_s + self._links.seconds(rows[unit - block.start], self._read(unit, block, needs))
        names = [way.names[block.start : block.stop] for way in self._ways]
        yield last, self._staged(block, range(len(self._ways)), rows, names, each_s, rest_s, self._before(block, needs))
        yield from self._fused(last)

    def _fused(self, last: int) -> Iterator[tuple[int, list[Stage]]]:
        """Those in which all units but the last are computed so that no rank needs more of them than it has."""
        chosen = [number for number, way in enumerate(self._ways) if way.fuses]
        stop = self.blocks[last].stop
        rows = [self.boxes[stop - 1][chosen]]
        if not chosen:
            return
        needs = {stop - 1: self._needs(stop - 1, rows[0])}
        each_s, nothing = self._costs(stop - 1, rows[0]), np.zeros(len(chosen))
        for first in range(last, max(last - self._most_fused, -1), -1):
            units = range(self.blocks[first].start, stop)
            for unit in range(min(self.blocks[first].stop - 1, stop - 2), units.start - 1, -1):
                if needs_all(self._graph.units[unit + 1]) or max(self._graph.consumers(unit), default=stop) >= stop:
                    return
                rows.insert(0, self._read(unit, range(unit, stop), needs))
                needs[unit] = self._needs(unit, rows[0])
                each_s = each_s + self._costs(unit, rows[0])
            if any(self._graph.units[unit].opaque for unit in units):
                return
            if len(units) > 1:
                names = [("fused",) * (len(units) - 1) + (self._ways[way].names[stop - 1],) for way in chosen]
                needed = self._before(units, needs)
                yield first, self._staged(units, chosen, rows, names, each_s, nothing, needed)

    @staticmethod
    def _staged(
        units: range,
        ways_: Sequence[int],
        rows: Sequence[np.ndarray],
        names: Sequence[Sequence[str]],
        each_s: np.ndarray,
        rest_s: np.ndarray,
        needs: np.ndarray,
    ) -> list[Stage]:
        return [
            Stage(units, way, tuple(boxes[at] for boxes in rows), tuple(names[at]), each, float(rest), need)
            for at, (way, each, rest, need) in enumerate(zip(ways_, each_s, rest_s, needs, strict=True))
        ]

    def _read(self, source: int, units: range, needs: dict[int, list[np.ndarray]]) -> np.ndarray:
        """(way, rank, 6): what is needed of a map for these units, from what each needs of its inputs."""
        found = [
            need
            for unit in units
            if unit in needs
            for of, need in zip(self._graph.units[unit].inputs, needs[unit], strict=True)
            if of == source
        ]
        return hulls(found) if found else np.zeros_like(next(iter(needs.values()))[0])

    def _before(self, units: range, needs: dict[int, list[np.ndarray]]) -> np.ndarray:
        """(way, rank, 6): what is needed of the map before these units."""
        read = {source for unit in units for source in self._graph.units[unit].inputs if source < units.start}
        return self._read(max(read, default=PICTURE), units, needs)
