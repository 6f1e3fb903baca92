"""A network that runs split over ranks: one loop of exchange and compute, the same for any plan."""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from mpiconv.errors import PlanError, UsageError
from mpiconv.measure.power import find_meter
from mpiconv.measure.record import KINDS, PER_RANK, TEXTS, Record, merge, peak_rss_bytes, undilated
from mpiconv.nets.graph import PICTURE, Unit
from mpiconv.partition import Box, Plan
from mpiconv.partition.plan import ROOT
from mpiconv.partition.receptive import unit_needs
from mpiconv.runtime.clocks import on_root_clock, read_clocks
from mpiconv.runtime.compute import LocalUnit, Paced
from mpiconv.runtime.exchange import Exchanger, Groups
from mpiconv.runtime.messages import allgather_json, bcast_json, on_root
from mpiconv.runtime.weights import check_state, scatter_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mpi4py import MPI


@dataclass
class Step:
    """One unit on this rank: the exchanges before it, where its inputs lie in what they leave, and what to compute."""

    exchangers: list[tuple[int, Exchanger]]
    inputs: list[tuple[int, tuple[slice, ...] | None]]
    compute: Callable[..., Any] | None
    finished: list[int]


class DistributedNet:
    """A network split over ranks; made by ``distribute``, called with pictures. Both are collective.

    Attributes
    ----------
    plan
        The plan that it runs.
    weight_bytes
        B of weights that this rank computes with; the root's own slices are views of the whole model.
    pace, dilation
        How much slower this rank computes than its core, and what all recorded times are divided by (``distribute``).
    no_meter
        Why this rank's host has no power meter that can be read; empty if it has, or if another rank looks after it.
    """

    def __init__(
        self, plan: Plan, comm: MPI.Intracomm, steps: list[Step], weight_bytes: int, pace: float, dilation: float
    ) -> None:
        self.pace, self.dilation = pace, dilation
        self._paced = [step.compute for step in steps if isinstance(step.compute, Paced)]
        self.plan = plan
        self.comm = comm
        self.weight_bytes = weight_bytes
        self._steps = steps
        self._stamps: list[np.ndarray] = []
        self._latency: list[float] = []
        self._calls = 0
        hosts = allgather_json(comm, socket.gethostname())
        self._meter, self.no_meter = find_meter() if hosts.index(hosts[comm.rank]) == comm.rank else (None, "")
        self.reset()
        buffers = [exchanger.buffer for step in steps for _, exchanger in step.exchangers]
        self._reused = {buffer.untyped_storage().data_ptr() for buffer in buffers if buffer is not None}

    def __call__(self, images: torch.Tensor | None = None) -> Any:
        """Run one batch. Collective.

        Parameters
        ----------
        images
            On rank 0 a float32 tensor of the plan's shape (N, C, H, W); the others pass None.

        Returns
        -------
        Any
            On rank 0 what the network returns, (N, classes) for a classifier; None on the others.

        Raises
        ------
        UsageError
            On rank 0, if the pictures have another shape than the plan. The other ranks are then still waiting, so
            a script that may get there should be started with ``python -m mpi4py``, which ends them.
        """
        if self.comm.rank == ROOT:
            images = self._checked(images)
        stamps = np.empty((len(self._steps), 3))
        maps: dict[int, torch.Tensor | None] = {PICTURE: images}
        output = None
        with torch.inference_mode():
            begin = perf_counter()
            for index, step in enumerate(self._steps):
                stamps[index, 0] = perf_counter()
                for source, exchanger in step.exchangers:
                    maps[source] = exchanger(maps[source])
                stamps[index, 1] = perf_counter()
                inputs = (_part(maps[source], where) for source, where in step.inputs)
                maps[index] = output = None if step.compute is None else step.compute(*inputs)
                for source in step.finished:
                    del maps[source]
                stamps[index, 2] = perf_counter()
            output = tree_map_only(torch.Tensor, self._own_copy, output)
            self._latency.append(perf_counter() - begin)
        self._stamps.append(stamps)
        self._calls += 1
        return output

    def reset(self) -> None:
        """Forget what was measured so far (the warm-up, say), compare clocks, start power meters. Collective."""
        self._stamps.clear()
        self._latency.clear()
        self._clocks = read_clocks(self.comm)
        if self._meter is not None:
            self._meter.start()

    @property
    def record(self) -> Record:
        """What this rank measured since the last ``reset``, its times on its own clock."""
        units, rank, repeats = range(len(self._steps)), self.comm.rank, len(self._stamps)
        stamps = np.array(self._stamps).reshape(repeats, 1, len(self._steps), 3)
        joules = self._meter.stop() / max(repeats, 1) if self._meter is not None else np.nan
        counts = {
            name: self._count(name) for name in ("bytes_sent", "bytes_received", "multicast_bytes", "messages_sent")
        }
        return Record(
            units=self.plan.graph.unit_names,
            latency_s=np.array(self._latency),
            stamps_s=stamps,
            **counts,
            bytes_sent_by_kind=self._by_kind("bytes_sent"),
            messages_sent_by_kind=self._by_kind("messages_sent"),
            flops=np.array([[self.plan.flops(u, rank) for u in units]], np.int64),
            weight_bytes=np.array([self.weight_bytes], np.int64),
            peak_rss_bytes=np.array([peak_rss_bytes()], np.int64),
            threads=np.array([torch.get_num_threads()], np.int64),
            pace=np.array([self.pace]),
            pace_overrun=np.array([self._overrun]),
            measured_joules=np.array([joules]),
            clock_offset_s=np.zeros(1),
            clock_drift=np.zeros(1),
            clock_error_s=np.zeros(1),
            hostnames=(socket.gethostname(),),
            meters=(self._meter.method if self._meter is not None else "",),
            patterns=tuple(self.plan.pattern(u) for u in units),
        )

    def collect(self) -> Record | None:
        """The record of all ranks on rank 0, its times on the root's clock; None on the others. Collective."""
        mine, clocks = self.record, read_clocks(self.comm)
        texts = allgather_json(self.comm, {name: getattr(mine, name) for name in TEXTS})
        arrays = {name: self._gather(getattr(mine, name)) for name in PER_RANK}
        if self.comm.rank != ROOT:
            return None
        begin = mine.stamps_s[0, 0, 0, 0] if len(mine.stamps_s) else 0.0
        elapsed = max(clocks.when_s - self._clocks.when_s, 1e-9)
        parts = []
        for rank in range(self.comm.size):
            own: dict[str, Any] = {name: array[rank] for name, array in arrays.items()} | {
                "stamps_s": on_root_clock(arrays["stamps_s"][rank], rank, self._clocks, clocks) - begin,
                "clock_offset_s": self._clocks.offset_s[[rank]],
                "clock_drift": (clocks.offset_s - self._clocks.offset_s)[[rank]] / elapsed,
                "clock_error_s": np.maximum(clocks.error_s, self._clocks.error_s)[[rank]],
            }
            own |= {name: tuple(text) for name, text in texts[rank].items()}
            parts.append(replace(mine, **own))
        return undilated(merge(parts), self.dilation)

    def _own_copy(self, output: torch.Tensor) -> torch.Tensor:
        """The tensor itself, or a copy of one that lies in a buffer which the next call writes to."""
        return output.clone() if output.untyped_storage().data_ptr() in self._reused else output

    def _checked(self, images: torch.Tensor | None) -> torch.Tensor:
        wanted = self.plan.input_shape
        if not isinstance(images, torch.Tensor) or tuple(images.shape) != wanted or images.dtype != torch.float32:
            found = "nothing" if images is None else f"{getattr(images, 'dtype', '')} {tuple(images.shape)}"
            raise UsageError(f"the plan is for float32 pictures of shape {wanted}, rank 0 was given {found}")
        return images.detach().contiguous()

    def _gather(self, array: np.ndarray) -> np.ndarray:
        everything = np.empty((self.comm.size, *array.shape), array.dtype) if self.comm.rank == ROOT else None
        self.comm.Gather(np.ascontiguousarray(array), everything, ROOT)
        return everything if everything is not None else array

    @property
    def _overrun(self) -> float:
        calls = sum(compute.calls for compute in self._paced)
        return sum(compute.overrun for compute in self._paced) / calls if calls else 0.0

    def _by_kind(self, name: str) -> np.ndarray:
        """(1, unit, kind): a count per inference, by the kind of the exchange."""
        totals = np.zeros((1, len(self._steps), len(KINDS)), np.int64)
        for index, step in enumerate(self._steps):
            for _, exchanger in step.exchangers:
                if exchanger.pattern in KINDS:
                    totals[0, index, KINDS.index(exchanger.pattern)] += getattr(exchanger.counter, name)
        return totals // max(self._calls, 1)

    def _count(self, name: str) -> np.ndarray:
        totals = [sum(getattr(exchanger.counter, name) for _, exchanger in step.exchangers) for step in self._steps]
        return np.array([totals], np.int64) // max(self._calls, 1)


