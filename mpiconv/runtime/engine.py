"""A network that runs split over ranks: one loop of exchange and compute, the same for any plan."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mpi4py import MPI
from torch import nn
from torch.utils._pytree import tree_map_only

from mpiconv.errors import PlanError, UsageError
from mpiconv.nets.graph import PICTURE, Unit
from mpiconv.nets.layers import rows_of
from mpiconv.partition import Box, Plan
from mpiconv.partition.pieces import Pieces, pieces
from mpiconv.partition.plan import FLOAT_BYTES, ROOT
from mpiconv.runtime.compute import LocalUnit, Paced, weights_of
from mpiconv.runtime.exchange import Exchanger, Frame, Memory
from mpiconv.runtime.frames import Compute, Slot, around_of
from mpiconv.runtime.heap import settle_heap
from mpiconv.runtime.messages import bcast_json, on_root
from mpiconv.runtime.operations import WholeUnit
from mpiconv.runtime.progress import Progress
from mpiconv.runtime.recording import Recorder
from mpiconv.runtime.settings import Settings
from mpiconv.runtime.shared import Host
from mpiconv.runtime.waiting import Awaited, Waiting, choose
from mpiconv.runtime.weights import LayerWeights, UnitWeights, check_state
from mpiconv.runtime.wire import WIRES

if TYPE_CHECKING:
    from mpiconv.measure import Record

STOP = -1
WORTH_S = 0.5e-3
PROBE_BYTES = 2**16


@dataclass
class _Frame:
    """A frame under way: its slot, the rest of its work, what it waits for, and how far it is."""

    slot: Slot
    work: Generator[Awaited, None, Any]
    awaited: Awaited = field(default_factory=Awaited)
    begun: bool = False
    followed: bool = False  # by the next one in its slot


class DistributedNet:
    """A network split over ranks; made by ``distribute``, called with pictures. Both are collective.

    Attributes
    ----------
    plan
        The plan that it runs.
    settings
        How it runs it; ``wait`` is what ``auto`` came to.
    weight_bytes
        B of weights that this rank computes with; the root's own slices are views of the whole model.
    sharing
        Whether this rank exchanges maps with others of its host through memory that they share.
    overlapped
        The units whose output is sent piece by piece while the rest is computed.
    no_meter
        Why this rank's host has no power meter that can be read; empty if it has, or if another rank looks after it.
    """

    def __init__(
        self,
        plan: Plan,
        comm: MPI.Intracomm,
        settings: Settings,
        slots: list[Slot],
        computes: list[list[Compute | None]],
        weight_bytes: int,
    ) -> None:
        self.plan, self.comm, self.settings = plan, comm, settings
        self.weight_bytes = weight_bytes
        self.overlapped = tuple(
            unit.name for unit, step in zip(plan.graph.units, slots[0].steps, strict=True) if step.early
        )
        self._slots = slots
        self._waiting = Waiting(settings.wait)
        self.sharing = slots[0].sharing
        exchangers = [exchanger for slot in slots for parts in slot.exchangers.values() for exchanger in parts]
        messages = any(isinstance(e, Exchanger) and e.pattern != "none" for e in exchangers)
        self._progress = Progress(wanted=messages and (bool(self.overlapped) or settings.in_flight > 1))
        self._number = 0
        self._reused = {e.buffer.untyped_storage().data_ptr() for e in exchangers if e.buffer is not None}
        counters = [
            [(e.pattern, e.counter) for slot in slots for i in plan.incoming(u) for e in slot.exchangers[i]]
            for u in range(len(plan.graph.units))
        ]
        paced = [compute for unit in computes for compute in unit if isinstance(compute, Paced)]
        self._recorder = Recorder(plan, comm, counters, paced, weight_bytes)
        self.no_meter = self._recorder.no_meter
        self.reset()

    def __call__(self, images: torch.Tensor | None = None) -> Any:
        """Run one batch. Collective.

        Parameters
        ----------
        images
            On rank 0 a float32 tensor of the plan's shape (N, C, H, W); the others pass None.

        Returns
        -------
        Any
            On rank 0 what the network returns, (N, classes) for a classifier; None on the others.

        Raises
        ------
        UsageError
            On rank 0, if the pictures have another shape than the plan. The other ranks are then still waiting, so
            a script that may get there should be started with ``python -m mpi4py``, which ends them.
        """
        slot = self._slots[0]
        frame = _Frame(slot, self._work(slot, self._checked(images), self._next_number()))
        with self._progress:
            while True:
                done = self._advance(frame)
                if done is not None:
                    return done[0]
                self._waiting.all(frame.awaited)

    def stream(self, batches: Iterable[torch.Tensor] | None = None) -> Iterator[Any]:
        """Run batch after batch, ``settings.in_flight`` of them under way at a time. Collective.

        Rank 0 alone knows the batches: the others call it without, and are told when there are no more. On every rank
        the iterator has to be used up. The outputs come in the order of the batches; on the others they are None.

        Raises
        ------
        UsageError
            On rank 0, if a batch has another shape than the plan (see ``__call__``).
        """
        source = iter(batches if batches is not None and self.comm.rank == ROOT else ())
        idle, open_slots = list(self._slots), len(self._slots)
        active: list[_Frame] = []
        order: list[_Frame] = []
        done: dict[int, Any] = {}
        with self._progress:
            while open_slots or order:
                while idle:
                    frame = self._opened(idle.pop(0), source)
                    active.append(frame)
                    order.append(frame)
                ready = [f for f in active if f.awaited.done()]
                if len(active) == 1 and not ready:
                    self._waiting.all(active[0].awaited)
                    ready = active[:]
                if not ready:
                    self._waiting.rest()
                    continue
                frame = next((f for f in ready if not f.begun), ready[0])  # to have its picture on the way
                result = self._advance(frame)
                if result is None and frame.awaited.last:
                    frame.followed = True
                    idle.append(frame.slot)
                if result is not None:
                    active.remove(frame)
                    output, stopped = result
                    if stopped:
                        open_slots -= 1
                        order.remove(frame)
                    else:
                        if not frame.followed:
                            idle.append(frame.slot)
                        done[id(frame)] = output
                    while order and id(order[0]) in done:
                        yield done.pop(id(order.pop(0)))

    def reset(self) -> None:
        """Forget what was measured so far (the warm-up, say), compare clocks, start power meters. Collective."""
        self._number = 0
        self._recorder.reset()

    @property
    def record(self) -> Record:
        """What this rank measured since the last ``reset``, its times on its own clock."""
        return self._recorder.record(self.settings.pace)

    def collect(self) -> Record | None:
        """The record of all ranks on rank 0, its times on the root's clock; None on the others. Collective."""
        return self._recorder.collect(self.record, self.settings.dilation)

    def _next_number(self) -> int:
        self._number += 1
        return self._number - 1

    def _advance(self, frame: _Frame) -> tuple[Any, bool] | None:
        """Do what the frame can do without waiting; (output, whether it was told to stop) once it is through."""
        frame.begun = True
        with torch.inference_mode():
            try:
                frame.awaited = next(frame.work)
            except StopIteration as end:
                result: tuple[Any, bool] = end.value
                return result
        return None

    def _work(self, slot: Slot, images: torch.Tensor | None, number: int) -> Generator[Awaited, None, tuple[Any, bool]]:
        output, stamps = yield from slot.run(images)
        output = tree_map_only(torch.Tensor, self._own_copy, output) if self.comm.rank == ROOT else None
        self._recorder.add(number, stamps, perf_counter() - stamps[0])
        return output, False

    def _opened(self, slot: Slot, source: Iterator[torch.Tensor]) -> _Frame:
        """The next frame in a slot: the root has its number go round, or that there is none."""
        message, images = np.empty(1, np.int64), None
        if self.comm.rank == ROOT:
            images = next(source, None)
            message[0] = STOP if images is None else self._next_number()
            images = None if images is None else self._checked(images)
        told = [slot.comm.Ibcast(message, ROOT)]
        return _Frame(slot, self._told(slot, message, told, images))

    def _told(
        self, slot: Slot, message: np.ndarray, told: list[MPI.Request], images: torch.Tensor | None
    ) -> Generator[Awaited, None, tuple[Any, bool]]:
        if self.comm.rank != ROOT or message[0] == STOP:
            yield Awaited(told)
        if message[0] == STOP:
            return None, True
        number = int(message[0])
        result = yield from self._work(slot, images, number)
        MPI.Request.Waitall(told)
        return result

    def _own_copy(self, output: torch.Tensor) -> torch.Tensor:
        """The tensor itself, or a copy of one that lies in a buffer which the next call writes to."""
        return output.clone() if output.untyped_storage().data_ptr() in self._reused else output

    def _checked(self, images: torch.Tensor | None) -> torch.Tensor | None:
        if self.comm.rank != ROOT:
            return None
        wanted = self.plan.input_shape
        if not isinstance(images, torch.Tensor) or tuple(images.shape) != wanted or images.dtype != torch.float32:
            found = "nothing" if images is None else f"{getattr(images, 'dtype', '')} {tuple(images.shape)}"
            raise UsageError(f"the plan is for float32 pictures of shape {wanted}, rank 0 was given {found}")
        return images.detach().contiguous()


