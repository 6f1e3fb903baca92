"""Words of a command line: taken out, and made to fit fewer ranks. Pure functions."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence

FIRST_TO_OUTLIVE = 5
"""The first major version of Open MPI that has fault tolerance."""

OWN = {
    "--keep-going": 0,
    "-n": 1,
    "--ranks": 1,
    "--hostfile": 1,
    "--launcher": 1,
    "--max-restarts": 1,
    "--take-in-after": 1,
    "--answers": 1,
    "--resume": 0,
}
"""Options that are for the one who starts mpirun, or that it sets itself, and how many words each takes."""

LISTS = ("--shares", "--pace", "--memory-limit")
"""Options that may have one value for every rank."""

FOR_ALL = {"--plan": 1, "--offload": 1}
"""Options that only fit the ranks that they are for."""


def outlives_ranks(version: str) -> bool:
    """Whether the mpirun that says this of its version can go on when a rank dies: Open MPI's from 5.0 on."""
    found = re.search(r"Open MPI\D* (\d+)\.", version)
    return found is not None and int(found[1]) >= FIRST_TO_OUTLIVE


def agent_of(launcher: Sequence[str], environment: Mapping[str, str]) -> tuple[str, ...]:
    """What an mpirun calls in place of ssh, by its options or the environment; empty for ssh."""
    for name, value in itertools.pairwise(launcher):
        if name == "plm_ssh_agent":
            return tuple(value.split(":")[0].split())
    found = (environment.get(f"{prefix}plm_ssh_agent", "") for prefix in ("PRTE_MCA_", "OMPI_MCA_"))
    return tuple(next(filter(None, found), "").split(":")[0].split())


def without(words: Sequence[str], options: Mapping[str, int], known: Collection[str]) -> list[str]:
    """The words without these options and their values, also where they are abbreviated; ``known`` are all options."""
    kept, skip = [], 0
    for word in words:
        if skip:
            skip -= 1
            continue
        name, given, _ = word.partition("=")
        option = full_name(name, known)
        if option not in options and word[:2] in options and len(word) > 2 and not word.startswith("--"):
            continue  # -n4
        if option in options:
            skip = 0 if given else options[option]
        else:
            kept.append(word)
    return kept


def full_name(name: str, known: Collection[str]) -> str:
    """The option that a word stands for, which may be its beginning; the word itself if none."""
    if name in known or not name.startswith("--"):
        return name
    found = [option for option in known if option.startswith(name)]
    return found[0] if len(found) == 1 else name


def for_ranks(words: Sequence[str], left: Sequence[int], ranks: int, known: Collection[str]) -> tuple[list[str], str]:
    """The options for the ranks that are left, and which options are dropped for that, empty if none.

    Lists with a value per rank keep the values of those ranks; a plan for more ranks is left out, so that the planner
    makes one.
    """
    if len(left) == ranks:
        return list(words), ""
    names = {full_name(word.partition("=")[0], known) for word in words}
    kept = without(words, FOR_ALL, known)
    told = ", ".join(sorted(names & set(FOR_ALL)))
    return [_fewer(kept, i, left, ranks, known) for i in range(len(kept))], told


def _fewer(words: Sequence[str], index: int, left: Sequence[int], ranks: int, known: Collection[str]) -> str:
    """A word, or what of its list remains."""
    name, given, text = words[index].partition("=")
    if not given:
        name, text = words[index - 1] if index else "", words[index]
    values = text.split(",")
    if full_name(name, known) not in LISTS or len(values) != ranks:
        return words[index]
    chosen = ",".join(values[rank] for rank in left)
    return f"{name}={chosen}" if given else chosen
