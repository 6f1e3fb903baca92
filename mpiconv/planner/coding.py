"""Smaller number formats of messages: the time to encode and decode, and plans that use them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from mpiconv.partition.exchange import Exchange
from mpiconv.partition.plan import FLOAT_BYTES, Plan
from mpiconv.partition.wire import FLOAT32, WIRES, Wire
from mpiconv.planner.cluster import Cluster

ENCODING = {"float16": 1.0, "bfloat16": 1.0, "int8": 4.0}
DECODING = {"float16": 1.0, "bfloat16": 1.0, "int8": 1.0}
"""How long it takes, as a multiple of reading the same numbers as float32 weights (``Device.weight_bytes_per_s``).

Measured on one core with AVX-512 whose memory gives 24 GB/s, pieces of 50 to 800 thousand numbers: 0.7 to 1.3 for
float16 and bfloat16 either way, 3.4 to 6.6 for int8 to encode and 1.0 to 1.5 to decode. Never measured on other ones.
"""


def coding_s(part: Exchange, wire: Wire, cluster: Cluster, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """(rank,) twice: s in which each rank encodes what it sends of an exchange, and decodes what it receives."""
    count = len(part.owned)
    if wire is FLOAT32 or not len(part.table):
        return np.zeros(count), np.zeros(count)
    sent, received = (np.bincount(part.table[:, end], part.sizes, count) for end in (0, 1))
    times = len(part.members) - 1 if part.pattern in ("allgatherv", "bcast") else 1  # there encoded once for all
    read_s = np.array([FLOAT_BYTES * batch / device.weight_bytes_per_s for device in cluster.devices])
    return ENCODING[wire.name] / times * sent * read_s, DECODING[wire.name] * received * read_s


def priced(cluster: Cluster, wire: Wire) -> Cluster:
    """A cluster where a float32 number takes as long as on the cluster one in another format does, coding included.

    Scales are left out. Between ranks of one host nothing changes: they share memory.
    """
    if wire is FLOAT32:
        return cluster
    links = []
    for link in cluster.links:
        coding = (ENCODING, link.source), (DECODING, link.target)
        per_byte = sum(each[wire.name] / cluster.devices[rank].weight_bytes_per_s for each, rank in coding)
        rate = 1 / (wire.item_bytes / FLOAT_BYTES / link.beta_bytes_per_s + per_byte)
        links.append(replace(link, beta_bytes_per_s=rate))
    return replace(cluster, links=tuple(links))


def smaller_formats(most_error: float) -> tuple[str, ...]:
    """The formats, the exact one first, that add no more than so much to a network's error by their tolerances."""
    rest = (wire.name for wire in WIRES.values() if wire is not FLOAT32 and wire.tolerance <= most_error)
    return (FLOAT32.name, *rest)


def in_format(proposals: Iterable[tuple[str, Plan]], wire: str) -> Iterator[tuple[str, Plan]]:
    """The same plans in a number format, those of which anything travels."""
    for name, plan in proposals:
        if any(len(spread.table) for spread in plan.exchanges.values()):
            yield f"{name}, {wire}", replace(plan, wire=wire)
