"""A claim of the paper: its words, what came out in which setting, from which file, and whether that agrees."""

from __future__ import annotations

from dataclasses import dataclass

NEAR = 0.2
"""A measured number agrees with the paper's if it is within so much of it, relatively."""


@dataclass(frozen=True)
class Case:
    """What came out in one setting; ``holds`` is None where there is nothing to decide or it was not measured."""

    setting: str
    found: str
    source: str
    holds: bool | None = None


@dataclass(frozen=True)
class Claim:
    """One claim: where it stands, what the paper says, the cases, and why they come out as they do."""

    where: str
    paper: str
    cases: tuple[Case, ...]
    why: str = ""

    @property
    def verdict(self) -> str:
        """In one word or two, for the overview."""
        decided = {case.holds for case in self.cases if case.holds is not None}
        if decided:
            return "in part" if len(decided) > 1 else "holds" if decided == {True} else "does not hold"
        return "shown" if self.cases else "not measured yet"


def near(found: float, paper: float) -> bool:
    """Whether a measured number agrees with the paper's."""
    return abs(found / paper - 1) <= NEAR


def numbers(values: list[float], form: str = ",.0f") -> str:
    """Numbers in a row."""
    return ", ".join(f"{value:{form}}" for value in values)
