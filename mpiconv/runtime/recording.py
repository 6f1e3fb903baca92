"""Each rank's measurements while it runs, and their collection on the root."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mpiconv.job.clocks import on_root_clock, read_clocks
from mpiconv.job.control import allgather_json
from mpiconv.job.together import gathered
from mpiconv.job.waiting import wait
from mpiconv.job.watch import Place
from mpiconv.measure.power import find_meter
from mpiconv.measure.record import PER_RANK, TEXTS, Record, merge, peak_rss_bytes, undilated
from mpiconv.partition.plan import plans_of
from mpiconv.partition.schemes import ROOT
from mpiconv.runtime.counts import COUNTED, Counts
from mpiconv.runtime.faults import Fault, Slow, happen
from mpiconv.runtime.stamps import Stamps

if TYPE_CHECKING:
    from mpiconv.job.team import Team
    from mpiconv.partition import Plan
    from mpiconv.runtime.builder import Built


class Recorder:
    """One rank's stamps and counts since the last ``reset``, and the record of all ranks from them.

    ``begun`` is how many frames it began in all, whatever was reset since; ``faults`` are what happens to it then.
    """

    def __init__(self, team: Team, built: Built) -> None:
        self.team = team
        self._paused, self.begun = False, 0
        self.faults: Sequence[Slow | Fault] = ()
        hosts = team.hosts
        self._meter, self.no_meter = find_meter() if hosts.index(hosts[team.rank]) == team.rank else (None, "")
        self.adopt(built)

    def adopt(self, built: Built) -> None:
        """Measure another plan from now on; what was measured is forgotten."""
        self.weight_bytes = built.weight_bytes
        self._counts = Counts(plans_of(built.plan), built.counters)
        self._paced = built.paced
        self._stamps = Stamps(2 * len(built.plan.graph.units) + 1)

    def add(self, number: int, stamps: list[float], latency_s: float, plan: Plan) -> None:
        """Note frame ``number``: its start, the ends of every unit's exchange and computing; what it took here.

        And by which plan it went.
        """
        self._stamps.add(number, stamps, latency_s)
        self._counts.ran(plan)

    def last(self, count: int) -> np.ndarray:
        """(count, 2 x units + 2): the stamps and the latency of the last frames; NaN where there were fewer."""
        return self._stamps.last(count)

    @property
    def measured(self) -> int:
        """How many frames were run since the last ``reset``."""
        return self._stamps.added

    def reset(self) -> None:
        """Forget what was measured so far, compare clocks, start power meters. Collective."""
        self._stamps.clear()
        self._counts.clear()
        self._paused = False
        self._clocks = read_clocks(self.team)
        if self._meter is not None:
            self._meter.start()

    def close(self) -> None:
        """Stop the power meter."""
        if self._meter is not None:
            self._meter.stop()

    def go_on(self) -> None:
        """A frame starts: go on measuring energy, which ``record`` had paused."""
        if self.faults:
            happen(self.faults, self.begun)
        for paced in self._paced:
            paced.frame = self.begun
        self.begun += 1
        if self._paused and self._meter is not None:
            self._meter.resume()
        self._paused = False

    def record(self, pace: float) -> Record:
        """What this rank measured, its times on its own clock."""
        rank, counts = self.team.rank, self._counts
        ends, latency_s = self._stamps.in_order()
        ends = ends[:, np.newaxis]
        stamps = np.stack([ends[..., :-1:2], ends[..., 1::2], ends[..., 2::2]], axis=-1)
        self._paused = True
        joules = self._meter.stop() / max(self._stamps.added, 1) if self._meter is not None else np.nan
        return Record(
            units=counts.units,
            latency_s=latency_s,
            stamps_s=stamps,
            kept_every=self._stamps.every,
            **{name: counts.mean(name) for name in COUNTED},
            bytes_sent_by_kind=counts.by_kind("bytes_sent"),
            messages_sent_by_kind=counts.by_kind("messages_sent"),
            flops=counts.flops(rank),
            weight_bytes=np.array([self.weight_bytes], np.int64),
            peak_rss_bytes=np.array([peak_rss_bytes()], np.int64),
            threads=np.array([torch.get_num_threads()], np.int64),
            pace=np.array([pace]),
            pace_overrun=np.array([self._overrun]),
            measured_joules=np.array([joules]),
            clock_offset_s=np.zeros(1),
            clock_drift=np.zeros(1),
            clock_error_s=np.zeros(1),
            hostnames=(socket.gethostname(),),
            meters=(self._meter.method if self._meter is not None else "",),
            patterns=counts.patterns,
        )

    def collect(self, mine: Record, dilation: float) -> Record | None:
        """The record of all ranks on rank 0, its times on the root's clock; None on the others. Collective."""
        clocks = read_clocks(self.team)
        texts = allgather_json(self.team, {name: getattr(mine, name) for name in TEXTS})
        arrays = {name: self._gather(getattr(mine, name)) for name in PER_RANK}
        if self.team.rank != ROOT:
            return None
        begin = mine.stamps_s[0, 0, 0, 0] if len(mine.stamps_s) else 0.0
        elapsed = max(clocks.when_s - self._clocks.when_s, 1e-9)
        parts = []
        for rank in range(self.team.size):
            own: dict[str, Any] = {name: array[rank] for name, array in arrays.items()} | {
                "stamps_s": on_root_clock(arrays["stamps_s"][rank], rank, self._clocks, clocks) - begin,
                "clock_offset_s": self._clocks.offset_s[[rank]],
                "clock_drift": (clocks.offset_s - self._clocks.offset_s)[[rank]] / elapsed,
                "clock_error_s": np.maximum(clocks.error_s, self._clocks.error_s)[[rank]],
            }
            own |= {name: tuple(text) for name, text in texts[rank].items()}
            parts.append(replace(mine, **own))
        return undilated(merge(parts), dilation)

    def _gather(self, array: np.ndarray) -> np.ndarray:
        everything = np.empty((self.team.size, *array.shape), array.dtype) if self.team.rank == ROOT else None
        requests = gathered(self.team, np.ascontiguousarray(array), everything, ROOT)
        wait(self.team, requests, Place("the collection of what was measured"))
        return everything if everything is not None else array

    @property
    def _overrun(self) -> float:
        calls = sum(compute.calls for compute in self._paced)
        return sum(compute.overrun for compute in self._paced) / calls if calls else 0.0
