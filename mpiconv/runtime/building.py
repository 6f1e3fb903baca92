"""A network made ready to run split: every rank gets the plan, its weights, and what it computes and exchanges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from mpi4py import MPI
from torch import nn

from mpiconv.errors import PlanError, UsageError
from mpiconv.graph.form import PICTURE, Unit
from mpiconv.graph.tracers import unwrapped
from mpiconv.job.control import allgather_json, bcast_json, on_root
from mpiconv.job.team import Team
from mpiconv.job.waiting import meet, wait
from mpiconv.job.watch import Place
from mpiconv.job.world import default_timeout_s
from mpiconv.models.slices import rows_of
from mpiconv.models.weights import is_finite
from mpiconv.partition import Box, Exchange, Plan
from mpiconv.partition.pieces import Pieces
from mpiconv.partition.plan import FLOAT_BYTES
from mpiconv.partition.schedule import Schedule, schedule, worth_overlapping
from mpiconv.runtime.compute import onednn
from mpiconv.runtime.compute.engines import channels_last, local_unit
from mpiconv.runtime.compute.local import LocalUnit, weights_of
from mpiconv.runtime.compute.operations import WholeUnit
from mpiconv.runtime.emulation import slowed
from mpiconv.runtime.exchange.base import MEDIA, medium_of
from mpiconv.runtime.exchange.parts import Memory
from mpiconv.runtime.exchange.wire import WIRES
from mpiconv.runtime.frames import Compute, Slot
from mpiconv.runtime.guard import Guard
from mpiconv.runtime.heap import settle_heap
from mpiconv.runtime.net import DistributedNet
from mpiconv.runtime.selfcheck import traced_for
from mpiconv.runtime.settings import Settings
from mpiconv.runtime.spares import key_of, spares
from mpiconv.runtime.weights import LayerWeights, Progress, UnitWeights, check_state
from mpiconv.words import counted

Free = Callable[[], object]

PROBE_BYTES = 2**16
TAG = 14


def distribute(
    model: nn.Module | None,
    plan: Plan | None,
    comm: MPI.Intracomm | Team | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> DistributedNet:
    """Send every rank its plan and its slice of the weights, and make ready to run. Collective.

    Parameters
    ----------
    model
        The module that the plan was made for, on rank 0; the others pass None.
    plan
        The plan, on rank 0; the others pass None.
    comm
        The communicator, or a team of one; it must have as many ranks as the plan. None: this process alone.
    settings
        How to run it: the root's count, of the others only ``pace``. None for the defaults.
    progress
        On rank 0 called again and again while the weights are sent: with the B sent so far, and with all.

    Raises
    ------
    MpiconvError
        On every rank, if the plan is for another number of ranks or another model, a message would be too large, or
        another rank failed.
    """
    team = Team.of(MPI.COMM_SELF if comm is None else comm)
    try:
        return _distribute(model, plan, team, settings or Settings(), progress)
    except BaseException as error:
        team.watch.failed(error)
        if getattr(error, "everywhere", False):
            team.close()
        raise


def _distribute(
    model: nn.Module | None,
    plan: Plan | None,
    team: Team,
    settings: Settings,
    progress: Progress | None,
) -> DistributedNet:
    settle_heap()
    begin = perf_counter()

    def check() -> tuple[dict[str, Any], dict[str, nn.Module], dict[str, torch.Tensor]]:
        if model is None or plan is None:
            raise UsageError("rank 0 has to pass the model and the plan")
        if plan.ranks != team.size:
            raise UsageError(f"the plan is for {counted(plan.ranks, 'rank')} and {team.size} are running")
        traced, fitting = traced_for(model, plan, check=settings.selfcheck)
        check_state(fitting.graph, traced.tensors)
        own = unwrapped(model, traced.layers.model).state_dict()
        about = {"plan": fitting.to_dict(), "sent": sorted(set(traced.tensors) - set(own))}
        return about, traced.modules, traced.tensors

    checked = on_root(team, check, what="preparing the network")
    data, modules, state = checked if checked is not None else (None, {}, {})
    tracing_s = perf_counter() - begin
    if not all(map(is_finite, state.values())):
        settings = replace(settings, compute="eager")  # what is compiled makes numbers of NaN
    about = bcast_json(team, data)
    shared = Plan.from_dict(about["plan"])
    settings = replace(Settings(**bcast_json(team, asdict(settings))), pace=settings.pace)
    asked = settings.rank_timeout_s
    team.watch.limit_s = bcast_json(team, default_timeout_s()) if asked is None else asked
    team.watch.idle_limit_s = asked or 0.0
    if settings.wait == "auto":
        settings = replace(settings, wait="sleep" if team.crowded else "spin")
    carried = _schedule(shared, settings, team)
    on_root(team, lambda: _check_sizes(carried))
    frees: list[Free] = []
    receive = UnitWeights(shared, state, team, settings.weights_file, settings.readers, about["sent"], progress)
    computes = _computes(carried, settings, team.rank, receive, modules, frees)
    held = receive.nbytes
    last: Compute | None = None
    if modules:
        last = _whole_head(shared.graph.units[-1], modules["head"], state)
        alone = [unit for unit in shared.graph.units if unit.opaque]
        held += sum(FLOAT_BYTES * param.size for unit in alone for param in unit.params)
    computes.append([last])
    computes, paced = slowed(computes, settings.pace)
    memory, wire = Memory(channels_last=channels_last(settings.compute)), WIRES[settings.wire]
    teams = [team, *(team.twin() for _ in range(1, settings.in_flight))]
    ahead = settings.in_flight > 1
    guard = Guard(settings.guard)
    guarded = guard.around(shared, computes, team.rank)
    slots = [Slot(carried, each, memory, wire, guarded, ahead=ahead) for each in teams]
    return DistributedNet(shared, team, settings, slots, paced, held, frees, guard, tracing_s)


def _check_sizes(carried: Schedule) -> None:
    """Raise PlanError where a map is more than its medium can count."""
    plan = carried.plan
    for source, move in carried.moves.items():
        moved = max(max(move.exchange.received(rank), move.exchange.sent(rank)) for rank in range(plan.ranks))
        most = MEDIA[move.medium].largest_items
        if most is not None and plan.batch * moved > most:
            unit = "the picture" if source == PICTURE else f"unit {plan.graph.units[source].name}"
            raise PlanError(
                f"the messages with the output of {unit} have {FLOAT_BYTES * plan.batch * moved / 2**30:.1f} GiB, "
                f"MPI can count {FLOAT_BYTES * most / 2**30:.1f}: use smaller batches or pictures"
            )


def _schedule(plan: Plan, settings: Settings, team: Team) -> Schedule:
    """What the plan comes to on these hosts. Collective.

    Where maps change hands in shared memory nothing travels that more computing could hide.
    """

    def medium(spread: Exchange) -> str:
        return medium_of(spread, team, settings)

    measured = settings.overlap == "auto" and team.size > 1
    seconds_per_byte = _seconds_per_byte(team, settings.dilation) if measured else 0.0

    def overlap(spread: Exchange) -> bool:
        if settings.overlap == "on":
            return team.size > 1
        return MEDIA[medium(spread)].hides and worth_overlapping(plan, spread, seconds_per_byte)

    slow = allgather_json(team, onednn.slow_at_edges())
    return schedule(plan, medium, overlap=overlap, slow_at_edges=slow)


def _computes(
    carried: Schedule,
    settings: Settings,
    rank: int,
    receive: UnitWeights,
    modules: Mapping[str, nn.Module],
    frees: list[Free],
) -> list[list[Compute | None]]:
    """What this rank computes: for every unit of the body its pieces in order.

    Unit by unit the weights are sent and made into what computes, the largest first, so that no rank has room for more
    than its slices and the copies of one unit. Collective.
    """
    sizes = [sum(param.size for param in unit.params) for unit in carried.plan.graph.body]
    found: dict[int, list[Compute | None]] = {}
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        found[index] = _unit_computes(carried, index, settings, rank, receive(index), modules, frees)
    return [found[index] for index in sorted(found)]


def _unit_computes(
    carried: Schedule,
    index: int,
    settings: Settings,
    rank: int,
    weights: LayerWeights,
    modules: Mapping[str, nn.Module],
    frees: list[Free],
) -> list[Compute | None]:
    """What the rank computes of one unit: its pieces in order."""
    plan, cuts = carried.plan, carried.pieces[index]
    unit, padded = plan.graph.body[index], carried.padded(index, rank)
    packed: onednn.Packed | None = {} if _share_kernels(cuts, rank) else None
    sliced = unit.name in settings.as_slices or plan.cuts_channels(index)
    mine: dict[int, Compute | None] = {}
    for g in reversed(range(len(cuts))):  # the largest piece packs the weights for all
        box = cuts[g][rank]
        mine[g] = None
        if box and unit.opaque:
            mine[g] = WholeUnit(modules[unit.layers[-1].name])
        elif box:
            parts = weights_of(unit, plan.boxes[index][rank], weights, box)
            mine[g] = _local_unit(unit, box, parts, plan.batch, settings.compute, padded, sliced, packed, frees)
    return [mine[g] for g in sorted(mine)]


def _local_unit(
    unit: Unit,
    box: Box,
    weights: LayerWeights,
    batch: int,
    compute: str,
    padded: bool,
    sliced: bool,
    packed: onednn.Packed | None,
    frees: list[Free],
) -> LocalUnit:
    """A unit on a box, a spare one if there is one; if it is compiled, it will be one again."""
    key = key_of(unit, box, weights, batch, compute, padded, sliced) if compute != "eager" and packed is None else ""
    found = spares.take(key) if key else None
    made = found or local_unit(unit, box, weights, batch, compute, padded=padded, sliced=sliced, packed=packed)
    if key:
        frees.append(lambda: spares.give(key, made))
    return made


def _share_kernels(cut: Pieces, rank: int) -> bool:
    """Whether a rank's pieces of a unit are computed with the same kernels, of which they have one copy then."""
    channels = [piece[rank].channels for piece in cut if piece[rank]]
    return len(set(channels)) < len(channels)


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
    slowest = np.array([min(times)])
    wait(team, [team.comm.Iallreduce(MPI.IN_PLACE, slowest, MPI.MAX)], Place(place.name))
    return float(slowest[0]) / PROBE_BYTES / dilation


def _whole_head(unit: Unit, head: nn.Module, state: Mapping[str, torch.Tensor]) -> Callable[..., Any]:
    """The head as the root runs it: what is left of the body's last layers, then the model's own module."""
    rest = unit.layers[:-1]
    if not rest:
        return head
    weights = [{param.role: rows_of(param, state[param.key]) for param in layer.params} for layer in rest]
    before = LocalUnit(replace(unit, layers=rest), Box.whole(rest[-1].out_shape), weights)
    return lambda *maps: head(before(*maps))
