"""Where ranks run: their hosts, the memory that they see, their cores."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpi4py import MPI

from mpiconv.job.control import allgather_json
from mpiconv.job.host import cores_here, machine_id
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


def find_seats(team: Team) -> tuple[Seat, ...]:
    """Where each rank of a team runs. Collective."""
    machine = [MPI.Get_processor_name(), machine_id()]  # hosts of a lab may be one machine
    found = allgather_json(team, [machine, socket.gethostname(), cores_here(), in_order()])
    machines = [each[0] for each in found]
    return tuple(Seat(host, machines.index(machine), tuple(cores), ordered) for machine, host, cores, ordered in found)


def crowded(seats: Sequence[Seat]) -> bool:
    """Whether some ranks that see one memory are more than their cores."""
    memories = {seat.memory for seat in seats}
    there = [[seat.cores for seat in seats if seat.memory == memory] for memory in memories]
    return any(len({core for cores in ranks for core in cores}) < len(ranks) for ranks in there)
