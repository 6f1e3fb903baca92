"""How long this network's own units take on every device, by the code that a run computes them with."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter, thread_time
from typing import TYPE_CHECKING

import torch

from mpiconv.files import user_cache
from mpiconv.graph.form import Graph
from mpiconv.graph.grouping import grouped
from mpiconv.job.control import allgather_json, bcast_json
from mpiconv.job.host import machine_id
from mpiconv.measure.estimate import scatter, undisturbed
from mpiconv.partition.holdings import rows_needed
from mpiconv.partition.padding import margin
from mpiconv.partition.receptive import unit_needs
from mpiconv.planner import wisdom
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.wisdom import Basis, Case, Times
from mpiconv.probe.speed import wait_quietly
from mpiconv.runtime.compute import onednn
from mpiconv.runtime.compute.engines import channels_last, local_unit
from mpiconv.runtime.heap import settle_heap

if TYPE_CHECKING:
    from mpiconv.job.team import Team

LEAST_ROUNDS = 3
MOST_SCATTER = 0.3
"""What scatters more between rounds, since something else runs there, is used but not kept."""

MAKING = 0.7
"""The part of the time that is left in which units may be made ready; then they are measured."""

CPU_INFO = Path("/proc/cpuinfo")


@dataclass
class Work:
    """A box of a unit ready to be computed, with its inputs, and the times in s that it took."""

    case: Case
    compute: Callable[..., torch.Tensor]
    inputs: list[torch.Tensor]
    seconds: list[float] = field(default_factory=list)


def make_work(case: Case, batch: int, compute: str = "auto") -> Work:
    """A box of a unit as a run has it; a map that is exchanged comes with the padding of its reader around it."""
    unit, box = case.unit, case.box
    weights: list[dict[str, torch.Tensor]] = [{} for _ in unit.layers]
    for number, param, rows in rows_needed(unit, box):
        value = 1.0 if param.role == "running_var" else 0.01
        weights[number][param.role] = torch.full((len(rows), *param.shape[1:]), value)
    rows_around, columns_around, _ = margin(unit, box, slow_at_edges=onednn.slow_at_edges())
    padded = box.shape != unit.out_shape and len(unit.inputs) == 1 and any((*rows_around, *columns_around))
    order = torch.channels_last if channels_last(compute) else torch.contiguous_format
    more = (0, sum(rows_around), sum(columns_around)) if padded else (0, 0, 0)
    inputs = []
    for need in unit_needs(unit, box):
        shape = [length + extra for length, extra in zip(need.shape, more, strict=True)]
        inputs.append(torch.full((batch, *shape), 0.5).contiguous(memory_format=order))
    sliced = len(box.channels) < unit.out_shape[0]
    return Work(case, local_unit(unit, box, weights, batch, compute, padded=padded, sliced=sliced), inputs)


class UnitProbe:
    """Measures boxes of units on this rank; those of a level in turn, so that each finds the caches as in a run.

    Parameters
    ----------
    batch
        Pictures that are computed together.
    budget_s
        About how long it may take; the first cases are measured then.
    rounds
        How often each is measured; ``LEAST_ROUNDS`` at least, even if that takes longer.
    compute
        The local engine.
    pace
        This rank's, time dilation included.
    """

    def __init__(self, batch: int, budget_s: float, rounds: int, compute: str = "auto", pace: float = 1.0) -> None:
        self.batch, self.budget_s, self.pace = batch, budget_s, pace
        self.rounds = max(rounds, LEAST_ROUNDS)
        self.basis = basis_here(compute, emulated=pace > 1)
        self.clock = thread_time if torch.get_num_threads() == 1 else perf_counter

    def measure(self, cases: list[Case], progress: Callable[[], object] = lambda: None) -> tuple[Times, Times]:
        """S of as many of the cases as there is time for; and of those that were the same in most rounds."""
        settle_heap()
        deadline, todo = perf_counter() + self.budget_s, cases
        found, steady = Times(), Times()
        with torch.inference_mode():
            while todo and perf_counter() < deadline:
                works = self._ready([case for case in todo if case.level == todo[0].level], deadline)
                self._rounds(works, deadline)
                todo = todo[len(works) :]
                for work in works:
                    point = (*work.case.box.shape, self.batch, float(f"{undisturbed(work.seconds):.4g}"))
                    one: Times = {work.case.unit.shape_key: (point,)}
                    found = wisdom.merged(found, one)
                    if scatter(work.seconds) <= MOST_SCATTER:
                        steady = wisdom.merged(steady, one)
                    progress()
        return found, steady

    def _ready(self, cases: list[Case], deadline: float) -> list[Work]:
        """The first cases made ready and called, which compiles them, until most of the time that is left is over."""
        now = perf_counter()
        until = now + MAKING * (deadline - now)
        works: list[Work] = []
        for case in cases:
            work = make_work(case, self.batch, self.basis.compute)
            work.compute(*work.inputs)
            works.append(work)
            if perf_counter() > until:
                break
        return works

    def _rounds(self, works: list[Work], deadline: float) -> None:
        for done in range(self.rounds):
            if done >= LEAST_ROUNDS and perf_counter() > deadline:
                break
            for work in works:
                for tensor in work.inputs:
                    tensor.add_(0)  # in the caches, as what has just been computed or received
                if self.basis.caches == "warm":
                    work.compute(*work.inputs)
                start = self.clock()
                work.compute(*work.inputs)
                work.seconds.append(max(self.clock() - start, 1e-9))


def with_unit_times(
    team: Team,
    cluster: Cluster,
    graph: Graph | None,
    probe: UnitProbe,
    folder: Path | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> tuple[Cluster, list[str]]:
    """The cluster with the times of a network's units on its devices, measured where none are kept. Collective.

    Ranks of one machine with the same processor and threads have the same times, but for their pace: one of them
    measures. Returns the same on every rank; the second are notes, such as that a file is damaged.

    Parameters
    ----------
    cluster
        As ``probe`` found it, one device per rank.
    graph
        The network on the root, in any grouping; others need not know it.
    probe
        What measures on this rank.
    folder
        Where times are kept; None for the user's cache folder.
    progress
        Told after each measured box how many there are in all; on the rank that measures.
    """
    data = bcast_json(team, None if graph is None else graph.to_dict(), what="the network")
    network = grouped(Graph.from_dict(data), "pool", "split")
    folder = user_cache("wisdom") if folder is None else folder
    who = allgather_json(team, [machine_id(), str(probe.basis.path(folder))])
    measuring = [who.index(each) for each in who]  # for each rank, who measures for it
    times, notes = Times(), list[str]()
    for rank in sorted(set(measuring)):
        wait_quietly(team)
        if rank == team.rank:
            times, notes = _kept_or_measured(network, probe, folder, progress)
    wait_quietly(team)
    everyone = allgather_json(team, [wisdom.of_network(times, network.units), notes, probe.pace])
    devices = []
    for device, rank, (_, _, pace) in zip(cluster.devices, measuring, everyone, strict=True):
        found = wisdom.times_of(everyone[rank][0])
        devices.append(replace(device, unit_seconds=wisdom.scaled(found, pace / cluster.dilation)))
    return replace(cluster, devices=tuple(devices)), list(dict.fromkeys(n for _, each, _ in everyone for n in each))


def _kept_or_measured(
    network: Graph, probe: UnitProbe, folder: Path, progress: Callable[[int], object]
) -> tuple[Times, list[str]]:
    """What is kept of a network's units, what is missing of them measured and kept; and notes."""
    times, note = wisdom.load(folder, probe.basis)
    cases = wisdom.missing(network, times, probe.batch)
    if not cases:
        return times, [note] if note else []
    found, steady = probe.measure(cases, lambda: progress(len(cases)))
    problem = wisdom.save(folder, probe.basis, steady)
    return wisdom.merged(times, found), [text for text in (note, problem) if text]


def basis_here(compute: str, *, emulated: bool) -> Basis:
    """What times that are measured on this rank hold for."""
    capability = str(torch.backends.cpu.get_cpu_capability())
    processor = f"{processor_name()} {capability}"
    return Basis(processor, torch.get_num_threads(), str(torch.__version__), compute, "warm" if emulated else "cold")


def processor_name() -> str:
    """The model of this machine's processor, as Linux tells it; else its architecture."""
    wanted = ("model name", "Model", "cpu family", "model", "stepping", "CPU part", "CPU implementer", "Hardware")
    try:
        pairs = [line.partition(":")[::2] for line in CPU_INFO.read_text(errors="replace").splitlines()]
    except OSError:
        pairs = []
    known = {key.strip(): value.strip() for key, value in reversed(pairs)}
    return " ".join([platform.machine(), *(known[key] for key in wanted if known.get(key))])
