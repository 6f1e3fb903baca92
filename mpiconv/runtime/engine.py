"""A network that runs split over ranks: one loop of exchange and compute, the same for any plan."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mpi4py import MPI
from torch.utils._pytree import tree_map_only

from mpiconv.errors import UsageError
from mpiconv.partition import Plan
from mpiconv.partition.plan import ROOT
from mpiconv.runtime.compute import Paced
from mpiconv.runtime.exchange import Exchanger
from mpiconv.runtime.frames import Compute, Slot
from mpiconv.runtime.inputs import why_unfit
from mpiconv.runtime.progress import Progress
from mpiconv.runtime.recording import Recorder
from mpiconv.runtime.settings import Settings
from mpiconv.runtime.waiting import Awaited, Waiting

if TYPE_CHECKING:
    from mpiconv.measure import Record

STOP = -1


@dataclass
class _Frame:
    """A frame under way: its slot, the rest of its work, what it waits for, and how far it is."""

    slot: Slot
    work: Generator[Awaited, None, Any]
    awaited: Awaited = field(default_factory=Awaited)
    begun: bool = False
    followed: bool = False  # by the next one in its slot


class DistributedNet:
    """A network split over ranks; made by ``distribute``, called with pictures. Both are collective.

    Attributes
    ----------
    plan
        The plan that it runs.
    settings
        How it runs it; ``wait`` is what ``auto`` came to.
    weight_bytes
        B of weights that this rank computes with; the root's own slices are views of the whole model.
    sharing
        Whether this rank exchanges maps with others of its host through memory that they share.
    overlapped
        The units whose output is sent piece by piece while the rest is computed.
    no_meter
        Why this rank's host has no power meter that can be read; empty if it has, or if another rank looks after it.
    """

    def __init__(
        self,
        plan: Plan,
        comm: MPI.Intracomm,
        settings: Settings,
        slots: list[Slot],
        computes: list[list[Compute | None]],
        weight_bytes: int,
    ) -> None:
        self.plan, self.comm, self.settings = plan, comm, settings
        self.weight_bytes = weight_bytes
        self.overlapped = tuple(
            unit.name for unit, step in zip(plan.graph.units, slots[0].steps, strict=True) if step.early
        )
        self._slots = slots
        self._waiting = Waiting(settings.wait)
        self.sharing = slots[0].sharing
        exchangers = [exchanger for slot in slots for parts in slot.exchangers.values() for exchanger in parts]
        messages = any(isinstance(e, Exchanger) and e.pattern != "none" for e in exchangers)
        self._progress = Progress(wanted=messages and (bool(self.overlapped) or settings.in_flight > 1))
        self._number = 0
        self._reused = {e.buffer.untyped_storage().data_ptr() for e in exchangers if e.buffer is not None}
        counters = [
            [(e.pattern, e.counter) for slot in slots for i in plan.incoming(u) for e in slot.exchangers[i]]
            for u in range(len(plan.graph.units))
        ]
        paced = [compute for unit in computes for compute in unit if isinstance(compute, Paced)]
        self._recorder = Recorder(plan, comm, counters, paced, weight_bytes)
        self.no_meter = self._recorder.no_meter
        self.reset()

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
        slot = self._slots[0]
        frame = _Frame(slot, self._work(slot, self._checked(images), self._next_number()))
        with self._progress:
            while True:
                done = self._advance(frame)
                if done is not None:
                    return done[0]
                self._waiting.all(frame.awaited)

    def stream(self, batches: Iterable[torch.Tensor] | None = None) -> Iterator[Any]:
        """Run batch after batch, ``settings.in_flight`` of them under way at a time. Collective.

        Rank 0 alone knows the batches: the others call it without, and are told when there are no more. On every rank
        the iterator has to be used up. The outputs come in the order of the batches; on the others they are None.

        Raises
        ------
        UsageError
            On rank 0, if a batch has another shape than the plan (see ``__call__``).
        """
        source = iter(batches if batches is not None and self.comm.rank == ROOT else ())
        idle, open_slots = list(self._slots), len(self._slots)
        active: list[_Frame] = []
        order: list[_Frame] = []
        done: dict[int, Any] = {}
        with self._progress:
            while open_slots or order:
                while idle:
                    frame = self._opened(idle.pop(0), source)
                    active.append(frame)
                    order.append(frame)
                ready = [f for f in active if f.awaited.done()]
                if len(active) == 1 and not ready:
                    self._waiting.all(active[0].awaited)
                    ready = active[:]
                if not ready:
                    self._waiting.rest()
                    continue
                frame = next((f for f in ready if not f.begun), ready[0])  # to have its picture on the way
                result = self._advance(frame)
                if result is None and frame.awaited.last:
                    frame.followed = True
                    idle.append(frame.slot)
                if result is not None:
                    active.remove(frame)
                    output, stopped = result
                    if stopped:
                        open_slots -= 1
                        order.remove(frame)
                    else:
                        if not frame.followed:
                            idle.append(frame.slot)
                        done[id(frame)] = output
                    while order and id(order[0]) in done:
                        yield done.pop(id(order.pop(0)))

    def reset(self) -> None:
        """Forget what was measured so far (the warm-up, say), compare clocks, start power meters. Collective."""
        self._number = 0
        self._recorder.reset()

    @property
    def record(self) -> Record:
        """What this rank measured since the last ``reset``, its times on its own clock."""
        return self._recorder.record(self.settings.pace)

    def collect(self) -> Record | None:
        """The record of all ranks on rank 0, its times on the root's clock; None on the others. Collective."""
        return self._recorder.collect(self.record, self.settings.dilation)

    def _next_number(self) -> int:
        self._number += 1
        return self._number - 1

    def _advance(self, frame: _Frame) -> tuple[Any, bool] | None:
        """Do what the frame can do without waiting; (output, whether it was told to stop) once it is through."""
        frame.begun = True
        with torch.inference_mode():
            try:
                frame.awaited = next(frame.work)
            except StopIteration as end:
                result: tuple[Any, bool] = end.value
                return result
        return None

    def _work(self, slot: Slot, images: torch.Tensor | None, number: int) -> Generator[Awaited, None, tuple[Any, bool]]:
        output, stamps = yield from slot.run(images)
        output = tree_map_only(torch.Tensor, self._own_copy, output) if self.comm.rank == ROOT else None
        self._recorder.add(number, stamps, perf_counter() - stamps[0])
        return output, False

    def _opened(self, slot: Slot, source: Iterator[torch.Tensor]) -> _Frame:
        """The next frame in a slot: the root has its number go round, or that there is none."""
        message, images = np.empty(1, np.int64), None
        if self.comm.rank == ROOT:
            images = next(source, None)
            message[0] = STOP if images is None else self._next_number()
            images = None if images is None else self._checked(images)
        told = [slot.comm.Ibcast(message, ROOT)]
        return _Frame(slot, self._told(slot, message, told, images))

    def _told(
        self, slot: Slot, message: np.ndarray, told: list[MPI.Request], images: torch.Tensor | None
    ) -> Generator[Awaited, None, tuple[Any, bool]]:
        if self.comm.rank != ROOT or message[0] == STOP:
            yield Awaited(told)
        if message[0] == STOP:
            return None, True
        number = int(message[0])
        result = yield from self._work(slot, images, number)
        MPI.Request.Waitall(told)
        return result

    def _own_copy(self, output: torch.Tensor) -> torch.Tensor:
        """The tensor itself, or a copy of one that lies in a buffer which the next call writes to."""
        return output.clone() if output.untyped_storage().data_ptr() in self._reused else output

    def _checked(self, images: torch.Tensor | None) -> torch.Tensor | None:
        if self.comm.rank != ROOT:
            return None
        unfit = why_unfit(images, self.plan.input_shape)
        if unfit or images is None:
            raise UsageError(unfit)
        return images.detach().contiguous()
