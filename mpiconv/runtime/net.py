"""A network that runs split over ranks, as its user has it: called, streamed to, followed."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import Any

import torch

from mpiconv.errors import UsageError
from mpiconv.job.control import bcast_json
from mpiconv.runtime.compute.engines import keeps_nan
from mpiconv.runtime.engine import mismatch
from mpiconv.runtime.feed import Feed
from mpiconv.runtime.following import Following
from mpiconv.runtime.inputs import why_unfit
from mpiconv.runtime.orders import TOLD, Kind, Order


class DistributedNet(Following):
    """A network split over ranks; made by ``distribute``, called with pictures. Both are collective.

    Examples
    --------
    >>> with mpiconv.distribute(model, plan, MPI.COMM_WORLD) as net:  # on every rank
    ...     output = net(images if MPI.COMM_WORLD.rank == 0 else None)
    """

    def __enter__(self) -> DistributedNet:
        return self

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
            On every rank, for pictures of another shape than the plan's; the network can be called again.
        MpiconvError
            A rank failed; the network cannot be called again.
        """
        self._open.end()
        number = self._engine.number
        answer, refusal = self._together(lambda: self._called(images) if self._is_root else self._helped(number))
        if refusal:
            raise UsageError(refusal)
        return answer

    def _called(self, images: torch.Tensor | None) -> tuple[Any, str]:
        """The answer to some pictures, or why they are refused. On rank 0."""
        engine = self._engine
        if engine.empty:  # else ranks were lost, and they are run again
            try:
                checked = self._checked(images)
            except UsageError as error:
                engine.orders.give(Order(Kind.REFUSED))
                return None, bcast_json(self.team, str(error), what=TOLD.name)
            engine.run(checked)
        return engine.answer(), ""

    def _helped(self, number: int) -> tuple[None, str]:
        """The same for frame ``number`` on the other ranks; also with frames before it that rank 0 runs again."""
        engine = self._engine
        while (kind := engine.next_kind()) is Kind.RUN:
            found = engine.orders.first.number
            if found > number:  # rank 0 has the answer of this one
                engine.number = max(engine.number, number + 1)
                return None, ""
            engine.run()
            engine.answer()
            if found == number:
                return None, ""
        if kind is not Kind.REFUSED:
            raise mismatch(kind, Kind.RUN)
        engine.orders.take()
        return None, bcast_json(self.team, "", what=TOLD.name)

    def stream(self, batches: Iterable[torch.Tensor] | None = None, *, copy: bool = True) -> Iterator[Any]:
        """Run batch after batch, ``settings.in_flight`` of them under way at a time. Collective.

        The outputs come in the order of the batches; on other ranks than 0, which pass no batches, they are None.

        Rank 0 may leave it early (``break``, an exception, closing it): the batches under way are finished, the other
        ranks' iterators end, and the network can be used again. Another rank that leaves it goes on helping until rank
        0 is through. An exception from ``batches`` is raised after the outputs of the batches before it.

        Parameters
        ----------
        batches
            On rank 0 float32 tensors of the plan's shape (N, C, H, W). A batch may be overwritten once the next one is
            asked for, as a camera does that has one buffer.
        copy
            False saves the copies that this needs where several are under way: batches stay until they are answered.

        Raises
        ------
        UsageError
            On rank 0, after the outputs before it, if a batch has another shape than the plan.
        MpiconvError
            A rank failed while it ran; the network cannot be used again.
        """
        self._open.end()
        copied = self._builder.memory.format if copy and self.settings.in_flight > 1 else None
        stream = self._stream(Feed(batches if self._is_root else None, self._checked, copied))
        next(stream)  # from here on leaving it tells the others
        self._open.begin(stream)
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
        while True:
            try:
                with self._health.together():
                    yield from self._engine.frames(feed)
                return
            except BaseException as error:  # noqa: PERF203 - once a loss
                self._recover(error)

    def _checked(self, images: torch.Tensor | None) -> torch.Tensor | None:
        if not self._is_root:
            return None
        unfit = why_unfit(images, self.plan.input_shape, finite=not keeps_nan(self.settings.compute))
        if unfit or images is None:
            raise UsageError(unfit)
        return images.detach().contiguous()
