"""Where the time from the start of a process to its first answer goes. Standard library only."""

from __future__ import annotations

from time import perf_counter

BEGAN_S = perf_counter()
"""When this was imported, which the command does first."""


class Startup:
    """Stages of starting up, each from the end of the one before; the first from the start of the process."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}

    def done(self, stage: str) -> None:
        """Note that a stage has ended, the first time that it is said."""
        if stage not in self.stages:
            self.stages[stage] = perf_counter() - BEGAN_S - self.seconds

    def took(self, stage: str, seconds: float) -> None:
        """Note a stage by what it took; the next one counts from its end."""
        self.stages.setdefault(stage, seconds)

    @property
    def seconds(self) -> float:
        """From the start to the end of the last stage."""
        return sum(self.stages.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in self.stages.items())
        return f"start-up {self.seconds:.2f} s to the first answer: {parts}"
