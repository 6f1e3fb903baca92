"""What a rank does when it has waited long: say for whom, hear of ranks that failed, give up when told to."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from time import monotonic, sleep

from mpi4py import MPI

from mpiconv.errors import MpiconvError, PeerError, reason
from mpiconv.job.lifeline import Lifeline
from mpiconv.job.lines import Lines
from mpiconv.signals import caught

TAG = 12
SAY_S = 10.0
ANNOUNCE_PART = 0.8
SIGNAL_S = 1.5
DELIVER_S = 1.0
LONGEST_TEXT = 1000


@dataclass(frozen=True)
class Place:
    """What a rank waits in: a unit or a phase by ``name``, and the ranks that it needs there, empty for any.

    ``idle`` says that only the user knows when it goes on, as before a picture: no deadline applies unless one was
    asked for.
    """

    name: str
    ranks: tuple[int, ...] = ()
    idle: bool = False


START = Place("the start of the next picture", (0,), idle=True)


class Watch:
    """Looks after the long waits of one rank among the ranks of a communicator.

    A rank that has waited for some seconds announces that to all others, so that each knows who does not wait, but
    computes, is stopped or cannot be reached. The one of the lowest number says so on stderr. Ranks that wait also
    hear of a rank that failed.

    Parameters
    ----------
    comm
        A communicator for its messages alone, which it frees; None where there is none yet: then it cannot tell for
        whom it waits.
    hosts
        The host of every rank.

    Attributes
    ----------
    limit_s, idle_limit_s
        How long a rank may wait before it gives up, in a place that is not idle or one that is; 0 for ever.
    lifeline
        What knows who is lost; None where the loss of a rank ends the job.
    """

    def __init__(
        self,
        comm: MPI.Intracomm | Lines | None = None,
        hosts: Iterable[str] = (),
        lifeline: Lifeline | None = None,
    ) -> None:
        self.comm, self.hosts = comm, tuple(hosts)
        self.limit_s = self.idle_limit_s = 0.0
        self.lifeline = lifeline
        self._began: float | None = None
        self._say_at = SAY_S
        self._announced = False
        self._others: dict[int, str] = {}
        self._sent: list[MPI.Request] = []

    def check(self) -> None:
        """Raise Lost where a rank is lost that this one counts on."""
        if self.lifeline is not None:
            self.lifeline.check()

    def explains(self, error: BaseException) -> bool:
        """Whether an error is for the loss of a rank, without which the others may go on."""
        return self.lifeline is not None and self.lifeline.explains(error)

    def late(self, place: Place) -> None:
        """To be called now and then while waiting, until ``over``.

        Raises
        ------
        PeerError
            Another rank failed.
        MpiconvError
            The limit is over, or the process was told to end.
        """
        if self.lifeline is not None:
            self.lifeline.look()  # which its thread does, where there can be one
        now = monotonic()
        if self._began is None:
            self._began, self._say_at = now, SAY_S
        waited = now - self._began
        self._hear()
        if caught.ending and now - max(self._began, caught.when_s) > SIGNAL_S:
            raise MpiconvError(
                f"ended by {caught.name} while waiting for {self._missing(place)}: what was measured is lost"
            )
        limit = self.idle_limit_s if place.idle else self.limit_s
        if not self._announced and waited >= ANNOUNCE_PART * min(SAY_S, limit or SAY_S):
            self._announced = True
            self._tell("waits", place.name)
        if limit and waited >= limit:
            raise MpiconvError(
                f"{self._missing(place)} did not answer for {limit:g} s: see whether the process lives and its host "
                "can be reached (--rank-timeout SECONDS waits longer, 0 for ever)"
            )
        if waited >= self._say_at:
            self._say_at *= 2
            if not any(rank < self._rank for rank in self._others):
                print(f"mpiconv: waiting {waited:.0f} s for {self._missing(place)}", file=sys.stderr, flush=True)

    def over(self) -> None:
        """The wait is over."""
        self._began = None
        if self._announced:
            self._announced = False
            self._tell("goes on", "")

    def failed(self, error: BaseException) -> None:
        """Tell all others, who may wait for this rank for ever, that and why it failed."""
        if getattr(error, "everywhere", False) or self.comm is None:
            return
        self._tell("failed", reason(error, self.comm.rank))
        end = monotonic() + DELIVER_S
        while not MPI.Request.Testall(self._sent) and monotonic() < end:
            sleep(1e-3)

    def close(self) -> None:
        """Give back its communicator; it tells and hears nothing any more. Collective."""
        if self.comm is not None:
            self.comm.Free()
            self.comm = None

    @property
    def _rank(self) -> int:
        return self.comm.rank if self.comm is not None else 0

    def _tell(self, kind: str, text: str) -> None:
        if self.comm is None:
            return
        data = json.dumps([kind, text[:LONGEST_TEXT]]).encode()
        others = [rank for rank in range(self.comm.size) if rank != self.comm.rank]
        self._sent = [r for r in self._sent if not r.Test()]
        self._sent += [self.comm.Isend([data, MPI.BYTE], rank, TAG) for rank in others]

    def _hear(self) -> None:
        status = MPI.Status()
        while self.comm is not None and self.comm.Iprobe(MPI.ANY_SOURCE, TAG, status):
            data = bytearray(status.Get_count(MPI.BYTE))
            self.comm.Recv([data, MPI.BYTE], status.source, TAG)
            kind, text = json.loads(data)
            if kind == "failed":
                raise PeerError(text)
            self._others.pop(status.source, None)
            if kind == "waits":
                self._others[status.source] = text

    def _missing(self, place: Place) -> str:
        """Whom this rank waits for, as far as it can tell, and where."""
        where = f"in {place.name}"
        if self.comm is None:
            return f"another rank {where}"
        others = [rank for rank in range(self.comm.size) if rank != self.comm.rank]
        silent = [rank for rank in others if rank not in self._others]
        found = [rank for rank in silent if rank in place.ranks] or silent
        if not found:
            found = [rank for rank in others if rank in place.ranks] or others
            where += ", who waits too: a message between them is lost"
        return f"{', '.join(f'rank {rank} (host {self.hosts[rank]})' for rank in found)} {where}"
