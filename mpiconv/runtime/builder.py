"""Makes a plan ready on this rank, the first one and each one after it: weights, local units, exchanges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from time import perf_counter

import numpy as np
import torch
from torch import nn

from mpiconv.errors import PlanError, UsageError
from mpiconv.graph.form import PICTURE
from mpiconv.job.control import allgather_json, bcast_json
from mpiconv.job.team import Team
from mpiconv.job.waiting import meet, wait
from mpiconv.job.watch import Place
from mpiconv.partition import Exchange, Plan
from mpiconv.partition.holdings import Holdings, holdings
from mpiconv.partition.leaving import with_backups
from mpiconv.partition.plan import FLOAT_BYTES, plans_of
from mpiconv.partition.schedule import Schedule, schedule, worth_overlapping
from mpiconv.partition.schemes import ROOT
from mpiconv.partition.turns import AnyPlan
from mpiconv.runtime.compute import onednn
from mpiconv.runtime.compute.engines import channels_last
from mpiconv.runtime.cores import Cores
from mpiconv.runtime.emulation import Paced
from mpiconv.runtime.exchange.base import MEDIA, medium_of
from mpiconv.runtime.exchange.parts import Counter, Memory
from mpiconv.runtime.frames import Slot
from mpiconv.runtime.guard import Guard
from mpiconv.runtime.settings import Settings
from mpiconv.runtime.units import LocalUnits
from mpiconv.runtime.weight_cache import CacheStore, WeightCache, hashes_of, users
from mpiconv.runtime.weights import FileStore, Progress, Store, Weights
from mpiconv.words import counted

PROBE_BYTES = 2**16
TAG = 14


@dataclass(frozen=True)
class Model:
    """What rank 0 knows of the network; empty on the others.

    ``modules`` are what only the root runs, by the layer's name; ``state`` the tensors; ``unsaved`` the keys of those
    that are in no file of weights.
    """

    modules: Mapping[str, nn.Module]
    state: Mapping[str, torch.Tensor]
    unsaved: Sequence[str] = ()


@dataclass(frozen=True)
class Built:
    """A plan, or several in turn, made ready on this rank: the slots of frames, and what is to be known of them.

    ``lends``: this rank waits asleep, since another computes on its core.
    """

    plan: AnyPlan
    slots: tuple[Slot, ...]
    paced: tuple[Paced, ...]
    weight_bytes: int
    lends: bool = False

    @property
    def overlapped(self) -> tuple[str, ...]:
        """The units whose output is sent piece by piece while the rest is computed."""
        steps = zip(*(slot.steps for slot in self.slots), strict=True)
        units = zip(self.plan.graph.units, steps, strict=True)
        return tuple(unit.name for unit, each in units if any(step.early for step in each))

    @property
    def sharing(self) -> bool:
        """Whether this rank exchanges maps through memory that it shares with others of its host."""
        return any(slot.sharing for slot in self.slots)

    @property
    def messages(self) -> bool:
        """Whether this rank sends or receives messages."""
        found = (exchanger for slot in self.slots for parts in slot.exchangers.values() for exchanger in parts)
        return any(e.messages and e.pattern != "none" for e in found)

    @property
    def counters(self) -> list[list[tuple[str, Counter]]]:
        """For every unit the exchanges before it: their pattern and what they counted, over all frames."""
        return [
            [(e.pattern, e.counter) for slot in self.slots for i in slot.plan.incoming(u) for e in slot.exchangers[i]]
            for u in range(len(self.plan.graph.units))
        ]

    def close(self) -> None:
        """Give back messages."""
        for slot in self.slots:
            slot.close()


class Builder:
    """Makes plans for one network on one team ready, one after the other. Collective.

    Attributes
    ----------
    guard
        Which unit first made what is not finite.
    weights
        The rows of weights that this rank has.
    memory
        How the maps of all its plans lie in memory.
    weights_s
        s that getting the weights of the last plan took.
    """

    def __init__(
        self, team: Team, settings: Settings, model: Model, params: Sequence[str], before: Builder | None = None
    ) -> None:
        """``params`` are the keys of all the network's tensors, which all ranks know.

        ``before`` is the one that is given up since ranks were lost, None where this rank has none: weights stay.
        """
        if before is not None:
            before.close()
        self._team, self._settings, self.model = team, settings, model
        self._teams = [team, *(team.twin() for _ in range(1, settings.in_flight))]
        measured = settings.overlap == "auto" and team.size > 1
        self._seconds_per_byte = _seconds_per_byte(team, settings.dilation) if measured else 0.0
        self._slow_at_edges = allgather_json(team, onednn.slow_at_edges())
        stores: list[Store] = []
        if team.rank in settings.readers:
            stores.append(FileStore(settings.weights_file, params, model.unsaved))
        cached = users(team, settings.weight_cache, ROOT)
        self._hashed, self._cache = bool(cached), None
        if team.rank in cached:
            folder = "" if settings.weight_cache == "auto" else settings.weight_cache
            self._cache = CacheStore(WeightCache(folder, settings.weight_cache_bytes))
            stores.append(self._cache)
        asked = bool(settings.readers or cached) or not team.whole
        self.weights: Weights = Weights(team, model.state, stores, before.weights if before else None, asked=asked)
        self.guard: Guard = before.guard if before else Guard(settings.guard)
        self._cores = Cores(team)
        self.weights_s = 0.0
        self.memory = Memory(channels_last=channels_last(settings.compute))
        self._units = LocalUnits(team.rank, self.weights, settings, model.modules, model.state)

    def check(self, plan: AnyPlan, batch: int) -> None:
        """Raise MpiconvError for a plan that cannot run here: for other ranks or batches, or with maps too large.

        And for several in turn where fewer batches are in flight.
        """
        if plan.ranks != self._team.size:
            raise UsageError(f"the plan is for {counted(plan.ranks, 'rank')} and {self._team.size} are running")
        if plan.batch != batch:
            found = counted(plan.batch, "picture")
            raise UsageError(f"the plan is for batches of {found}, and those that run have {batch}")
        plans = plans_of(plan)
        check_in_flight(len(plans), self._settings.in_flight)
        for each in plans:
            check_sizes(self.schedule(each))

    def build(self, plan: AnyPlan, progress: Progress | None = None) -> Built:
        """Make a checked plan ready, and drop what only the plan before it needed. Collective."""
        carried, wanted = [self.schedule(each) for each in plans_of(plan)], self._wanted(plan)
        if self._hashed:
            self._tell_hashes(wanted)
        begin = perf_counter()
        came = self.weights.adopt(wanted, progress)
        self.weights_s = perf_counter() - begin
        if self._cache is not None:
            self._cache.keep(came)
        if self._cores.use(plan):
            self._units.close()  # what is compiled is compiled for a number of threads
        computes = self._units.adopt(carried)
        guarded = [self.guard.around(s.plan, u, self._team.rank) for s, u in zip(carried, computes, strict=True)]
        how = {"ahead": self._settings.in_flight > 1, "yields": len(carried) > 1}
        turns = list(zip(carried, guarded, strict=True))
        made = zip(self._teams, cycle(turns), strict=False)
        slots = tuple(Slot(schedule, team, self.memory, units, **how) for team, (schedule, units) in made)
        return Built(plan, slots, tuple(self._units.paced), self._units.weight_bytes, self._cores.lends)

    def _wanted(self, plan: AnyPlan) -> Holdings:
        """The rows of weights that each rank is to hold."""
        return with_backups(plan, self._settings.backups) if self._settings.backups else holdings(plan)

    def close(self) -> None:
        """Give compiled units to the spares, and cores back."""
        self._units.close()
        self._cores.close()

    def _tell_hashes(self, wanted: Holdings) -> None:
        """Have every rank know the hashes of the tensors that others than the root need. Collective."""
        params = [param for param, spans in wanted.items() if any(spans[:ROOT] + spans[ROOT + 1 :])]
        found = hashes_of(params, self.model.state) if self._team.rank == ROOT else None
        found = bcast_json(self._team, found, what="the hashes of the weights")
        if self._cache is not None:
            self._cache.marks = dict(zip(params, found, strict=True))

    def schedule(self, plan: Plan) -> Schedule:
        """What the plan comes to on these hosts.

        Where maps change hands in shared memory nothing travels that more computing could hide.
        """

        def medium(spread: Exchange) -> str:
            return medium_of(spread, self._team, self._settings)

        def overlap(spread: Exchange) -> bool:
            if self._settings.overlap == "on":
                return self._team.size > 1
            return MEDIA[medium(spread)].hides and worth_overlapping(plan, spread, self._seconds_per_byte)

        return schedule(plan, medium, overlap=overlap, slow_at_edges=self._slow_at_edges)


def check_in_flight(plans: int, in_flight: int) -> None:
    """Raise UsageError where fewer batches are in flight than there are plans to take turns between."""
    if plans > in_flight:
        raise UsageError(
            f"{plans} plans in turn need at least {plans} batches in flight (--in-flight), twice as many to have the "
            f"next picture on its way meanwhile: {in_flight} is set"
        )


def check_sizes(carried: Schedule) -> None:
    """Raise PlanError where a map is more than its medium can count."""
    plan = carried.plan
    for source, move in carried.moves.items():
        each = carried.bytes_received, carried.bytes_sent
        moved = max(count(source, rank) for count in each for rank in range(plan.ranks))
        most = MEDIA[move.medium].largest_items
        if most is not None and moved > FLOAT_BYTES * most:
            unit = "the picture" if source == PICTURE else f"unit {plan.graph.units[source].name}"
            raise PlanError(
                f"the messages with the output of {unit} have {moved / 2**30:.1f} GiB, "
                f"MPI can count {FLOAT_BYTES * most / 2**30:.1f}: use smaller batches or pictures"
            )


def _seconds_per_byte(team: Team, dilation: float) -> float:
    """What a byte takes on the slowest link of a ring, undilated, the same on all ranks. Collective."""
    out, back = np.zeros(PROBE_BYTES, np.uint8), np.empty(PROBE_BYTES, np.uint8)
    right, left = (team.rank + 1) % team.size, (team.rank - 1) % team.size
    times, place = [], Place("the measurement of the links", (left, right))
    for _ in range(2):
        meet(team, place.name)
        begin = perf_counter()
        wait(team, [team.comm.Irecv(back, left, TAG), team.comm.Isend(out, right, TAG)], place)
        times.append(perf_counter() - begin)
    slowest: float = max(allgather_json(team, min(times), what=place.name))
    return slowest / PROBE_BYTES / dilation
