"""Limits on the memory and energy that a plan may take, and what to say where no plan keeps within them. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mpiconv.errors import MpiconvError
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.memory import PROCESS_BYTES, Memory

UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


@dataclass(frozen=True)
class Limits:
    """The most that the network may take on each device, in B; infinite for any amount.

    ``names`` are what the devices are called in messages.
    """

    most_bytes: tuple[float, ...]
    names: tuple[str, ...]

    def broken(self, memories: Sequence[Memory]) -> int | None:
        """The rank that needs the largest multiple of its limit, more than all of it; None where all have room."""
        pairs = zip(memories, self.most_bytes, strict=True)
        parts = [memory.peak_bytes / most if most else math.inf * (memory.peak_bytes > 0) for memory, most in pairs]
        worst = max(range(len(parts)), key=lambda rank: parts[rank])
        return worst if parts[worst] > 1 else None

    def ratio(self, memories: Sequence[Memory]) -> float:
        """How many times its limit the rank that ``broken`` names needs; 1 where all have room."""
        rank = self.broken(memories)
        if rank is None:
            return 1.0
        return memories[rank].peak_bytes / self.most_bytes[rank] if self.most_bytes[rank] else math.inf

    def refusal(self, what: str, name: str, memories: Sequence[Memory]) -> str:
        """The sentence on a plan called ``name`` that breaks a limit, of all those for ``what`` the nearest."""
        rank = self.broken(memories) or 0
        device, most = self.names[rank], sized(self.most_bytes[rank])
        return f"{what} keeps {device} within {most}: {name} needs {sized(memories[rank].peak_bytes)} there"


def limits_for(cluster: Cluster, names: Sequence[str], asked: Sequence[float | None] | None = None) -> Limits:
    """What each device of a cluster may give to a network.

    Parameters
    ----------
    cluster
        A device's memory is shared by all ranks of its host, and each of them needs ``PROCESS_BYTES`` by itself.
    names
        What the devices are called.
    asked
        B for each rank, infinite for no limit, None for what its memory allows.
    """
    hosts = [device.host for device in cluster.devices]
    most = []
    for rank, device in enumerate(cluster.devices):
        wanted = asked[rank] if asked is not None else None
        room = device.memory_bytes / hosts.count(device.host) - PROCESS_BYTES
        most.append(wanted if wanted is not None else max(room, 0.0) if device.memory_bytes else math.inf)
    return Limits(tuple(most), tuple(names))


def check_limits(limits: Limits, memories: Sequence[Memory], what: str) -> None:
    """Raise MpiconvError for a plan, called ``what``, that needs more than a limit."""
    rank = limits.broken(memories)
    if rank is not None:
        raise MpiconvError(
            f"{what} needs {sized(memories[rank].peak_bytes)} on {limits.names[rank]}, where the memory limit is "
            f"{sized(limits.most_bytes[rank])}: take more ranks, other shares, or --scheme auto, which looks for a "
            "plan that fits"
        )


def energy_refusal(what: str, name: str, joules: float, most_j: float) -> str:
    """The sentence on a plan called ``name`` that takes more J than a picture may, of all for ``what`` the nearest."""
    return (
        f"{what} keeps within the energy limit of {most_j:.3g} J a picture: the nearest, {name}, takes {joules:.3g} J, "
        f"{joules - most_j:.3g} J more"
    )


def sized(number: float) -> str:
    """A number of B in the largest unit that it fills: ``64 MiB``, ``1.5 GiB``."""
    for unit, size in UNITS:
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} B"
