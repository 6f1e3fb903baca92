"""A network that runs split over ranks: one loop of exchange and compute, the same for any plan."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mpi4py import MPI

from mpiconv.errors import MpiconvError, UsageError, reason
from mpiconv.graph.outputs import with_tensors
from mpiconv.job.control import allgather_json, bcast_json
from mpiconv.job.team import Team
from mpiconv.job.waiting import Awaited, meet
from mpiconv.job.watch import START, Place
from mpiconv.partition import Plan
from mpiconv.partition.plan import ROOT
from mpiconv.runtime.compute.engines import keeps_nan
from mpiconv.runtime.emulation import Paced
from mpiconv.runtime.feed import Feed
from mpiconv.runtime.frames import Slot
from mpiconv.runtime.guard import Guard
from mpiconv.runtime.inputs import why_unfit
from mpiconv.runtime.recording import Recorder
from mpiconv.runtime.settings import Settings

if TYPE_CHECKING:
    from mpiconv.measure import Record

STOP = -1
REFUSED = -2
TOLD = Place("the start of the next picture")


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
    tracing_s
        s that the root took to trace the model and to compare what was traced with it.
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
        team: Team,
        settings: Settings,
        slots: list[Slot],
        paced: Sequence[Paced],
        weight_bytes: int,
        frees: Sequence[Callable[[], object]],
        guard: Guard,
        tracing_s: float = 0.0,
    ) -> None:
        self.tracing_s, self._guard = tracing_s, guard
        self.plan, self.team, self.settings = plan, team, settings
        self._frees: list[Callable[[], object]] = [*(slot.close for slot in slots), *frees]
        self._broken = ""
        self._streaming: weakref.ref[Generator[Any, None, None]] | None = None
        self.weight_bytes = weight_bytes
        self.overlapped = tuple(
            unit.name for unit, step in zip(plan.graph.units, slots[0].steps, strict=True) if step.early
        )
        self._slots = slots
        self._waiting = team.waiting(settings.wait)
        self.sharing = slots[0].sharing
        exchangers = [exchanger for slot in slots for parts in slot.exchangers.values() for exchanger in parts]
        messages = any(e.messages and e.pattern != "none" for e in exchangers)
        self._progress = team.progress(wanted=messages and (bool(self.overlapped) or settings.in_flight > 1))
        self._number = 0
        self._reused = {e.buffer.untyped_storage().data_ptr() for e in exchangers if e.buffer is not None}
        counters = [
            [(e.pattern, e.counter) for slot in slots for i in plan.incoming(u) for e in slot.exchangers[i]]
            for u in range(len(plan.graph.units))
        ]
        self._recorder = Recorder(plan, team, counters, paced, weight_bytes)
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
            On every rank, if the pictures have another shape than the plan; the network can be called again.
        MpiconvError
            This rank or another failed while it ran; the network cannot be called again.
        """
        self._end_stream()
        number, refusal = STOP, ""
        if self.team.rank == ROOT:
            try:
                images = self._checked(images)
                number = self._next_number()
            except UsageError as error:
                number, refusal = REFUSED, str(error)
        with self._together():
            frame = self._opened(self._slots[0], images, number)
            while (done := self._advance(frame)) is None:
                self._waiting.all(frame.awaited)
            output, number = done
            if number == REFUSED:
                refusal = bcast_json(self.team, refusal, what="the start of the next picture")
        if refusal:
            raise UsageError(refusal)
        if number == STOP:
            raise UsageError("rank 0 ran a stream to its end where this rank called the network")
        return output

    def stream(self, batches: Iterable[torch.Tensor] | None = None, *, copy: bool = True) -> Iterator[Any]:
        """Run batch after batch, ``settings.in_flight`` of them under way at a time. Collective.

        Rank 0 alone knows the batches: the others call it without, and are told when there are no more. The outputs
        come in the order of the batches; on the others they are None.

        It may be left early, on rank 0 by ``break``, by an exception or by closing the iterator: the batches under way
        are finished, the other ranks' iterators end, and the network can be used again. Another rank that leaves it
        early goes on helping until rank 0 is through. An exception from ``batches`` is raised after the outputs of the
        batches before it.

        Parameters
        ----------
        batches
            On rank 0 float32 tensors of the plan's shape (N, C, H, W). A batch may be overwritten once the next one is
            asked for, as a camera does that has one buffer.
        copy
            False saves the copy of every batch that this needs where several are under way: they stay as they are until
            their outputs are there.

        Raises
        ------
        UsageError
            On rank 0, after the outputs before it, if a batch has another shape than the plan.
        MpiconvError
            This rank or another failed while it ran; the network cannot be used again.
        """
        self._end_stream()
        copied = self._slots[0].memory.format if copy and len(self._slots) > 1 else None
        stream = self._stream(Feed(batches if self.team.rank == ROOT else None, self._checked, copied))
        next(stream)  # from here on leaving it tells the others
        self._streaming = weakref.ref(stream)
        return stream

    def _stream(self, feed: Feed) -> Generator[Any, None, None]:
        frames = self._frames(feed)
        try:
            yield None
            for output in frames:  # noqa: UP028 - to close this must not close the frames under way
                yield output
        except BaseException:
            feed.end()
            for _ in frames:
                pass
            raise
        if feed.error is not None:
            raise feed.error

    def _frames(self, feed: Feed) -> Iterator[Any]:
        """The outputs of all batches in order, and on all ranks the end of them."""
        idle, open_slots = list(self._slots), len(self._slots)
        active: list[_Frame] = []
        order: list[_Frame] = []
        done: dict[int, Any] = {}
        with self._together():
            while open_slots or order:
                while idle:
                    images = feed.next()
                    number = STOP if images is None else self._next_number()
                    frame = self._opened(idle.pop(0), images, number)
                    active.append(frame)
                    order.append(frame)
                ready = [f for f in active if f.awaited.done()]
                if len(active) == 1 and not ready:
                    self._waiting.all(active[0].awaited)
                    ready = active[:]
                if not ready:
                    self._waiting.rest(order[0].awaited.place)
                    continue
                self._waiting.over()
                frame = next((f for f in ready if not f.begun), ready[0])  # to have its picture on the way
                result = self._advance(frame)
                if result is None and frame.awaited.last:
                    frame.followed = True
                    idle.append(frame.slot)
                if result is not None:
                    active.remove(frame)
                    output, number = result
                    if number < 0:
                        open_slots -= 1
                        order.remove(frame)
                    else:
                        if not frame.followed:
                            idle.append(frame.slot)
                        done[id(frame)] = output
                    while order and id(order[0]) in done:
                        yield done.pop(id(order.pop(0)))

    def _end_stream(self) -> None:
        """Leave the stream that is open still, if one is."""
        stream = self._streaming() if self._streaming is not None else None
        self._streaming = None
        if stream is not None:
            try:
                stream.close()
            except ValueError:
                raise UsageError("the network was used from within the batches of its own stream") from None

    @contextmanager
    def _together(self) -> Iterator[None]:
        """What ranks do together: an exception on one is told to the others, who would wait for it."""
        if self._broken:
            raise MpiconvError(f"this network cannot be used any more: {self._broken}")
        try:
            with self._progress:
                yield
        except BaseException as error:
            self._broken = reason(error, self.team.rank)
            self.team.watch.failed(error)
            raise

    def reset(self) -> None:
        """Forget what was measured so far (the warm-up, say), compare clocks, start power meters. Collective."""
        self._end_stream()
        with self._together():
            self._number = 0
            self._recorder.reset()

    def close(self) -> None:
        """Give back communicators, messages and shared memory; the network cannot be used any more. Collective.

        Also done at the end of ``with distribute(...) as net``.
        """
        self._end_stream()
        if not self._broken:
            meet(self.team, "the end of the network")
            for free in self._frees:
                free()
            self.team.close()
        self._slots, self._frees = [], []
        self._recorder.close()
        self._broken = self._broken or "it was closed"

    def __enter__(self) -> DistributedNet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None and not self._broken:
            self._broken = reason(error, self.team.rank)
            self.team.watch.failed(error)
        self.close()

    @property
    def record(self) -> Record:
        """What this rank measured since the last ``reset``, its times on its own clock."""
        return self._recorder.record(self.settings.pace)

    def collect(self) -> Record | None:
        """The record of all ranks on rank 0, its times on the root's clock; None on the others. Collective."""
        self._end_stream()
        with self._together():
            return self._recorder.collect(self.record, self.settings.dilation)

    def resume(self) -> None:
        """Go on after a ``collect``: what is measured from now on is added to what was before."""
        self._recorder.resume()

    def _next_number(self) -> int:
        self._number += 1
        return self._number - 1

    def _advance(self, frame: _Frame) -> tuple[Any, int] | None:
        """Do what the frame can do without waiting; its output and its number, or STOP, once it is through."""
        frame.begun = True
        with torch.inference_mode():
            try:
                frame.awaited = next(frame.work)
            except StopIteration as end:
                result: tuple[Any, int] = end.value
                return result
        return None

    def _opened(self, slot: Slot, images: torch.Tensor | None, number: int) -> _Frame:
        """The next frame in a slot: the root has its number go round, or STOP, or REFUSED."""
        message = np.array([number], np.int64)
        told = [slot.team.comm.Ibcast(message, ROOT)]
        return _Frame(slot, self._told(slot, message, told, images))

    def _told(
        self, slot: Slot, message: np.ndarray, told: list[MPI.Request], images: torch.Tensor | None
    ) -> Generator[Awaited, None, tuple[Any, int]]:
        if self.team.rank != ROOT:
            yield Awaited(told, place=START)
        output, number = None, int(message[0])
        if number >= 0:
            output, stamps = yield from slot.run(images if self.team.rank == ROOT else None)
            output = self._own_copies(output, images) if self.team.rank == ROOT else None
            self._recorder.add(number, stamps, perf_counter() - stamps[0])
        if self.team.rank == ROOT and not MPI.Request.Testall(told):
            yield Awaited(told, place=TOLD)
        return output, number

    def _own_copies(self, output: Any, images: torch.Tensor | None) -> Any:
        """The output, with copies of tensors that lie in the picture or in a buffer that the next call writes to."""
        reused = self._reused if images is None else {images.untyped_storage().data_ptr(), *self._reused}

        def own(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.clone() if tensor.untyped_storage().data_ptr() in reused else tensor

        return with_tensors(output, own)

    def first_not_finite(self) -> str:
        """The unit and rank of the first output that was not finite, of those guarded; empty if none. Collective."""
        found = self._guard.found
        everywhere = allgather_json(self.team, [*found, self.team.rank] if found is not None else None)
        first = min((tuple(each) for each in everywhere if each is not None), default=None)
        return "" if first is None else f"unit {first[2]} on rank {first[3]}"

    def _checked(self, images: torch.Tensor | None) -> torch.Tensor | None:
        if self.team.rank != ROOT:
            return None
        unfit = why_unfit(images, self.plan.input_shape, finite=not keeps_nan(self.settings.compute))
        if unfit or images is None:
            raise UsageError(unfit)
        return images.detach().contiguous()