def distribute(
    model: nn.Module | None, plan: Plan | None, comm: MPI.Intracomm, settings: Settings | None = None
) -> DistributedNet:
    """Send every rank its plan and its slice of the weights, and make ready to run. Collective.

    Parameters
    ----------
    model
        The module that the plan was made for, on rank 0; the others pass None.
    plan
        The plan, on rank 0; the others pass None.
    comm
        The communicator; it must have as many ranks as the plan.
    settings
        How to run it: the root's count, of the others only ``pace``. None for the defaults.

    Raises
    ------
    MpiconvError
        On every rank, if the plan is for another number of ranks or another model.
    """
    settings = settings or Settings()
    settle_heap()

    def check() -> tuple[dict[str, Any], dict[int, nn.Module], dict[str, torch.Tensor]]:
        from mpiconv.nets.trace import trace

        if model is None or plan is None:
            raise UsageError("rank 0 has to pass the model and the plan")
        if plan.ranks != comm.size:
            raise UsageError(f"the plan is for {plan.ranks} ranks and {comm.size} are running")
        traced = trace(model, plan.graph.input_shape, plan.graph.gather, plan.graph.head)
        if traced.graph.units != plan.graph.units:
            raise PlanError(f"the plan was made for another network than {traced.graph.model}: make a new one")
        state = model.state_dict()
        check_state(plan.graph, state)
        return plan.to_dict(), traced.modules, state

    checked = on_root(comm, check)
    data, modules, state = checked if checked is not None else (None, {}, {})
    shared = Plan.from_dict(bcast_json(comm, data))
    settings = replace(Settings(**bcast_json(comm, asdict(settings))), pace=settings.pace)
    settings = replace(settings, wait=choose(settings.wait, comm))
    host = Host(comm, wanted=settings.same_host == "auto" and settings.wire == "float32")
    cuts = _cuts(shared, settings, comm, host)
    computes, held = _computes(shared, cuts, settings, comm, state, modules)
    last: Compute | None = None
    if modules:
        last = _whole_head(shared.graph.units[-1], modules[len(computes)], state)
        held += sum(FLOAT_BYTES * param.size for u in modules for param in shared.graph.units[u].params)
    computes.append([last if last is None or settings.pace == 1 else Paced(last, settings.pace)])
    memory, wire = Memory(channels_last=settings.compute == "auto"), WIRES[settings.wire]
    comms = [comm, *(comm.Dup() for _ in range(1, settings.in_flight))]
    ahead = settings.in_flight > 1
    slots = [Slot(shared, each, memory, wire, cuts, computes, host, ahead=ahead) for each in comms]
    return DistributedNet(shared, comm, settings, slots, computes, held)


