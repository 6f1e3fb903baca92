"""SIGTERM and SIGUSR1 as a request to end soon, noted here and obeyed where it suits. Standard library only."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Caught:
    """The first of ``SIGNALS`` that this process got since ``catch_signals``.

    Attributes
    ----------
    number
        Its number, 0 while there was none.
    """

    def __init__(self) -> None:
        self.number = 0
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
        if self._callback is not None:
            self._callback()


def catch_signals() -> Caught:
    """Note SIGTERM and SIGUSR1 from now on instead of ending at once. For the main thread of a command."""
    caught = Caught()
    for number in SIGNALS:
        signal.signal(number, caught.note)
    return caught


def signal_name(number: int) -> str:
    """The name of a signal, like SIGUSR1; empty for 0."""
    return signal.Signals(number).name if number else ""
