"""A network that runs split over ranks, as its user has it: called, streamed to, measured, given other plans."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from mpiconv.errors import UsageError
from mpiconv.job.control import allgather_json, bcast_json
from mpiconv.partition import Plan
from mpiconv.runtime.compute.engines import keeps_nan
from mpiconv.runtime.engine import mismatch
from mpiconv.runtime.feed import Feed
from mpiconv.runtime.inputs import why_unfit
from mpiconv.runtime.orders import TOLD, Kind, Order
from mpiconv.runtime.session import Session

if TYPE_CHECKING:
    from mpiconv.measure import Record


class DistributedNet:
    """A network split over ranks; made by ``distribute``, called with pictures. Both are collective.

    Attributes
    ----------
    team, settings
        The ranks that it runs on, and how; ``wait`` is what ``auto`` came to.
    tracing_s
        s that the root took to trace the model and to compare what was traced with it.

    Examples
    --------
    >>> with mpiconv.distribute(model, plan, MPI.COMM_WORLD) as net:  # on every rank
    ...     output = net(images if MPI.COMM_WORLD.rank == 0 else None)
    """

    def __init__(self, session: Session, tracing_s: float = 0.0) -> None:
        self._session, self.tracing_s = session, tracing_s
        self.team, self.settings = session.team, session.settings
        self._streaming: weakref.ref[Generator[Any, None, None]] | None = None

    @property
    def plan(self) -> Plan:
        """The plan that it runs."""
        return self._session.built.plan

    @property
    def weight_bytes(self) -> int:
        """B of weights that this rank computes with; the root's own slices are views of the whole model."""
        return self._session.built.weight_bytes

    @property
    def sharing(self) -> bool:
        """Whether this rank exchanges maps with others of its host through memory that they share."""
        return self._session.built.slots[0].sharing

    @property
    def overlapped(self) -> tuple[str, ...]:
        """The units whose output is sent piece by piece while the rest is computed."""
        return self._session.built.overlapped

    @property
    def no_meter(self) -> str:
        """Why this rank's host has no power meter; empty if it has, or if another rank looks after it."""
        return self._session.recorder.no_meter

    @property
    def weights_received_bytes(self) -> tuple[int, ...]:
        """B of weights that came to each rank in messages since the start, also for plans that it runs no more."""
        return self._session.received_bytes

    @property
    def weights_stored_bytes(self) -> tuple[int, ...]:
        """B of weights that each rank read from its own disk instead."""
        return self._session.stored_bytes

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
        with self._session.together():
            engine = self._session.engine
            if self._session.is_root:
                try:
                    checked = self._checked(images)
                except UsageError as error:
                    engine.orders.give(Order(Kind.REFUSED))
                    refusal = str(error)
                else:
                    engine.run(checked)
                    return engine.answer()
            elif (kind := engine.next_kind()) is Kind.RUN:
                engine.run()
                return engine.answer()
            elif kind is Kind.REFUSED:
                engine.orders.take()
            else:
                raise mismatch(kind, Kind.RUN)
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
        slots = self._session.built.slots
        copied = slots[0].memory.format if copy and len(slots) > 1 else None
        stream = self._session.stream(Feed(batches if self._session.is_root else None, self._checked, copied))
        next(stream)  # from here on leaving it tells the others
        self._streaming = weakref.ref(stream)
        return stream

    def adopt(self, plan: Plan | None = None) -> int:
        """Run another plan from the next picture on. On rank 0; the other ranks do it in the call that they are in.

        Also in the midst of a ``stream``: the batches under way are finished, their outputs come as before, and the
        stream goes on. Only rows of weights travel that a rank needs and does not have; units of which a rank does what
        it did stay as they are. What was measured is forgotten, as by ``reset``.

        Parameters
        ----------
        plan
            For the same network, ranks and batch. On other ranks the call does nothing, whatever it is given.

        Returns
        -------
        int
            On rank 0 the B of weights that travelled between ranks, counted; 0 on the others.

        Raises
        ------
        MpiconvError
            On rank 0 for a plan that cannot run here: the one that ran goes on. Or a rank failed meanwhile.

        Examples
        --------
        >>> for number, output in enumerate(net.stream(batches)):
        ...     if number == 10:
        ...         net.adopt(mpiconv.make_plan(model, (1, 3, 224, 224), "kpm", 2, shares=(0.4, 0.6)))
        """
        if not self._session.is_root:
            return 0
        if plan is None:
            raise UsageError("rank 0 has to pass the plan to adopt")
        return self._session.adopt(plan)

    def follow(self, each: Callable[[], object] = lambda: None) -> int:
        """Do what rank 0 orders - run, adopt, reset, collect - until it dismisses this rank. On all ranks but rank 0.

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
        session = self._session
        with session.together():
            while True:
                kind = session.engine.next_kind()
                if kind in (Kind.RUN, Kind.END):
                    for _ in session.engine.frames(None):
                        each()
                elif not session.obey(kind):
                    return session.recorder.measured

    def dismiss(self) -> None:
        """Have ``follow`` end on all other ranks. On rank 0."""
        self._end_stream()
        with self._session.together():
            self._session.engine.orders.give(Order(Kind.DISMISS))

    def reset(self) -> None:
        """Forget what was measured so far (the warm-up, say), compare clocks, start power meters. Collective."""
        self._end_stream()
        self._session.reset()

    @property
    def record(self) -> Record:
        """What this rank measured since the last ``reset``, its times on its own clock."""
        return self._session.record

    def collect(self) -> Record | None:
        """The record of all ranks on rank 0, its times on the root's clock; None on the others. Collective.

        What is measured afterwards is added to it, until a ``reset``.
        """
        self._end_stream()
        return self._session.collect()

    def first_not_finite(self) -> str:
        """The unit and rank of the first output that was not finite, of those guarded; empty if none. Collective."""
        found = self._session.builder.guard.found
        everywhere = allgather_json(self.team, [*found, self.team.rank] if found is not None else None)
        first = min((tuple(each) for each in everywhere if each is not None), default=None)
        return "" if first is None else f"unit {first[2]} on rank {first[3]}"

    def close(self) -> None:
        """Give back communicators, messages and shared memory; the network cannot be used any more. Collective.

        Also done at the end of ``with distribute(...) as net``.
        """
        self._end_stream()
        self._session.close()

    def __enter__(self) -> DistributedNet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self._session.fail(error)
        self.close()

    def _end_stream(self) -> None:
        """Leave the stream that is open still, if one is."""
        stream = self._streaming() if self._streaming is not None else None
        self._streaming = None
        if stream is not None:
            try:
                stream.close()
            except ValueError:
                raise UsageError("the network was used from within the batches of its own stream") from None

    def _checked(self, images: torch.Tensor | None) -> torch.Tensor | None:
        if not self._session.is_root:
            return None
        unfit = why_unfit(images, self.plan.input_shape, finite=not keeps_nan(self.settings.compute))
        if unfit or images is None:
            raise UsageError(unfit)
        return images.detach().contiguous()
