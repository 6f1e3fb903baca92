"""Frames on their way: they come into slots, go as far as they can, wait, and are answered."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from time import perf_counter
from typing import Any

import torch

from mpiconv.graph.outputs import with_tensors
from mpiconv.job.waiting import Awaited
from mpiconv.partition.schemes import ROOT
from mpiconv.runtime.frames import Slot
from mpiconv.runtime.orders import Kind, Order, Orders
from mpiconv.runtime.queue import Frame, Queue
from mpiconv.runtime.recording import Recorder


class Flow:
    """The frames of one rank.

    Attributes
    ----------
    slots
        Those of the plan that runs.
    orders
        What rank 0 has the other ranks do.
    number
        The number of the next frame that was not run yet.
    """

    def __init__(self, orders: Orders, recorder: Recorder, wait: str) -> None:
        self._team, self._recorder = recorder.team, recorder
        self.orders, self.number = orders, 0
        self._wait, self._queue = wait, Queue(())
        self.adopt(())

    def adopt(self, slots: Sequence[Slot], *, asleep: bool = False) -> None:
        """Run frames in other slots from now on, since no frame is under way; sleep while waiting if told to."""
        self._waiting = self._team.waiting("sleep" if asleep else self._wait)
        self.slots, self._queue = slots, Queue(slots, self._queue.frames)
        buffers = (e.buffer for slot in slots for parts in slot.exchangers.values() for e in parts)
        self._reused = {buffer.untyped_storage().data_ptr() for buffer in buffers if buffer is not None}

    def redo(self, before: Flow) -> None:
        """Go on where another one was: with its numbers and, on rank 0, its frames; what has no answer is run again."""
        self.number = before.number
        if self._team.rank == ROOT:
            self._queue.frames = list(before._queue.frames)
            for frame in self._queue.active:
                frame.redo()

    @property
    def empty(self) -> bool:
        """Whether there is no frame whose answer was not given out."""
        return not self._queue

    def run(self, images: torch.Tensor | None = None) -> None:
        """The next frame: on rank 0 of these pictures in the first idle slot, on the others as the order says."""
        if self._team.rank == ROOT:
            self._queue.frames.append(Frame(self.number, images))
            self.number += 1
            self._let_in()
            return
        order = self.orders.take()
        self.number = max(self.number, order.number + 1)
        self._queue.frames.append(frame := Frame(order.number, images))
        self._begin(frame, self.slots[order.slot], Awaited())

    def _let_in(self) -> None:
        """Begin the frames that wait for a slot, as far as one is idle. On rank 0."""
        while self._queue.idle and (frame := self._queue.waiting) is not None:
            index = min(self.slots.index(slot) for slot in self._queue.idle)
            self._begin(frame, self.slots[index], self.orders.give(Order(Kind.RUN, frame.number, index)))

    def _begin(self, frame: Frame, slot: Slot, told: Awaited) -> None:
        self._queue.begin(frame, slot)
        self._recorder.go_on()
        frame.work = self._work(slot, frame.number, told, frame.images)

    def _go_on(self, *, ended: bool) -> None:
        """Do what one frame can do, or wait until something can be done."""
        self._team.watch.check()
        active = self._queue.active
        if not active:
            if not ended:
                self._waiting.all(self.orders.awaited())
            return
        frame = self._queue.ready()
        if frame is None and len(active) == 1 and (ended or not self._queue.idle):
            frame = active[0]
            self._waiting.all(frame.awaited)
        if frame is None:
            self._waiting.rest(active[0].awaited.place)
            return
        self._waiting.over()
        self._queue.advance(frame)

    def drain(self) -> None:
        """Finish the frames under way; their answers are kept until somebody asks for them."""
        while self._queue.active:
            self._let_in()
            self._go_on(ended=True)

    def answer(self) -> Any:
        """The output of the only frame."""
        self.drain()
        frame = self._queue.answered()
        return None if frame is None else frame.answer

    def _work(
        self, slot: Slot, number: int, told: Awaited, images: torch.Tensor | None
    ) -> Generator[Awaited, None, Any]:
        """A frame from start to end; its output on the root."""
        output, stamps = yield from slot.run(images)
        if self._team.rank == ROOT:
            output = own_copies(output, images, self._reused)
        self._recorder.add(number, stamps, perf_counter() - stamps[0], slot.plan)
        if not told.done():
            yield told
        return output if self._team.rank == ROOT else None


def own_copies(output: Any, images: torch.Tensor | None, reused: Collection[int]) -> Any:
    """The output, with copies of tensors that lie in the picture or at addresses that the next call writes to."""
    taken = set(reused) if images is None else {images.untyped_storage().data_ptr(), *reused}

    def own(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone() if tensor.untyped_storage().data_ptr() in taken else tensor

    return with_tensors(output, own)
