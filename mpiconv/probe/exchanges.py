"""What an exchange of the engine takes beyond its links: packing, copies, waking up; by the run's own exchangers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from mpiconv.job.control import allgather_json
from mpiconv.job.waiting import Awaited
from mpiconv.measure.estimate import undisturbed
from mpiconv.partition import Box, Exchange, Span
from mpiconv.partition.exchange import exchange
from mpiconv.partition.plan import FLOAT_BYTES
from mpiconv.partition.schedule import Held, Move
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.links import Links
from mpiconv.probe.speed import wait_quietly
from mpiconv.runtime.exchange.base import MEDIA, medium_of
from mpiconv.runtime.exchange.parts import Memory
from mpiconv.runtime.exchange.point_to_point import ByMessages
from mpiconv.runtime.settings import Settings

if TYPE_CHECKING:
    from mpiconv.job.team import Team

CHANNELS = 64
WIDTH = 32
ROWS = (4, 16, 64)
"""Maps of CHANNELS x rows x WIDTH, of which each of two ranks has half."""

REPEATS = 5
LONGEST_S = 0.03
"""Exchanges that take longer by the links alone are left out: beyond them, little counts there."""

COLD_BYTES = 2**22
"""What is written before each exchange, so that it finds the caches as between two units."""


def with_exchanges(team: Team, cluster: Cluster, wait: str = "auto") -> Cluster:
    """The cluster with what exchanges take on its devices beyond their links. Collective; the same on every rank.

    Rank 0 exchanges maps with each of the others in turn, all of it (as kernels do) and halos (as rows do). What that
    takes longer than the links alone would is a time per message and one per B. Rank 0 gets the least of the others'.

    Parameters
    ----------
    cluster
        As ``probe`` found it, one device per rank.
    wait
        How a run is to wait for messages, as ``--wait`` says.
    """
    mode = wait if wait != "auto" else "sleep" if team.crowded else "spin"
    fits: list[tuple[float, float]] = []
    for other in range(1, team.size):
        wait_quietly(team)
        found = _between(team, cluster, other, mode) if team.rank in (0, other) else []
        fits.append(overhead([(size, took) for size, took in allgather_json(team, found)[0]]))
    if not fits:
        return cluster
    devices = [
        replace(device, message_s=float(f"{each:.4g}"), message_s_per_byte=float(f"{per_byte:.4g}"))
        for device, (each, per_byte) in zip(cluster.devices, [min(fits), *fits], strict=True)
    ]
    return replace(cluster, devices=tuple(devices))


def overhead(found: list[tuple[float, float]]) -> tuple[float, float]:
    """S per message and s per B from (B, s) of messages: what the least take, and what the largest take more per B."""
    if not found:
        return 0.0, 0.0
    small, large = min(size for size, _ in found), max(size for size, _ in found)
    least, most = (median(took for size, took in found if size == wanted) for wanted in (small, large))
    per_byte = max(most - least, 0.0) / (large - small) if large > small else 0.0
    return max(least - small * per_byte, 0.0), per_byte


def _between(team: Team, cluster: Cluster, other: int, mode: str) -> list[tuple[int, float]]:
    """(B of a message, s beyond what the links take) of exchanges between rank 0 and another. Collective over them."""
    pair = team.part((0, other))
    waiting, memory = pair.waiting(mode), Memory(channels_last=True)
    found = []
    cold = torch.zeros(COLD_BYTES // FLOAT_BYTES)
    for spread in exchanges():
        size = FLOAT_BYTES * int(spread.sizes.max())
        alone_s = _by_links(cluster, spread, other)
        if alone_s > LONGEST_S:
            continue
        own = torch.zeros(1, *spread.owned[pair.rank].shape).contiguous(memory_format=torch.channels_last)
        held = tuple(Held.of(spread, rank) for rank in (0, 1))
        moves = {0: Move(spread, (spread,), held, medium_of(spread, pair, Settings()))}
        made = MEDIA[moves[0].medium].exchangers(moves, 1, pair, memory)
        (mover,) = made.get(0) or ByMessages().exchangers(moves, 1, pair, memory)[0]
        took = []
        for _ in range(REPEATS + 1):
            cold.add_(1)
            begin = perf_counter()
            if mover.room is not None and mover.room.places:
                waiting.all(Awaited(flags=[mover.room]))
            waiting.all(mover.start(own))
            mover.finish()
            took.append(perf_counter() - begin)
            mover.release()
        mover.close()
        both = allgather_json(pair, took[1:])
        later = [min(each) for each in zip(*both, strict=True)]  # without waiting for the other to begin
        found.append((size, undisturbed(later) / cluster.dilation - alone_s))
    return found


def exchanges() -> Iterator[Exchange]:
    """Exchanges between two ranks: of all of a map, and of a row on either side of a cut."""
    for rows in ROWS:
        whole = Box(Span(0, CHANNELS), Span(0, rows), Span(0, WIDTH))
        halves = tuple(replace(whole, channels=Span(low, low + CHANNELS // 2)) for low in (0, CHANNELS // 2))
        yield exchange(halves, (whole, whole), "the probe")
        bands = tuple(replace(whole, rows=Span(low, low + rows // 2)) for low in (0, rows // 2))
        wider = (replace(whole, rows=Span(0, rows // 2 + 1)), replace(whole, rows=Span(rows // 2 - 1, rows)))
        yield exchange(bands, wider, "the probe")


def _by_links(cluster: Cluster, spread: Exchange, other: int) -> float:
    """S that an exchange between rank 0 and another takes by the links alone."""
    plain = replace(
        cluster, devices=tuple(replace(device, message_s=0.0, message_s_per_byte=0.0) for device in cluster.devices)
    )
    links, ranks = Links(plain), (0, other)
    return max(
        links.carry(ranks[each.source], ranks[each.target], FLOAT_BYTES * each.box.size, 0.0)
        for each in spread.transfers
    )
