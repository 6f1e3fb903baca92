"""The links of a cluster while messages are on them: each end carries one at a time, or a shared medium does. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpiconv.planner.cluster import Cluster


class Links:
    """When what is sent over the links of a cluster has arrived, one message after the other.

    Ranks whose devices have the same host name exchange maps through memory, which costs a copy. What messages take
    at either end comes on top: it delays a message, but keeps no link busy.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        devices, count = cluster.devices, len(cluster.devices)
        numbers = {host: number for number, host in enumerate(dict.fromkeys(device.host for device in devices))}
        hosts = np.array([numbers[device.host] for device in devices])
        self._near = hosts[:, None] == hosts[None]
        self._copy_bytes_per_s = np.array([device.weight_bytes_per_s for device in devices], dtype=float)
        self._message_s = np.array([device.message_s for device in devices])
        self._message_s_per_byte = np.array([device.message_s_per_byte for device in devices])
        apart = ~np.eye(count, dtype=bool)
        self._alpha_s, self._bytes_per_s = np.zeros((count, count)), np.ones((count, count))
        self._alpha_s[apart] = [link.alpha_s for link in cluster.links]
        self._bytes_per_s[apart] = [link.beta_bytes_per_s for link in cluster.links]
        self._shared = cluster.medium == "shared"
        self._out_free, self._in_free = [0.0] * count, [0.0] * count
        self._air_free = 0.0

    def carry(self, source: int, target: int, payload_bytes: float, ready_s: float) -> float:
        """Send a message that is ready at a time; when it has arrived."""
        pair = np.array([source]), np.array([target])
        return float(self.carry_all(*pair, np.array([payload_bytes]), np.array([ready_s]))[0])

    def carry_all(
        self, sources: np.ndarray, targets: np.ndarray, payload_bytes: np.ndarray, ready_s: np.ndarray
    ) -> np.ndarray:
        """Send messages, each from a source to a target, one after the other as they stand; when each has arrived.

        Messages from one source are ready at the same time.
        """
        near = self._near[sources, targets]
        extra = self._at_ends(sources, targets, payload_bytes)
        arrived = ready_s + payload_bytes / self._copy_bytes_per_s[sources] + extra
        if near.all():
            return np.asarray(arrived)
        far = np.flatnonzero(~near)
        sources, targets = sources[far], targets[far]
        takes = (payload_bytes[far] / self._bytes_per_s[sources, targets]).tolist()
        out_free, in_free, air_free = self._out_free, self._in_free, self._air_free
        for source, ready in dict(zip(sources.tolist(), ready_s[far].tolist(), strict=True)).items():
            out_free[source] = max(out_free[source], ready)
        ends = []
        for source, target, taken in zip(sources.tolist(), targets.tolist(), takes, strict=True):
            begin = out_free[source]
            if in_free[target] > begin:  # noqa: PLR1730 - max takes twice as long, here millions of times
                begin = in_free[target]
            if air_free > begin:  # noqa: PLR1730
                begin = air_free
            end = out_free[source] = in_free[target] = begin + taken
            if self._shared:
                air_free = end
            ends.append(end)
        self._air_free = air_free
        arrived[far] = ends + self._alpha_s[sources, targets] + extra[far]
        return np.asarray(arrived)

    def _at_ends(self, sources: Any, targets: Any, payload_bytes: Any) -> np.ndarray:
        """S that messages take beyond their links, of both ends the longer."""
        each, per_byte = self._message_s, self._message_s_per_byte
        takes = np.maximum(each[sources], each[targets])
        return np.asarray(takes + payload_bytes * np.maximum(per_byte[sources], per_byte[targets]))

    def spread(self, source: int, targets: np.ndarray, payload_bytes: float, ready_s: float) -> np.ndarray:
        """Send a message once to several ranks (multicast); when each of them has it.

        It takes the sender's end of its link once, and that of every receiver; a switch keeps what a receiver's link
        cannot take yet. On a shared medium it is on the air once, at the rate of the slowest link.
        """
        extra = self._at_ends(source, targets, payload_bytes)
        arrived = ready_s + payload_bytes / self._copy_bytes_per_s[source] + extra
        far = np.flatnonzero(~self._near[source, targets])
        if not len(far):
            return np.asarray(arrived)
        there = targets[far]
        takes = payload_bytes / self._bytes_per_s[source, there]
        begin = max(ready_s, self._out_free[source], self._air_free)
        free = np.array([self._in_free[target] for target in there])
        if self._shared:
            begin = max(begin, free.max())
            ends = np.full(len(there), begin + takes.max())
            self._air_free = float(ends[0])
        else:
            ends = np.maximum(begin, free) + takes
        self._out_free[source] = float(begin + takes.max())
        for target, end in zip(there.tolist(), ends.tolist(), strict=True):
            self._in_free[target] = end
        arrived[far] = ends + self._alpha_s[source, there] + extra[far]
        return np.asarray(arrived)
