"""The frames under way, in order: their pictures, slots and states. They are kept until they are answered."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch

from mpiconv.job.waiting import Awaited
from mpiconv.runtime.frames import Slot

Work = Generator[Awaited, None, Any]

MOST_WAITING = 64
"""Frames that are not answered to the user, for each slot: those behind a slow device's, whose answers are there."""


class State(Enum):
    """How far a frame is."""

    NEW = "nothing of it is done"
    RUNNING = "it has begun"
    LEAVING = "only its last unit is left, and the next frame may come into its slot"
    ANSWERED = "its output is there"


@dataclass
class Frame:
    """A batch under way: its number, its pictures (on rank 0), its slot, the rest of its work, what that waits for.

    It has no slot before it can begin.
    """

    number: int
    images: torch.Tensor | None
    slot: Slot | None = None
    work: Work | None = None
    awaited: Awaited = field(default_factory=Awaited)
    state: State = State.NEW
    answer: Any = None

    def advance(self) -> None:
        """Do what can be done without waiting."""
        assert self.work is not None  # noqa: S101 - it has begun
        self.state = State.RUNNING if self.state is State.NEW else self.state
        with torch.inference_mode():
            try:
                self.awaited = next(self.work)
            except StopIteration as end:
                self.answer, self.state = end.value, State.ANSWERED
                self.images = None  # where devices take turns a slow one may hold up many answers

    def redo(self) -> None:
        """Nothing of it is done."""
        self.slot = self.work = None
        self.awaited, self.state = Awaited(), State.NEW


class Queue:
    """Frames in their order, each in a slot of its own.

    Attributes
    ----------
    idle
        The slots that the next frames can come into.
    frames
        All frames that are not answered to the user, in order.
    """

    def __init__(self, slots: Sequence[Slot], frames: Sequence[Frame] = ()) -> None:
        """``frames`` have their answers, or no slot yet."""
        self.idle, self.frames = list(slots), list(frames)
        self._slots = len(self.idle)

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def active(self) -> list[Frame]:
        """The frames that have work left."""
        return [frame for frame in self.frames if frame.state is not State.ANSWERED]

    @property
    def room(self) -> bool:
        """Whether another frame may come in: a slot is idle, and not too many answers wait for one before them."""
        return bool(self.idle) and len(self.frames) < MOST_WAITING * self._slots

    @property
    def waiting(self) -> Frame | None:
        """The first frame that has no slot yet; None if all have."""
        return next((frame for frame in self.active if frame.slot is None), None)

    def begin(self, frame: Frame, slot: Slot) -> None:
        """Let a frame into a slot, which is idle until now."""
        self.idle.remove(slot)
        frame.slot = slot

    def ready(self) -> Frame | None:
        """A frame that need not wait; a new one first, to have its picture on the way.

        Before that one of which this rank computes nothing, since others wait for what it passes on.
        """
        found = [(frame, slot) for frame in self.active if (slot := frame.slot) is not None and frame.awaited.done()]
        chosen = min(found, key=lambda each: (not each[1].only_passes_on, each[0].state is not State.NEW), default=None)
        return None if chosen is None else chosen[0]

    def advance(self, frame: Frame) -> None:
        """Do what a frame can do without waiting; its slot is idle again as soon as the next frame may come in."""
        left = frame.state is State.LEAVING
        frame.advance()
        if frame.state is not State.ANSWERED and frame.awaited.last:
            frame.state = State.LEAVING
        if not left and frame.slot is not None and frame.state in (State.LEAVING, State.ANSWERED):
            self.idle.append(frame.slot)

    def answered(self) -> Frame | None:
        """Remove and return the first frame if its output is there; else None."""
        there = self.frames and self.frames[0].state is State.ANSWERED
        return self.frames.pop(0) if there else None
