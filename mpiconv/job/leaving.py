"""Those who are left when ranks are lost, as a team."""

from __future__ import annotations

from mpiconv.errors import MpiconvError
from mpiconv.job.lifeline import Lifeline, Stage
from mpiconv.job.lines import Lines
from mpiconv.job.team import Team


def team_of_left(lifeline: Lifeline, stage: Stage, limits_s: tuple[float, float] = (0.0, 0.0)) -> tuple[Team, Stage]:
    """Agree with those who are left on who that is; them as a team, and rank 0's stage. On all of them.

    ``stage`` is this rank's, ``limits_s`` are those of the team's watch.

    Raises
    ------
    MpiconvError
        Rank 0 is lost; or, as Refused, this rank counts as lost.
    """
    while True:
        stage = lifeline.agree(stage)
        lines = Lines.after(lifeline.comm, lifeline.places, lifeline.losses)
        try:
            team = Team.formed(lines, lines.twin(), lifeline)
        except BaseException as error:
            if not lifeline.explains(error):
                raise
            lifeline.kept.append(error)
        else:
            team.watch.limit_s, team.watch.idle_limit_s = limits_s
            return team, stage


def without_lost(team: Team, stage: Stage) -> tuple[Team, Stage]:
    """The same for a team of which some are lost."""
    if team.watch.lifeline is None:
        raise MpiconvError("this MPI job does not outlive a rank: mpirun --with-ft ulfm does, where it is Open MPI")
    return team_of_left(team.watch.lifeline, stage, (team.watch.limit_s, team.watch.idle_limit_s))