def _computes(
    plan: Plan,
    cuts: list[Pieces],
    settings: Settings,
    comm: MPI.Intracomm,
    state: Mapping[str, torch.Tensor],
    modules: Mapping[int, nn.Module],
) -> tuple[list[list[Compute | None]], int]:
    """What this rank computes: for every unit of the body its pieces in order; and the B of weights that it took.

    Unit by unit the weights are sent and made into what computes, the largest first, so that no rank has room for more
    than its slices and the copies of one unit. Collective.
    """
    receive = UnitWeights(plan, state, comm, settings.weights_file, settings.readers)
    sizes = [sum(param.size for param in unit.params) for unit in plan.graph.body]
    found: dict[int, list[Compute | None]] = {}
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        found[index] = _unit_computes(plan, index, cuts, settings, comm.rank, receive(index), modules)
    return [found[index] for index in sorted(found)], receive.nbytes


def _unit_computes(
    plan: Plan,
    index: int,
    cuts: list[Pieces],
    settings: Settings,
    rank: int,
    weights: LayerWeights,
    modules: Mapping[int, nn.Module],
) -> list[Compute | None]:
    """What the rank computes of one unit: its pieces in order."""
    unit = plan.graph.body[index]
    padded = all(around_of(plan, source, rank) is not None for source in unit.inputs)
    bare = padded and not _holds(plan, cuts, unit, rank)
    packed: dict[tuple[object, ...], Any] = {}
    mine: dict[int, Compute | None] = {}
    for g in reversed(range(len(cuts[index]))):  # the largest piece packs the weights for all
        box = cuts[index][g][rank]
        mine[g] = None
        if box and unit.opaque:
            mine[g] = WholeUnit(modules[index])
        elif box:
            parts = weights_of(unit, plan.boxes[index][rank], weights, box)
            mine[g] = LocalUnit(unit, box, parts, plan.batch, settings.compute, padded=bare, packed=packed)
        if box and settings.pace > 1:
            mine[g] = Paced(_given(mine[g]), settings.pace)
    return [mine[g] for g in sorted(mine)]


