"""Which of some plans are best in something: no other is as good in everything and better in one. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpiconv.planner.candidates import Candidate
from mpiconv.planner.cluster import Cluster


def front(values: Sequence[Sequence[float]]) -> list[int]:
    """The places of the rows than which no other has all numbers as small and one smaller; of equal rows the first.

    ``values`` are the rows; smaller numbers are better.
    """
    table = np.array(values, dtype=float)
    found = []
    for place, row in enumerate(table):
        as_good = (table <= row).all(axis=1)
        better = (table < row).any(axis=1)
        if not (as_good & better).any() and not as_good[:place].any():
            found.append(place)
    return found


def pareto(found: Sequence[Candidate], cluster: Cluster) -> list[Candidate]:
    """The plans of which no other is better in latency, pictures/s, energy and the largest memory on a device at once.

    In their order. Energy counts where it is known.
    """
    rows = []
    for each in found:
        energy = each.joules(cluster)
        rows.append(
            (each.latency_s, -each.pictures_per_s(cluster), sum(energy) if energy else 0.0, each.most_memory[1])
        )
    return [found[place] for place in front(rows)]
