"""Whether links keep their rates while others are in use, or all share one medium."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from mpi4py import MPI

from mpiconv.job.control import allgather_json
from mpiconv.measure.estimate import undisturbed
from mpiconv.probe.links import TAG, LinkProbe, answer, send_timed, stop_answering
from mpiconv.probe.speed import wait_quietly

if TYPE_CHECKING:
    from mpiconv.job.team import Team

TALK_S = 0.25
SHARED_BELOW = 0.75
LEAST_STEPS = 8
MOST_BYTES = 2**26

TELLING = 1.2
"""Two media are told apart in a ring only where what it would take over them differs by this factor."""

Verdict = tuple[str, float | None, str]
"""The medium, the part of its rate that a link keeps while others talk, and why the medium is unknown, if it is."""


def judge_pairs(ratios: Sequence[float]) -> Verdict:
    """What the medium is, from the part of its rate that each of two disjoint pairs keeps while the other talks."""
    ratio = min(ratios)
    return ("shared" if ratio < SHARED_BELOW else "switch"), ratio, ""


def judge_ring(alone_s: Sequence[float], together_s: float) -> Verdict:
    """What the medium is, from what a message takes over each link of a ring of three alone, and all three at once.

    At once they take as long as the slowest on a switch; as all in a row on a shared medium; as the slowest two in a
    row on a switch whose links carry one direction at a time (half duplex), which is not called a shared medium.
    """
    switch_s, shared_s = max(alone_s), sum(alone_s)
    half_s = shared_s - min(alone_s)
    ratio = min(switch_s / together_s, 1.0)
    if ratio >= SHARED_BELOW:
        return "switch", ratio, ""
    keeps = f"in a ring of three the slowest link keeps {100 * ratio:.0f} % of its rate"
    if together_s < math.sqrt(half_s * shared_s):
        return "unknown", None, f"{keeps}: they may carry one direction at a time (half duplex), or be disturbed"
    if shared_s < TELLING * half_s:
        return "unknown", None, f"{keeps}: they share a medium, or carry one direction at a time (half duplex)"
    return "shared", ratio, ""


class MediumProbe:
    """Measures how links of different hosts get on: two pairs of four hosts, or a ring of three, round by round.

    Of two pairs each talks alone, then both at once. In a ring of three every host sends to the next. Making one, and
    every ``round``, is collective.
    """

    def __init__(self, team: Team, links: LinkProbe, hosts: list[str]) -> None:
        self.team = team
        self.found: list[list[float]] = []
        self.pairs: tuple[tuple[int, int], ...] = ()
        ranks = sorted(hosts.index(host) for host in set(hosts))
        self.unknown = ""
        if team.size < 3:
            self.unknown = f"{team.size} ranks: whether links are in each other's way takes 3"
        elif len(ranks) < 3:
            self.unknown = f"the ranks are on {len(ranks)} hosts: whether links are in each other's way takes 3"
        else:
            a, b, c, *more = ranks
            self.pairs = ((a, b), (c, more[0])) if more else ((a, b), (b, c), (c, a))
            self._choose_sizes(links)

    def _choose_sizes(self, links: LinkProbe) -> None:
        """For each source the longest message that takes no large part of the time it talks; in a ring all alike."""
        mine = {}
        for target, sizes in links.seconds.items():
            size = max(size for size, rounds in sizes.items() if size == 1 or median(rounds) < TALK_S / LEAST_STEPS)
            mine[target] = size, median(sizes[size])
        everyone = allgather_json(self.team, mine)
        chosen = {source: everyone[source][str(target)] for source, target in self.pairs}
        self.sizes = {source: int(size) for source, (size, _) in chosen.items()}
        if len(self.pairs) == 3:
            self.sizes = dict.fromkeys(self.sizes, min(self.sizes.values()))
            steps = math.ceil(TALK_S / max(seconds for _, seconds in chosen.values()))
            self.steps = min(steps, MOST_BYTES // next(iter(self.sizes.values())))

    def round(self) -> None:
        """Measure each pair alone, then all at once. Collective."""
        if self.unknown:
            return
        talk = self._pass_on if len(self.pairs) == 3 else self._talk
        self.found.append([talk(pairs) for pairs in (*([pair] for pair in self.pairs), self.pairs)])

    def _talk(self, pairs: Sequence[tuple[int, int]]) -> float:
        """The rate in B/s of this rank's messages while these pairs talk; NaN for a rank that sends none."""
        wait_quietly(self.team)
        rate = math.nan
        for source, target in pairs:
            if self.team.rank == source:
                size, count, begin = self.sizes[source], 0, perf_counter()
                while (elapsed := perf_counter() - begin) < TALK_S:
                    send_timed(self.team.comm, target, size)
                    count += 1
                rate = size * count / elapsed
                stop_answering(self.team.comm, target)
            elif self.team.rank == target:
                answer(self.team.comm, source)
        return rate

    def _pass_on(self, pairs: Sequence[tuple[int, int]]) -> float:
        """S that a message takes this rank while these ranks send to those; 0 for a rank that has no part in it."""
        wait_quietly(self.team)
        rank, size = self.team.rank, next(iter(self.sizes.values()))
        after, before = dict(pairs), {target: source for source, target in pairs}
        if rank not in after and rank not in before:
            return 0.0
        sent, received = np.zeros(size, np.uint8), np.empty((self.steps, size), np.uint8)
        requests = []
        begin = perf_counter()
        if rank in before:
            requests += [self.team.comm.Irecv(row, before[rank], TAG) for row in received]
        if rank in after:  # all at once: what says that a message may come would wait behind another
            requests += [self.team.comm.Isend(sent, after[rank], TAG) for _ in range(self.steps)]
        MPI.Request.Waitall(requests)
        return float((perf_counter() - begin) / self.steps)

    def verdict(self) -> Verdict:
        """What the medium is, the same on every rank. Collective."""
        if self.unknown:
            return "unknown", None, self.unknown
        everyone = allgather_json(self.team, self.found)
        if len(self.pairs) == 3:
            slowest = np.max([everyone[rank] for rank, _ in self.pairs], axis=0)
            *alone, together = (undisturbed(rounds) for rounds in slowest.T.tolist())
            return judge_ring(alone, together)
        sources = enumerate(source for source, _ in self.pairs)
        return judge_pairs([median(row[-1] / row[number] for row in everyone[source]) for number, source in sources])
