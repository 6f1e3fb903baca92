"""One loop of exchange and compute for any plan: frames come into slots, go as far as they can, and are answered."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any

import torch

from mpiconv.errors import UsageError
from mpiconv.graph.outputs import with_tensors
from mpiconv.job.waiting import Awaited
from mpiconv.partition.schemes import ROOT
from mpiconv.runtime.feed import Feed
from mpiconv.runtime.frames import Slot
from mpiconv.runtime.orders import CALLS, Kind, Order, Orders
from mpiconv.runtime.queue import Frame, Queue
from mpiconv.runtime.recording import Recorder

Act = Callable[[], object]
"""What a rank does as rank 0 orders."""


class Engine:
    """Runs frames in slots: those that rank 0 is fed on rank 0, those that it orders on the others.

    Attributes
    ----------
    slots
        Those of the plan that runs.
    orders
        What rank 0 has the other ranks do.
    number
        The number of the next frame that was not run yet.
    """

    def __init__(self, orders: Orders, recorder: Recorder, wait: str, acts: Mapping[Kind, Act]) -> None:
        """``acts`` are what is done for ADOPT, when no frame is under way, and for REPORT, whenever that is ordered."""
        self._team, self._recorder, self._acts = recorder.team, recorder, acts
        self.orders, self.number = orders, 0
        self._wait, self._queue = wait, Queue(())
        self.adopt(())

    def adopt(self, slots: Sequence[Slot], *, asleep: bool = False) -> None:
        """Run frames in other slots from now on, since no frame is under way; sleep while waiting if told to."""
        self._waiting = self._team.waiting("sleep" if asleep else self._wait)
        self.slots, self._queue = slots, Queue(slots, self._queue.frames)
        buffers = (e.buffer for slot in slots for parts in slot.exchangers.values() for e in parts)
        self._reused = {buffer.untyped_storage().data_ptr() for buffer in buffers if buffer is not None}

    def close(self) -> None:
        """Let go of the slots and of who makes others."""
        self.adopt(())
        self._acts = {}

    def redo(self, before: Engine) -> None:
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

    def rest(self) -> None:
        """Wait asleep for the next order."""
        self._team.waiting("sleep").all(self.orders.awaited())

    def next_kind(self) -> Kind:
        """Wait for the next order and look at it without taking it; acts are done right away. Not on rank 0."""
        while True:
            self._waiting.all(self.orders.awaited())
            if self.orders.first.kind not in self._acts:
                return self.orders.first.kind
            self._acts[self.orders.take().kind]()

    def frames(self, feed: Feed | None) -> Iterator[Any]:
        """The outputs of all batches in order; without a feed until rank 0 orders something else, which is left."""
        ended = False
        while self._queue or not ended:
            self._let_in()
            while self._queue.idle and not ended and (self._team.rank == ROOT or self.orders.reached()):
                if self._team.rank == ROOT:
                    if not self._queue.room:
                        break
                    ended = not self._feed(feed)
                    continue
                order = self.orders.first
                if order.kind is Kind.RUN and self.slots[order.slot] in self._queue.idle:
                    self.run()
                elif order.kind is Kind.REPORT or (order.kind is Kind.ADOPT and not self._queue.active):
                    self._acts[self.orders.take().kind]()
                elif order.kind in (Kind.RUN, Kind.ADOPT):
                    break  # once there is room
                elif order.kind is Kind.END:
                    ended = True
                    self.orders.take()
                elif feed is not None:
                    raise mismatch(order.kind, Kind.END)
                else:
                    ended = not self._queue
                    break
            self._go_on(ended=ended)
            while (frame := self._queue.answered()) is not None:
                yield frame.answer

    def _feed(self, feed: Feed | None) -> bool:
        """Run the next batch, or order the end of the stream; returns whether there was one. On rank 0."""
        images = None if feed is None else feed.next()
        if images is None:
            self.orders.give(Order(Kind.END))
            return False
        self.run(images)
        return True

    def _go_on(self, *, ended: bool) -> None:
        """Do what one frame can do, or wait until something can be done."""
        self._team.watch.check()
        self._let_in()  # after a loss also where nothing is fed
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
            self._go_on(ended=True)

    def answer(self) -> Any:
        """The output of the only frame."""
        self.drain()
        frame = self._queue.answered()
        return None if frame is None else frame.answer

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

    def agree(self, kind: Kind) -> None:
        """On rank 0 order what all ranks called; on the others take that order, or raise UsageError for another."""
        if self._team.rank == ROOT:
            self.orders.give(Order(kind))
            return
        found = self.next_kind()
        if found is not kind:
            raise mismatch(found, kind)
        self.orders.take()

    def _work(
        self, slot: Slot, number: int, told: Awaited, images: torch.Tensor | None
    ) -> Generator[Awaited, None, Any]:
        """A frame from start to end; its output on the root."""
        output, stamps = yield from slot.run(images)
        if self._team.rank == ROOT:
            output = self._own_copies(output, images)
        self._recorder.add(number, stamps, perf_counter() - stamps[0], slot.plan)
        if not told.done():
            yield told
        return output if self._team.rank == ROOT else None

    def _own_copies(self, output: Any, images: torch.Tensor | None) -> Any:
        """The output, with copies of tensors that lie in the picture or in a buffer that the next call writes to."""
        reused = self._reused if images is None else {images.untyped_storage().data_ptr(), *self._reused}

        def own(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.clone() if tensor.untyped_storage().data_ptr() in reused else tensor

        return with_tensors(output, own)


def mismatch(done: Kind, called: Kind) -> UsageError:
    """The error on a rank that called another method of the network than rank 0 did."""
    return UsageError(f"rank 0 {CALLS[done]} where this rank {CALLS[called]}")
