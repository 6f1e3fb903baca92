"""One loop of exchange and compute for any plan: what rank 0 is fed, or orders, is run, frame by frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mpiconv.errors import UsageError
from mpiconv.job.waiting import Waiting
from mpiconv.partition.schemes import ROOT
from mpiconv.runtime.feed import Feed
from mpiconv.runtime.flow import Flow
from mpiconv.runtime.orders import CALLS, Kind, Order, Orders
from mpiconv.runtime.recording import Recorder

Act = Callable[[], object]
"""What a rank does as rank 0 orders."""

BETWEEN = (Kind.ADOPT, Kind.VERIFY)
"""What is done while no frame is under way."""


class Engine(Flow):
    """Runs frames in slots: those that rank 0 is fed on rank 0, those that it orders on the others."""

    def __init__(self, orders: Orders, recorder: Recorder, wait: str, acts: Mapping[Kind, Act]) -> None:
        """``acts`` are what is done for ADOPT, when no frame is under way, and for REPORT, whenever that is ordered."""
        super().__init__(orders, recorder, wait)
        self._acts = acts

    def close(self) -> None:
        """Let go of the slots and of who makes others."""
        self.adopt(())
        self._acts = {}

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

    @property
    def waiting(self) -> Waiting:
        """What waits for messages and flags."""
        return self._waiting

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
                elif order.kind is Kind.REPORT or (order.kind in BETWEEN and not self._queue.active):
                    self._acts[self.orders.take().kind]()
                elif order.kind in (Kind.RUN, *BETWEEN):
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

    def agree(self, kind: Kind) -> None:
        """On rank 0 order what all ranks called; on the others take that order, or raise UsageError for another."""
        if self._team.rank == ROOT:
            self.orders.give(Order(kind))
            return
        found = self.next_kind()
        if found is not kind:
            raise mismatch(found, kind)
        self.orders.take()


def mismatch(done: Kind, called: Kind) -> UsageError:
    """The error on a rank that called another method of the network than rank 0 did."""
    return UsageError(f"rank 0 {CALLS[done]} where this rank {CALLS[called]}")
