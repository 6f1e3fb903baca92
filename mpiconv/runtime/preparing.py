"""What all ranks do together before a network runs: at the start, and on those who are left each time some are lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Any

from mpiconv.job.control import bcast_json, on_root
from mpiconv.job.team import Team
from mpiconv.job.world import default_timeout_s
from mpiconv.models.weights import is_finite
from mpiconv.partition.turns import AnyPlan, any_plan_of
from mpiconv.runtime.builder import Builder, Built, Model
from mpiconv.runtime.settings import Settings
from mpiconv.runtime.weights import Progress

Ready = Callable[[], tuple[AnyPlan, Model]]
"""What rank 0 comes with: a plan that fits the network, and what it knows of it. Raises MpiconvError."""


@dataclass(frozen=True)
class Prepared:
    """A network ready to run on this rank: who makes its plans ready, and the first of them.

    ``tracing_s`` is what rank 0 took to trace the model and to compare what was traced with it.
    """

    team: Team
    settings: Settings
    builder: Builder
    built: Built
    tracing_s: float


def prepare(
    team: Team,
    ready: Ready,
    settings: Settings,
    progress: Progress | None = None,
    before: Builder | None = None,
    made: Callable[[Builder], object] = lambda _: None,
) -> Prepared:
    """Send every rank its plan, and the weights that it has not. Collective.

    Parameters
    ----------
    ready
        Called on rank 0 alone.
    settings
        How to run it: the root's count, of the others only ``pace``.
    progress
        As for ``distribute``.
    before
        What this rank had before others were lost: the rows of weights that it has need not come again.
    made
        Is told who makes plans ready before anything is sent.
    """
    begin = perf_counter()
    checked = on_root(team, ready, what="preparing the network")
    tracing_s = perf_counter() - begin
    known = checked[1] if checked is not None else Model({}, {})
    if not all(map(is_finite, known.state.values())):
        settings = replace(settings, compute="eager")  # what is compiled makes numbers of NaN
    about: dict[str, Any] | None = None
    if checked is not None:
        about = {"plan": checked[0].to_dict(), "unsaved": known.unsaved, "settings": asdict(settings)}
    about = bcast_json(team, about)
    shared = checked[0] if checked is not None else any_plan_of(about["plan"])
    known = replace(known, unsaved=about["unsaved"])
    settings = _agreed(Settings(**about["settings"]), settings.pace, team)
    params = [param.key for unit in shared.graph.units for param in unit.params]
    builder = Builder(team, settings, known, params, before)
    made(builder)
    on_root(team, lambda: builder.check(shared, shared.batch))
    return Prepared(team, settings, builder, builder.build(shared, progress), tracing_s)


def _agreed(settings: Settings, pace: float, team: Team) -> Settings:
    """The root's settings, with what depends on rank and team; the team's waits end as they say. Collective."""
    asked, watch = settings.rank_timeout_s, team.watch
    watch.limit_s = bcast_json(team, default_timeout_s()) if asked is None or watch.lifeline is not None else asked
    watch.idle_limit_s = asked or 0.0
    if watch.lifeline is not None:
        watch.lifeline.timeout_s, watch.idle_limit_s = asked, 0.0
    wait = settings.wait if settings.wait != "auto" else "sleep" if team.crowded else "spin"
    # JSON has lists for tuples
    return replace(
        settings,
        pace=pace,
        wait=wait,
        readers=tuple(settings.readers),
        as_slices=tuple(settings.as_slices),
        inject=tuple(settings.inject),
        backups=tuple(settings.backups),
    )
