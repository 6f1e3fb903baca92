"""The hosts that a job may use, from a hostfile or an allocation of SLURM, and which ranks are on those that answer."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mpiconv.errors import MpiconvError
from mpiconv.probe.preflight import read_hosts

NODES, TASKS = "SLURM_JOB_NODELIST", "SLURM_TASKS_PER_NODE"


@dataclass(frozen=True)
class Place:
    """A line of a hostfile: the host, its ranks, and the line."""

    host: str
    slots: int
    line: str


def of_hostfile(path: str | Path) -> tuple[Place, ...]:
    """The lines of a hostfile of Open MPI or MPICH; one without a number of slots counts as one.

    Raises MpiconvError where it cannot be read, or has a line that mpirun refuses.
    """
    known = set(read_hosts(path))
    places = []
    for text in Path(path).read_text(encoding="utf-8").split("\n"):
        line = text.partition("#")[0].strip()
        if not line:
            continue
        word = line.split()[0]
        host = word if word in known else word.rpartition(":")[0]
        found = re.search(r"\bslots\s*=\s*(\d+)", line) or re.search(r":(\d+)$", word.removeprefix(host))
        places.append(Place(host, int(found[1]) if found else 1, line))
    return tuple(places)


def of_slurm(environment: Mapping[str, str]) -> tuple[Place, ...]:
    """The hosts of the SLURM job around, with the tasks that each has; empty where there is none."""
    hosts = expanded(environment.get(NODES, ""))
    slots = tasks(environment.get(TASKS, ""), len(hosts))
    return tuple(Place(host, n, f"{host} slots={n}") for host, n in zip(hosts, slots, strict=True))


def expanded(nodes: str) -> list[str]:
    """SLURM's short form of a list of hosts, like ``a[1-3,07],b``, in full.

    Raises MpiconvError where it is none.
    """
    hosts: list[str] = []
    for word in re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", nodes):
        parts = [_numbers(part) for part in re.split(r"(\[[^\[\]]*\])", word)]
        hosts += ["".join(each) for each in itertools.product(*parts)]
    return hosts


def _numbers(part: str) -> list[str]:
    if not part.startswith("["):
        return [part]
    found = []
    for piece in part[1:-1].split(","):
        lo, _, hi = piece.partition("-")
        if not lo.isdecimal() or not (hi or lo).isdecimal():
            raise MpiconvError(f"{NODES} has {part} in it: numbers like [1-3,7] are wanted")
        found += [f"{number:0{len(lo)}}" for number in range(int(lo), int(hi or lo) + 1)]
    return found


def tasks(text: str, hosts: int) -> list[int]:
    """SLURM's short form of tasks per host, like ``2(x3),1``, in full; one per host where it says nothing."""
    found: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        found += [int(count)] * int(times or 1)
    return (found + [1] * hosts)[:hosts]


def ranks_left(places: Iterable[Place], living: set[str], ranks: int | None) -> list[int]:
    """The numbers of the ranks on hosts that answer, where hosts are filled in order.

    ``ranks`` is how many were asked for in all; None: as many as there are slots. More than there are slots are spread
    as if every host had as many times more.
    """
    seats = [place.host for place in places for _ in range(place.slots)]
    count = len(seats) if ranks is None else ranks
    times = -(-count // len(seats)) if seats else 0
    spread = [host for host in seats for _ in range(times)][:count]
    return [rank for rank, host in enumerate(spread) if host in living]
