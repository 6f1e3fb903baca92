"""SIGTERM and SIGUSR1 as a request to end soon, noted here and obeyed where it suits. Standard library only."""

from __future__ import annotations

import signal
from collections.abc import Callable
from time import monotonic
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Ended(BaseException):
    """SIGTERM where nothing is lost by ending at once. No Exception, so that nobody takes it for a failure."""


class Caught:
    """The first of ``SIGNALS`` that this process got since ``catch_signals``.

    Attributes
    ----------
    number
        Its number, 0 while there was none.
    at_once
        Whether SIGTERM raises ``Ended`` in the main thread, instead of being noted alone.
    ending
        Whether SIGTERM was among them.
    when_s
        When the first SIGTERM came, by ``time.monotonic``.
    """

    def __init__(self) -> None:
        self.number = 0
        self.at_once = False
        self.ending = False
        self.when_s = 0.0
        self._callback: Callable[[], object] | None = None

    @property
    def name(self) -> str:
        """Its name, like SIGUSR1, empty while there was none."""
        return signal_name(self.number)

    def tell(self, callback: Callable[[], object] | None) -> None:
        """Call this at every signal from now on, and at once if there was one already; None for nobody."""
        self._callback = callback
        if self.number and callback is not None:
            callback()

    def note(self, number: int, _: FrameType | None = None) -> None:
        """Take note of a signal; this is the handler."""
        self.number = self.number or number
        if number == signal.SIGTERM:
            if not self.ending:
                self.ending, self.when_s = True, monotonic()
            if self.at_once:
                raise Ended("ended by SIGTERM")
        if self._callback is not None:
            self._callback()


caught = Caught()
"""What this process was signalled."""


def catch_signals(*, at_once: bool = False) -> Caught:
    """Note SIGTERM and SIGUSR1 from now on instead of ending at once. For the main thread of a command."""
    caught.at_once = at_once
    for number in SIGNALS:
        signal.signal(number, caught.note)
    return caught


def signal_name(number: int) -> str:
    """The name of a signal, like SIGUSR1; empty for 0."""
    return signal.Signals(number).name if number else ""
