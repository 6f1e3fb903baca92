"""How long maps take to change hands on a cluster, for many pairs of layouts at once. Pure."""

from __future__ import annotations

import numpy as np

from mpiconv.partition.bounds import common, common_sizes, sizes
from mpiconv.partition.plan import FLOAT_BYTES
from mpiconv.partition.schemes import ROOT
from mpiconv.planner.bounds import in_turn
from mpiconv.planner.cluster import Cluster, kinds_of

FEW = 24
"""The most ranks that are all looked at. Of more: the root, one of each kind, and others evenly between them."""

MIXED = np.array(
    [
        0x9E3779B97F4A7C15,
        0xC2B2AE3D27D4EB4F,
        0x165667B19E3779F9,
        0xD6E8FEB86659FD93,
        0xA0761D6478BD642F,
        0xE7037ED1A0B428DB,
    ],
    np.uint64,
)
"""Large odd numbers: bounds times these have equal sums for equal boxes, and hardly ever for others."""

AT_ONCE = 250_000
"""Pairs of ranks that are compared at a time, for the memory that this takes."""


class Rates:
    """What it takes to have maps change hands: every rank sends and receives one message at a time.

    Of more than ``FEW`` ranks those of one kind are taken to be alike, so that some of each are looked at, and what
    goes over a shared medium is counted as if no two ranks had the same part of a map. ``seen`` are those.
    """

    def __init__(self, cluster: Cluster, batch: int) -> None:
        devices, count = cluster.devices, len(cluster.devices)
        hosts = np.unique([device.host for device in devices], return_inverse=True)[1]
        self._near = hosts[:, None] == hosts[None]
        self._shared, self._multicast = cluster.medium == "shared", cluster.medium == "multicast"
        alpha_s, per_element_s = np.zeros((count, count)), np.zeros((count, count))
        off = ~np.eye(count, dtype=bool)
        alpha_s[off] = [link.alpha_s for link in cluster.links]
        per_element_s[off] = [FLOAT_BYTES * batch / link.beta_bytes_per_s for link in cluster.links]
        copying_s = np.array([FLOAT_BYTES * batch / device.weight_bytes_per_s for device in devices])
        self._alpha_s = np.where(self._near, 0.0, alpha_s)
        self._per_element_s = np.where(self._near, copying_s[:, None], per_element_s) * off
        self.seen = np.arange(count) if count <= FEW else _some(cluster)

    def between(self, own: np.ndarray, need: np.ndarray) -> np.ndarray:
        """(a, b, seen rank): ``waits`` from each of some layouts (a, rank, 6) to each of some needs (b, rank, 6)."""
        pairs = len(own) * len(self.seen) * own.shape[-2]
        return in_turn(len(need), max(AT_ONCE // pairs, 1), lambda part: self.waits(own[:, None], need[None, part]))

    def seconds(self, own: np.ndarray, need: np.ndarray) -> np.ndarray:
        """(...): s until every rank has what it needs; the arguments as of ``waits``."""
        return np.asarray(self.waits(own, need).max(axis=-1))

    def waits(self, own: np.ndarray, need: np.ndarray) -> np.ndarray:
        """S until each rank in ``seen`` has what it needs and has sent what others do.

        A rank that needs something waits until those that send to it have sent all; on a shared medium until all is
        sent. Of one rank's map that several need all of, each hands on what it has, as in a binomial tree. By multicast
        what several need alike counts once at the sender, at the rate of its slowest receiver.

        Parameters
        ----------
        own, need
            Bounds (..., rank, 6) of what each rank has and needs of a map, broadcast against each other. Ranks have
            parts that do not overlap, or all the same: then whoever needs it gets it from the nearest.
        """
        seen, one = self.seen, _only_from(own)
        out = common_sizes(own[..., seen, None, :], need[..., None, :, :])
        if one is not None:
            out = out * one[..., seen, :]
        out[..., np.arange(len(seen)), seen] = 0
        taken = out * self._per_element_s[seen]
        sent = taken.sum(axis=-1)
        targets = (out > 0).sum(axis=-1)
        same = out.max(axis=-1) * targets == out.sum(axis=-1)
        tree = (targets > 1) & same & ((targets > 0).sum(axis=-1, keepdims=True) == 1)
        rounds = np.ceil(np.log2(targets + 1.0))
        sent = np.where(tree, sent * rounds / np.maximum(targets, 1), sent)
        if self._multicast:
            sent = _once(common(own[..., seen, None, :], need[..., None, :, :]), taken)
        everyone = len(seen) == len(self._near)
        received, far = taken.sum(axis=-2), (taken * ~self._near[seen]).sum(axis=(-1, -2)) if self._shared else None
        if not everyone:
            into = common_sizes(own[..., :, None, :], need[..., None, seen, :])
            if one is not None:
                into = into * one[..., seen]
            into[..., seen, np.arange(len(seen))] = 0
            received = (into * self._per_element_s[:, seen]).sum(axis=-2)
            far = self._all(own, need) if self._shared else None
        among = out[..., seen] > 0  # (..., source, target)
        senders = np.where(among, sent[..., None], 0.0).max(axis=-2)
        alphas = np.where(among, self._alpha_s[np.ix_(seen, seen)], 0.0).max(axis=-2)
        arrived = np.maximum(received, senders)
        if far is not None:
            arrived = np.maximum(arrived, far[..., None])
        return np.asarray(np.maximum(np.where(received > 0, arrived + alphas, 0.0), sent))

    def _all(self, own: np.ndarray, need: np.ndarray) -> np.ndarray:
        """S that all of a map takes on a shared medium, for each rank what it needs and has not."""
        each = self._per_element_s.sum(axis=0) / max(len(self._near) - 1, 1)
        return np.asarray(((sizes(need) - common_sizes(own, need)) * each).sum(axis=-1))


def _only_from(own: np.ndarray) -> np.ndarray | None:
    """(..., source, target): whether a rank gets of a layout from this rank alone; None where no two have the same."""
    has = own[..., 1] > 0
    first = np.take_along_axis(own, has.argmax(axis=-1)[..., None, None], axis=-2)
    alike = ((own == first).all(axis=-1) == has).all(axis=-1) & (has.sum(axis=-1) > 1)
    if not alike.any():
        return None
    numbers = np.arange(own.shape[-2])
    apart = 2 * np.abs(numbers[:, None] - numbers) + (numbers[:, None] > numbers)  # of two as near the lower
    nearest = np.where(has[..., None], apart, 2 * len(numbers)).argmin(axis=-2)
    return np.asarray((nearest[..., None, :] == numbers[:, None]) | ~alike[..., None, None])


def _once(boxes: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """(..., source): s in which each rank sends boxes with the bounds (..., source, target, 6), equal ones once.

    ``taken`` (..., source, target) is what each takes; of equal ones the longest counts.
    """
    marks = (boxes.astype(np.uint64) * MIXED).sum(axis=-1, dtype=np.uint64)
    order = np.lexsort((taken, marks), axis=-1)
    marks, taken = (np.take_along_axis(each, order, axis=-1) for each in (marks, taken))
    last = np.ones(marks.shape, dtype=bool)
    last[..., :-1] = marks[..., 1:] != marks[..., :-1]
    return np.asarray((taken * last).sum(axis=-1))


def _some(cluster: Cluster) -> np.ndarray:
    """The ranks that are looked at: the root, the next two, the first of every kind, and some evenly between."""
    count = len(cluster.devices)
    return np.unique(
        [ROOT, 1, 2, count - 1, *kinds_of(cluster.devices), *np.linspace(0, count - 1, FEW // 2).astype(int)]
    )
