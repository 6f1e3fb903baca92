"""Where this process is in the job of a command that outlives ranks."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch

from mpiconv.cli.options import pace_of
from mpiconv.job import launcher
from mpiconv.job.control import bcast_json
from mpiconv.job.team import Team
from mpiconv.job.world import default_timeout_s, join_world, rooted


@dataclass(frozen=True)
class Place:
    """Where this process is in the job: its team, the numbers that mpirun gave to the ranks, its pace.

    ``living`` are the team's ranks as they were numbered at the start, ``kept`` as in the team before it.
    """

    team: Team
    launched: list[int]
    pace: float
    living: tuple[int, ...]
    kept: tuple[int, ...] = ()

    def of(self, left: Team) -> Place:
        """The same among those who are left."""
        living = left.watch.lifeline.living if left.watch.lifeline is not None else self.living
        kept = tuple(self.living.index(rank) for rank in living)
        return Place(left, [self.launched[rank] for rank in kept], self.pace, living, kept)


def join_job(arguments: argparse.Namespace) -> Place:
    """All ranks, with the root first. Collective."""
    asked = default_timeout_s() if arguments.rank_timeout is None else arguments.rank_timeout
    joined = join_world(rank_timeout_s=asked)
    launcher.open_stderr()
    torch.set_num_threads(arguments.threads)
    pace = pace_of(arguments, joined.rank, joined.size)
    team, launched = rooted(joined, arguments.root)
    if team.watch.lifeline is None:
        arguments.rank_timeout = team.watch.limit_s
    else:
        team.watch.lifeline.timeout_s = arguments.rank_timeout or None
        team.watch.limit_s = team.watch.idle_limit_s = bcast_json(team, default_timeout_s())
    return Place(team, launched, pace, tuple(range(team.size)))
