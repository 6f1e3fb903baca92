"""A network that runs split over ranks, as its user has it: called, streamed to, measured, closed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from mpiconv.errors import MpiconvError, UsageError, reason
from mpiconv.job.control import allgather_json, bcast_json
from mpiconv.job.team import Team
from mpiconv.job.waiting import meet
from mpiconv.partition import Plan
from mpiconv.partition.schemes import ROOT
from mpiconv.runtime.compute.engines import keeps_nan
from mpiconv.runtime.emulation import Paced
from mpiconv.runtime.engine import Engine, mismatch
from mpiconv.runtime.feed import Feed
from mpiconv.runtime.frames import Slot
from mpiconv.runtime.guard import Guard
from mpiconv.runtime.inputs import why_unfit
from mpiconv.runtime.orders import TOLD, Kind, Order
from mpiconv.runtime.queue import Queue
from mpiconv.runtime.recording import Recorder
from mpiconv.runtime.settings import Settings

if TYPE_CHECKING:
    from mpiconv.measure import Record


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
        self.sharing = slots[0].sharing
        exchangers = [exchanger for slot in slots for parts in slot.exchangers.values() for exchanger in parts]
        messages = any(e.messages and e.pattern != "none" for e in exchangers)
        self._progress = team.progress(wanted=messages and (bool(self.overlapped) or settings.in_flight > 1))
        counters = [
            [(e.pattern, e.counter) for slot in slots for i in plan.incoming(u) for e in slot.exchangers[i]]
            for u in range(len(plan.graph.units))
        ]
        self._recorder = Recorder(plan, team, counters, paced, weight_bytes)
        self.no_meter = self._recorder.no_meter
        self._engine = Engine(team, slots, self._recorder, settings.wait)
        self._reset()

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
        refusal = ""
        with self._together():
            engine = self._engine
            queue = Queue(engine.slots[:1])
            if self.team.rank == ROOT:
                try:
                    engine.run(queue, self._checked(images))
                except UsageError as error:
                    engine.orders.give(Order(Kind.REFUSED))
                    refusal = str(error)
            elif (kind := engine.next_kind()) is Kind.RUN:
                engine.run(queue)
            elif kind is Kind.REFUSED:
                engine.orders.take()
            else:
                raise mismatch(kind, Kind.RUN)
            if queue:
                return engine.answer(queue)
            refusal = bcast_json(self.team, refusal, what=TOLD.name)
        raise UsageError(refusal)

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
        slots = self._engine.slots
        copied = slots[0].memory.format if copy and len(slots) > 1 else None
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
        with self._together():
            yield from self._engine.frames(feed)

    def follow(self, each: Callable[[], object] = lambda: None) -> int:
        """Do what rank 0 orders - run, reset, collect - until it dismisses this rank. On all ranks but rank 0.

        Parameters
        ----------
        each
            Called after every frame.

        Returns
        -------
        int
            How many frames were run since the last reset.
        """
        self._end_stream()
        with self._together():
            while True:
                kind = self._engine.next_kind()
                if kind in (Kind.RUN, Kind.END):
                    for _ in self._engine.frames(None):
                        each()
                    continue
                self._engine.orders.take()
                if kind is Kind.RESET:
                    self._reset()
                elif kind is Kind.COLLECT:
                    self._recorder.collect(self.record, self.settings.dilation)
                elif kind is Kind.REFUSED:
                    bcast_json(self.team, "", what=TOLD.name)
                elif kind is Kind.DISMISS:
                    return self._recorder.measured
                else:
                    raise mismatch(kind, Kind.DISMISS)

    def dismiss(self) -> None:
        """Have ``follow`` end on all other ranks. On rank 0."""
        self._end_stream()
        with self._together():
            self._engine.orders.give(Order(Kind.DISMISS))

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
            if not self._broken:
                self._broken = reason(error, self.team.rank)
                self.team.watch.failed(error)
            raise

    def reset(self) -> None:
        """Forget what was measured so far (the warm-up, say), compare clocks, start power meters. Collective."""
        self._end_stream()
        with self._together():
            self._engine.agree(Kind.RESET)
            self._reset()

    def _reset(self) -> None:
        self._engine.number = 0
        self._recorder.reset()

    def close(self) -> None:
        """Give back communicators, messages and shared memory; the network cannot be used any more. Collective.

        Also done at the end of ``with distribute(...) as net``.
        """
        self._end_stream()
        if not self._broken:
            with self._together():
                self._engine.agree(Kind.CLOSE)
                meet(self.team, "the end of the network")
                self._engine.orders.close()
                for free in self._frees:
                    free()
                self.team.close()
        self._engine.slots, self._frees = [], []
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
        """The record of all ranks on rank 0, its times on the root's clock; None on the others. Collective.

        What is measured afterwards is added to it, until a ``reset``.
        """
        self._end_stream()
        with self._together():
            self._engine.agree(Kind.COLLECT)
            return self._recorder.collect(self.record, self.settings.dilation)

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
