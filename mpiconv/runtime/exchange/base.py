"""What moves maps between ranks: one interface for every medium, and the register of media."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, TypeVar

import torch

from mpiconv.job.team import Team
from mpiconv.job.waiting import Awaited, Flags
from mpiconv.partition import Exchange
from mpiconv.partition.schedule import Held, Move
from mpiconv.runtime.exchange.parts import Counter, Memory

if TYPE_CHECKING:
    from mpiconv.runtime.settings import Settings


class Exchanger(ABC):
    """One map's exchange on one rank, or a part of it. Frame by frame: ``start``, wait, ``finish``, read, ``release``.

    Attributes
    ----------
    held, holds, padded
        What this rank has of the map afterwards; whether that is what it computed; whether padding is around it.
    buffer
        Where it lies afterwards, if that is always the same place.
    addresses
        The memory of ``buffer``, where others write into it.
    counter
        The payload that was moved so far.
    pattern
        Of the exchange, or ``none`` where this rank takes no part.
    idle
        Whether there is nothing to do for this rank: it has what it needs, where it made it, and sends nothing.
    messages
        Whether MPI moves the map, which wants to be looked at now and then.
    lends
        Whether what ``finish`` returned is written over once this rank has called ``release``.
    any_order
        Whether ``start`` takes a map in any order of memory, and turns it.
    room
        What has to be reached before ``start``; None for nothing.
    """

    idle = messages = lends = any_order = False
    room: Flags | None = None
    buffer: torch.Tensor | None = None
    addresses = range(0)

    def __init__(self, held: Held, pattern: str) -> None:
        self.held, self.holds, self.padded = held.box, held.holds, held.padded
        self.pattern, self.counter = pattern, Counter()

    @abstractmethod
    def start(self, tensor: torch.Tensor | None) -> Awaited:
        """Begin to move a map; ``tensor`` (N, *own box) is what this rank made of it. Returns what to wait for."""

    @abstractmethod
    def finish(self) -> torch.Tensor | None:
        """A tensor (N, *held), None for an empty box; only after what ``start`` returned is there."""

    def release(self) -> None:  # noqa: B027 - most have nothing to say
        """Say that this rank has read the frame."""

    def close(self) -> None:  # noqa: B027 - or to give back
        """Free requests and buffers that live as long as the exchanger."""


class Medium(ABC):
    """Makes the exchangers of one frame for the maps that it carries.

    ``name`` tells it from others; ``hides`` says that a map can travel while a rank computes; ``largest_items`` is the
    most float32 numbers that it moves at once, None for any. A subclass that is decorated with ``medium`` is asked
    before those that were there, whether it suits a map.

    Examples
    --------
    >>> @medium
    ... class Pigeons(Medium):
    ...     name = "pigeons"
    ...     def suits(self, exchange, team, settings):
    ...         return exchange.pattern == "p2p"
    ...     def exchangers(self, moves, batch, team, memory):
    ...         return {source: (Pigeon(move, team.rank),) for source, move in moves.items()}
    """

    name: ClassVar[str]
    hides: ClassVar[bool] = True
    largest_items: ClassVar[int | None] = None

    @abstractmethod
    def suits(self, exchange: Exchange, team: Team, settings: Settings) -> bool:
        """Whether it can carry a map with this exchange; all ranks find the same."""

    @abstractmethod
    def exchangers(
        self, moves: Mapping[int, Move], batch: int, team: Team, memory: Memory
    ) -> dict[int, tuple[Exchanger, ...]]:
        """This rank's exchangers of each map, one for each of its parts. Collective.

        A map that is missing, on all its ranks, goes by messages; so does one of which this rank is no member.
        """


MEDIA: dict[str, Medium] = {}
"""All media by name; the last is asked first."""

M = TypeVar("M", bound=type[Medium])


def medium(made: M) -> M:
    """Register a medium."""
    MEDIA[made.name] = made()
    return made


def medium_of(exchange: Exchange, team: Team, settings: Settings) -> str:
    """The name of the medium for a map: the last registered that suits it."""
    return next(name for name in reversed(MEDIA) if MEDIA[name].suits(exchange, team, settings))