def distribute(
    model: nn.Module | None, plan: Plan | None, comm: MPI.Intracomm, pace: float = 1.0, dilation: float = 1.0
) -> DistributedNet:
    """Send every rank its plan and its slice of the weights, and make ready to run. Collective.

    Parameters
    ----------
    model
        The module that the plan was made for, on rank 0; the others pass None.
    plan
        The plan, on rank 0; the others pass None.
    comm
        The communicator; it must have as many ranks as the plan.
    pace
        Emulates a slower device: this rank computes so many times slower than its core, by sleeping.
    dilation
        The times of the merged record are divided by it, where everything was slowed down so many times.

    Raises
    ------
    MpiconvError
        On every rank, if the plan is for another number of ranks or another model.
    """

    def check() -> tuple[dict[str, Any], nn.Module, dict[str, torch.Tensor]]:
        from mpiconv.nets.trace import trace

        if model is None or plan is None:
            raise UsageError("rank 0 has to pass the model and the plan")
        if plan.ranks != comm.size:
            raise UsageError(f"the plan is for {plan.ranks} ranks and {comm.size} are running")
        traced = trace(model, plan.graph.input_shape, plan.graph.gather)
        if traced.graph.units != plan.graph.units:
            raise PlanError(f"the plan was made for another network than {traced.graph.model}: make a new one")
        state = model.state_dict()
        check_state(plan.graph, state)
        return plan.to_dict(), traced.head, state

    checked = on_root(comm, check)
    data, head, state = checked if checked is not None else (None, None, {})
    shared = Plan.from_dict(bcast_json(comm, data))
    groups: Groups = {}
    weights = scatter_weights(shared, state, comm, groups)
    exchangers = {i: Exchanger(spec, shared.batch, comm, groups) for i, spec in shared.exchanges.items()}
    *body, last = shared.graph.units
    computes: list[Callable[..., Any] | None] = [
        LocalUnit(unit, boxes[comm.rank], mine) if boxes[comm.rank] else None
        for unit, boxes, mine in zip(body, shared.boxes, weights, strict=True)
    ]
    computes.append(None if head is None else _whole_head(last, head, state))
    if pace > 1:
        computes = [None if compute is None else Paced(compute, pace) for compute in computes]
    steps = [_step(shared, u, comm.rank, exchangers, compute) for u, compute in enumerate(computes)]
    held = sum(t.nbytes for unit in weights for layer in unit for t in layer.values())
    if head is not None:
        held += sum(4 * param.size for param in last.params)
    return DistributedNet(shared, comm, steps, held, pace, dilation)