def _given(compute: Compute | None) -> Compute:
    assert compute is not None  # noqa: S101 - the box is not empty
    return compute


def _holds(plan: Plan, cuts: list[Pieces], unit: Unit, rank: int) -> bool:
    """Whether the rank has all of the unit's only input already, so that no buffer with padding was made for it."""
    source = unit.inputs[0]
    partial = source != PICTURE and len(cuts[source]) > 1
    return Frame.of(plan.exchanges[source], rank, partial=partial).holds


def _cuts(plan: Plan, settings: Settings, comm: MPI.Intracomm, host: Host) -> list[Pieces]:
    """In which pieces every unit of the body is computed. Collective.

    Where maps change hands in shared memory nothing travels that more computing could hide.
    """
    whole: list[Pieces] = [(boxes,) for boxes in plan.boxes]
    if settings.overlap == "off" or comm.size == 1:
        return whole
    seconds_per_byte = 0.0 if settings.overlap == "on" else _seconds_per_byte(comm, settings.dilation)
    cuts: list[Pieces] = []
    for index, unit in enumerate(plan.graph.body):
        cut: Pieces = (plan.boxes[index],)
        if index in plan.exchanges:
            spec = plan.exchanges[index]
            most = FLOAT_BYTES * plan.batch * max(spec.received(rank) for rank in range(plan.ranks))
            slow = not host.near(spec.members) and most * seconds_per_byte >= WORTH_S
            if settings.overlap == "on" or slow:
                cut = pieces(unit, spec)
        cuts.append(cut)
    return cuts


def _seconds_per_byte(comm: MPI.Intracomm, dilation: float) -> float:
    """What a byte takes on the slowest link of a ring, undilated, the same on all ranks. Collective."""
    out, back = np.zeros(PROBE_BYTES, np.uint8), np.empty(PROBE_BYTES, np.uint8)
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    times = []
    for _ in range(2):
        comm.Barrier()
        begin = perf_counter()
        comm.Sendrecv(out, right, recvbuf=back, source=left)
        times.append(perf_counter() - begin)
    slowest = np.array([min(times)])
    comm.Allreduce(MPI.IN_PLACE, slowest, MPI.MAX)
    return float(slowest[0]) / PROBE_BYTES / dilation


def _whole_head(unit: Unit, head: nn.Module, state: Mapping[str, torch.Tensor]) -> Callable[..., Any]:
    """The head as the root runs it: what is left of the body's last layers, then the model's own module."""
    rest = unit.layers[:-1]
    if not rest:
        return head
    weights = [{param.role: rows_of(param, state[param.key]) for param in layer.params} for layer in rest]
    before = LocalUnit(replace(unit, layers=rest), Box.whole(rest[-1].out_shape), weights)
    return lambda *maps: head(before(*maps))
