"""Exchanges and messages worked out one by one, as slowly as they are simple: what the quick ways are held against."""

from __future__ import annotations

import numpy as np

from mpiconv.partition.box import union_size
from mpiconv.planner.simulation import EAGER_BYTES


def transfers(owned, needed):
    """Every (source, target, box): what a rank needs and does not own, piece by piece from the nearest owner."""
    found = []
    for target, need in enumerate(needed):
        missing = need.minus(owned[target])
        for source in sorted(range(len(owned)), key=lambda rank: (abs(rank - target), rank)):
            if source == target:
                continue
            cuts = [piece & owned[source] for piece in missing]
            found += [(source, target, cut) for cut in cuts if cut]
            missing = [part for piece, cut in zip(missing, cuts, strict=True) for part in piece.minus(cut)]
        assert not missing
    return found


def pattern(owned, needed, moved):
    if not moved:
        return "none"
    sources, targets = {s for s, _, _ in moved}, {t for _, t, _ in moved}
    members = sorted(sources | targets)
    made = [owned[rank] & needed[rank] for rank in members]
    if (
        len(sources) > 1
        and len({needed[rank] for rank in members}) == 1
        and union_size(made) == sum(box.size for box in made)
    ):
        return "allgatherv"
    if len(sources) == 1 and targets != {0}:
        pieces = [[box for _, t, box in moved if t == rank] for rank in targets]
        return "bcast" if all(boxes == pieces[0] for boxes in pieces) else "scatterv"
    if len(targets) == 1:
        return "gatherv"
    halo = all((b.channels, b.columns) == (needed[t].channels, needed[t].columns) for _, t, b in moved)
    return "sendrecv" if halo else "p2p"


class Wires:
    """Both ends of every link, or the air, and until when they are busy."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.out, self.into, self.air = [0.0] * len(cluster.devices), [0.0] * len(cluster.devices), 0.0

    def carry(self, source, target, size, ready):
        devices = self.cluster.devices
        if devices[source].host == devices[target].host:
            return ready + size / devices[source].weight_bytes_per_s
        link = self.cluster.link(source, target)
        begin = max(ready, self.out[source], self.into[target])
        if self.cluster.medium == "shared":
            begin = max(begin, self.air)
        self.out[source] = self.into[target] = self.air = begin + size / link.beta_bytes_per_s
        return self.air + link.alpha_s


def exchanged(spread, ready, wires, batch):
    """When every rank has what it needs, and when what it sends has left it."""
    count = len(ready)
    arrived, sent = np.zeros(count), np.zeros(count)
    messages = {}
    for t in spread.transfers:
        messages[t.source, t.target] = messages.get((t.source, t.target), 0) + 4 * batch * t.box.size
    if spread.pattern == "bcast":
        (source,) = {s for s, _ in messages}
        have = [(float(ready[source]), source)]
        for target in sorted((t for _, t in messages), key=lambda rank: (rank - source) % count):
            when, giver = min(have)
            start = when if giver == source else max(when, ready[target])
            arrived[target] = wires.carry(giver, target, messages[source, target], start)
            have[have.index((when, giver))] = (arrived[target], giver)
            have.append((arrived[target], target))
        return arrived, sent

    def turn(pair):
        distance = (pair[1] - pair[0]) % count
        many = spread.pattern in ("allgatherv", "p2p")
        return (distance, ready[pair[0]], pair[0]) if many else (ready[pair[0]], distance, pair[0])

    for source, target in sorted(messages, key=turn):
        end = wires.carry(source, target, messages[source, target], ready[source])
        arrived[target] = max(arrived[target], end)
        if messages[source, target] > EAGER_BYTES:
            sent[source] = max(sent[source], end)
    return arrived, sent