def _step(
    plan: Plan, index: int, rank: int, exchangers: dict[int, Exchanger], compute: Callable[..., Any] | None
) -> Step:
    """What this rank does for one unit."""
    unit = plan.graph.units[index]
    inputs: list[tuple[int, tuple[slice, ...] | None]] = []
    for source, need in zip(unit.inputs, unit_needs(unit, plan.owned[index][rank]), strict=True):
        frame = exchangers[source].frame
        inputs.append((source, None if need == frame else (slice(None), *need.within(frame)) if need else ()))
    finished = [i for i in dict.fromkeys(unit.inputs) if plan.graph.consumers(i)[-1] == index]
    return Step([(i, exchangers[i]) for i in plan.incoming(index)], inputs, compute, finished)


def _whole_head(unit: Unit, head: nn.Module, state: Mapping[str, torch.Tensor]) -> Callable[..., Any]:
    """The head as the root runs it: what is left of the body's last layers, then the model's own module."""
    rest = unit.layers[:-1]
    if not rest:
        return head
    weights = [{param.role: state[param.key] for param in layer.params} for layer in rest]
    before = LocalUnit(replace(unit, layers=rest), Box.whole(rest[-1].out_shape), weights)
    return lambda *maps: head(before(*maps))


def _part(tensor: torch.Tensor | None, where: tuple[slice, ...] | None) -> torch.Tensor | None:
    """The piece of a map that a unit reads: all of it for None, nothing for an empty tuple."""
    if where is None or tensor is None:
        return tensor
    return tensor[where] if where else None
