"""Whether a network can still be used: an exception on one rank ends it on all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mpiconv.errors import MpiconvError, reason
from mpiconv.job.progress import Progress
from mpiconv.job.team import Team


class Health:
    """Makes ranks that work together fail together, instead of waiting for one that failed.

    Attributes
    ----------
    broken
        Why the network cannot be used any more; empty while it can.
    progress
        What lets messages move while ranks are ``together``.
    """

    def __init__(self, team: Team) -> None:
        self._team, self.broken = team, ""
        self.progress = Progress(wanted=False)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What ranks do together: an exception on one is told to the others, who would wait for it.

        One that is for the loss of a rank is not: those who are left may go on.
        """
        if self.broken:
            raise MpiconvError(f"this network cannot be used any more: {self.broken}")
        try:
            with self.progress:
                yield
        except BaseException as error:
            if not self._team.watch.explains(error):
                self.fail(error)
            raise

    def fail(self, error: BaseException) -> None:
        """Have the network never be used again, and tell the other ranks; nothing where it is so already."""
        if not self.broken:
            self.broken = reason(error, self._team.rank)
            self._team.watch.failed(error)
