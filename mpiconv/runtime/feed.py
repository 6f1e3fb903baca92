"""The batches of a stream, taken from the user one at a time."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import torch

from mpiconv.errors import UsageError

Check = Callable[[torch.Tensor | None], torch.Tensor | None]


class Feed:
    """What rank 0 streams, and until when: the batches' end, an exception that they raise, or ``end``.

    Parameters
    ----------
    batches
        The user's; None for none.
    check
        Raises an exception for a batch that does not fit, else returns it.
    copied
        The memory format in which every batch is copied, since the user may write over it; None for no copies.

    Attributes
    ----------
    error
        The exception that ended it, to be raised once what came before is done.
    """

    def __init__(
        self, batches: Iterable[torch.Tensor] | None, check: Check, copied: torch.memory_format | None
    ) -> None:
        self.error: BaseException | None = None
        self._check, self._copied = check, copied
        self._source: Iterator[torch.Tensor] | None = None
        self._batches = batches

    def end(self) -> None:
        """Take no more batches."""
        self._source = self._batches = None

    def next(self) -> torch.Tensor | None:
        """The next batch; None for no more."""
        try:
            if self._batches is not None:
                self._source, self._batches = iter(self._batches), None
            if self._source is None:
                return None
            images = self._check(next(self._source))
        except StopIteration:
            self.end()
            return None
        except BaseException as error:
            self.end()
            self.error = error
            return None
        return images if images is None or self._copied is None else images.clone(memory_format=self._copied)


class OpenStream:
    """The stream that a network is in, if it is in one: there is one at a time, and other calls end it."""

    def __init__(self) -> None:
        self._stream: weakref.ref[Generator[Any, None, None]] | None = None

    def begin(self, stream: Generator[Any, None, None]) -> None:
        """It is in this one from now on, until its user leaves it."""
        self._stream = weakref.ref(stream)

    def end(self) -> None:
        """Leave it: the batches under way are finished. Raises UsageError where one of its batches asks for that."""
        stream = self._stream() if self._stream is not None else None
        self._stream = None
        if stream is not None:
            try:
                stream.close()
            except ValueError:
                raise UsageError("the network was used from within the batches of its own stream") from None
