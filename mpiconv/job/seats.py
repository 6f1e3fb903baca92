"""Where ranks run: their hosts, the memory that they see, their cores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpi4py import MPI

from mpiconv.job.control import allgather_json
from mpiconv.job.host import cores_here
from mpiconv.job.shared_memory import in_order

if TYPE_CHECKING:
    from mpiconv.job.team import Team


@dataclass(frozen=True)
class Seat:
    """Where a rank runs.

    ``host`` is its name; ``memory`` a number that ranks have in common that see the same memory; ``cores`` are the
    numbers of those that it may use; ``ordered`` says whether others see its writes in their order.
    """

    host: str
    memory: int
    cores: tuple[int, ...]
    ordered: bool


def find_seats(team: Team, first: int, hosts: Sequence[str]) -> tuple[Seat, ...]:
    """Where each rank of a team runs; ``first`` is the first rank that sees the same memory as this one. Collective."""
    mine = [first, MPI.Get_processor_name(), cores_here(), in_order()]  # hosts of a lab may be one machine
    found = allgather_json(team, mine)
    memories = [each[:2] for each in found]
    return tuple(
        Seat(host, memories.index(each[:2]), tuple(each[2]), each[3]) for host, each in zip(hosts, found, strict=True)
    )
