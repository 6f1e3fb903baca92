"""How much memory every rank needs for a plan, by the rules by which the runtime takes it. Pure.

What a process needs by itself, Python and torch and MPI and their code, is in none of these numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mpiconv.graph.form import Graph, Unit
from mpiconv.partition.bounds import box_of
from mpiconv.partition.box import Box, Span
from mpiconv.partition.exchange import Exchange
from mpiconv.partition.plan import FLOAT_BYTES, cuts_channels
from mpiconv.partition.receptive import layer_boxes
from mpiconv.partition.schedule import MESSAGES, Held, Move, Schedule
from mpiconv.partition.schemes import ROOT
from mpiconv.partition.wire import FLOAT32

Parts = Sequence[Box]
"""The box of every layer of a unit that a rank computes."""

PROCESS_BYTES = 350 * 2**20
"""What a rank needs without any network: Python, torch, MPI, and what the first units load of torch.

Measured on x86-64 with torch 2.13: 282 MiB, on rank 0 up to 325 where it draws random weights; and some room.
"""

CODE_BYTES = 0.35e6
"""What torch's fuser and oneDNN keep for a convolution besides its weights, measured: 0.21 to 0.37 MB."""

COMPILED_KINDS = frozenset({"conv", "norm", "activation", "maxpool", "avgpool", "add"})
MOST_COMPILED_BYTES = 2**22
"""A unit of these kinds of layers, with no more weights, is compiled, as ``runtime.compute.engines`` does it."""

KERNELS_AT_A_TIME = 16
"""Kernels are reordered in multiples of this number, made up with zeros."""

CHECKED_PICTURES = 2
"""With how many pictures at most the root compares what was traced with the model."""


@dataclass(frozen=True)
class Memory:
    """What one rank needs, in B.

    Attributes
    ----------
    weights_bytes
        Rows of tensors: those that a rank was sent, and on the root the whole model.
    packed_bytes
        Copies of kernels in the order that oneDNN wants, beside the rows: two in a unit that is compiled.
    code_bytes
        What compiled units need besides.
    packing_bytes
        The most that is needed at a time while kernels are reordered, those that are ready included.
    buffers_bytes
        What maps are received in, of its own or shared with others of its host; for every frame under way.
    staging_bytes
        Copies for messages of what does not lie in one piece.
    maps_bytes
        The maps that live at a time, and those inside the unit that is computed.
    """

    weights_bytes: int = 0
    packed_bytes: int = 0
    code_bytes: int = 0
    packing_bytes: int = 0
    buffers_bytes: int = 0
    staging_bytes: int = 0
    maps_bytes: int = 0

    @property
    def running_bytes(self) -> int:
        """B besides the weights while frames run."""
        return self.packed_bytes + self.code_bytes + self.buffers_bytes + self.staging_bytes + self.maps_bytes

    @property
    def peak_bytes(self) -> int:
        """B at the worst moment."""
        return self.weights_bytes + max(self.running_bytes, self.packing_bytes)


def peak_bytes(schedule: Schedule | Sequence[Schedule], *, in_flight: int = 1) -> list[Memory]:
    """What every rank needs at most from the start to the last frame, the maps with channels last.

    Parameters
    ----------
    schedule
        A plan with the media and pieces of its exchanges; or several, by which batches go in turn.
    in_flight
        How many batches are under way at a time: each has buffers of its own. Plans in turn are ``in_flight`` at least.
    """
    carried = [schedule] if isinstance(schedule, Schedule) else schedule
    slots = [len(range(turn, max(in_flight, len(carried)), len(carried))) for turn in range(len(carried))]
    return [_of_rank(carried, slots, rank) for rank in range(carried[0].plan.ranks)]


def compiled(unit: Unit) -> bool:
    """Whether a unit is compiled by torch's fuser, where torch has it; else its kernels are reordered alone."""
    kinds = {layer.kind for layer in unit.layers}
    approximate = any(layer.options.get("arguments", {}).get("approximate") == "tanh" for layer in unit.layers)
    if not kinds <= COMPILED_KINDS or kinds == {"add"} or approximate:
        return False
    return FLOAT_BYTES * sum(param.size for param in unit.params) <= MOST_COMPILED_BYTES


def _of_rank(carried: Sequence[Schedule], slots: Sequence[int], rank: int) -> Memory:
    """What a rank needs where ``slots[i]`` batches in flight go by schedule i."""
    graph, batch = carried[0].plan.graph, carried[0].plan.batch
    parts = [
        [
            layer_boxes(unit, row[rank]) if row[rank] else [Box()] * len(unit.layers)
            for unit, row in zip(graph.units, schedule.plan.owned, strict=True)
        ]
        for schedule in carried
    ]
    packed, code, packing = _packed(carried, rank, parts)
    buffers = staging = 0
    for schedule, count in zip(carried, slots, strict=True):
        moves = schedule.moves.values()
        buffers += count * sum(_buffer(move, rank) for move in moves)
        by_message = (move for move in moves if move.medium == MESSAGES)
        staging += count * sum(_staging(part, move, rank, batch) for move in by_message for part in move.parts)
    maps = _maps(carried, slots, rank, parts)
    if rank == ROOT:
        maps = max(maps, _checking(graph, min(batch, CHECKED_PICTURES)))
    weights = _weights(graph, None if rank == ROOT else parts)
    return Memory(weights, packed, code, packing, FLOAT_BYTES * batch * buffers, staging, maps)


def _weights(graph: Graph, parts: Sequence[Sequence[Parts]] | None) -> int:
    """B of the rows that a rank has for the parts of all units; the whole model without. A shared tensor counts once.

    The same rows as ``partition.holdings`` has them.
    """
    rows: dict[str, Span] = {}
    sizes: dict[str, int] = {}
    for index, unit in enumerate(graph.units):
        for number, layer in enumerate(unit.layers):
            for param in layer.params:
                sizes[param.key] = param.size // param.shape[0]
                whole = [Span(0, param.shape[0])]
                wanted = whole if parts is None else [each[index][number].channels for each in parts]
                for mine in wanted if parts is None or not layer.opaque else ():
                    rows[param.key] = rows.get(param.key, Span()).hull(mine)
    return FLOAT_BYTES * sum(len(span) * sizes[key] for key, span in rows.items())


def _packed(carried: Sequence[Schedule], rank: int, parts: Sequence[Sequence[Parts]]) -> tuple[int, int, int]:
    """B of reordered kernels, of what compiled units need besides, and the most while they are reordered."""
    body = carried[0].plan.graph.body
    packed = code = packing = once = 0
    weights = [sum(param.size for param in unit.params) for unit in body]
    for index in sorted(range(len(weights)), key=lambda unit: -weights[unit]):  # as the runtime does it
        unit, ready = body[index], list[Any]()
        for schedule, mine in zip(carried, parts, strict=True):
            cut = [piece[rank] for piece in schedule.pieces[index]]
            plan, work = schedule.plan, (cut, schedule.padded(index, rank), cuts_channels(schedule.plan, index))
            if not plan.boxes[index][rank] or unit.opaque or work in ready:
                continue  # by several plans in turn a unit of which the rank does the same is there once
            ready.append(work)
            size, most = _kernels(unit, mine[index])
            packing = max(packing, once + size + most)
            once += size
            compiles = compiled(unit) and not _share_kernels(cut)
            packed += size * (2 if compiles else 1)
            if compiles:
                code += round(CODE_BYTES) * sum(layer.has_kernels for layer in unit.layers)
    return packed, code, packing


def _kernels(unit: Unit, parts: Parts) -> tuple[int, int]:
    """B of a unit's reordered kernels, and the most that making those of one layer needs besides."""
    total = most = 0
    for number, (layer, part) in enumerate(zip(unit.layers, parts, strict=True)):
        if layer.kind not in ("conv", "convtranspose"):
            continue
        kernels = len(part.channels)
        width = kernels if layer.groups > 1 else -(-kernels // KERNELS_AT_A_TIME) * KERNELS_AT_A_TIME
        row = next(param.size // param.shape[0] for param in layer.params if param.role == "weight")
        size = FLOAT_BYTES * width * row
        folds = [after.kind for after in unit.layers[number + 1 : number + 2]] == ["norm"]
        total += size
        most = max(most, size * (3 if folds else 1))  # normalisation is put into kernels in double precision
    return total, most


def _share_kernels(cut: Sequence[Box]) -> bool:
    """Whether pieces of a unit are computed with the same kernels; they have one copy then, and are not compiled."""
    channels = [box.channels for box in cut if box]
    return len(set(channels)) < len(channels)


def _buffer(move: Move, rank: int) -> int:
    """Elements per picture of what a rank receives a map in; of shared memory all that it reads or writes."""
    held = move.held[rank]
    if move.medium == "messages":
        return 0 if held.holds else held.box.size
    if rank not in move.exchange.members:
        return 0 if held.holds else held.box.size
    places: dict[Held, list[int]] = {each: [] for r in move.exchange.members if not (each := move.held[r]).holds}
    for other in move.exchange.members:
        if move.held[other] in places:
            places[move.held[other]].append(other)
    own = move.exchange.owned[rank]
    return sum(place.box.size if rank in readers else (place.box & own).size for place, readers in places.items())


def _staging(part: Exchange, move: Move, rank: int, batch: int) -> int:
    """B of the copies from which messages are sent, and into which they are received."""
    held = move.held[rank].box

    def copied(boxes: Sequence[Sequence[Box]], whole: Box) -> int:
        if move.wire is FLOAT32 and _in_place(boxes, whole):
            return 0
        return sum(move.wire.size((batch, *box.shape)) for each in boxes for box in each)

    if part.pattern == "allgatherv" and rank in part.members:
        key = held, move.wire, batch
        if key not in part.memo:  # the same for all that have no padding around it
            part.memo[key] = copied([[part.owned[r] & held] for r in part.members], held)
        return int(part.memo[key])
    received, sent = (_peers(part, rank, here) for here in (1, 0))
    going = sent[: 1 if part.pattern == "bcast" else None]
    return copied(received, held) + copied(going, part.owned[rank])


def _peers(part: Exchange, rank: int, here: int) -> list[list[Box]]:
    """The boxes that a rank sends (``here`` is 0) or receives (1), by the rank at the other end."""
    found: dict[int, list[Box]] = {}
    for row in part.table[part.table[:, here] == rank].tolist():
        found.setdefault(row[1 - here], []).append(box_of(row[2:]))
    return list(found.values())


def _in_place(boxes: Sequence[Sequence[Box]], whole: Box) -> bool:
    """Whether each peer's part is one piece of the memory of a map with channels last."""
    return all(len(each) <= 1 and all(_in_one_piece(box, whole) for box in each) for each in boxes)


def _in_one_piece(box: Box, whole: Box) -> bool:
    """Whether a box lies in one piece in a map (rows, columns, channels)."""
    pairs = [(box.rows, whole.rows), (box.columns, whole.columns), (box.channels, whole.channels)]
    cut = max((axis for axis, (a, b) in enumerate(pairs) if len(a) != len(b)), default=0)
    return all(len(a) == 1 for a, _ in pairs[:cut])


def _maps(carried: Sequence[Schedule], slots: Sequence[int], rank: int, parts: Sequence[Sequence[Parts]]) -> int:
    """B of the maps that live while a unit is computed, at most, besides those in buffers.

    By plans in turn a unit of each batch may be what it has most for, and a unit of one of them is computed.
    """
    batch, units = carried[0].plan.batch, carried[0].plan.graph.units
    living = [
        [batch * count * each for each in _living(schedule, rank)]
        for schedule, count in zip(carried, slots, strict=True)
    ]
    most = 0
    for schedule, mine, own in zip(carried, parts, living, strict=True):
        pairs = zip(units, mine, schedule.plan.owned, strict=True)
        inside = [_inside(unit, part, batch) if row[rank] else 0 for unit, part, row in pairs]
        here = max(a + b for a, b in zip(own, inside, strict=True))
        most = max(most, here + sum(max(each) for each in living if each is not own))
    return FLOAT_BYTES * most


def _living(schedule: Schedule, rank: int) -> list[int]:
    """Elements per picture of the maps that live while each unit is computed, besides those in buffers."""
    plan = schedule.plan
    units = plan.graph.units
    living = [0] * len(units)
    if rank == ROOT:
        living = [2 * Box.whole(plan.graph.input_shape).size] * len(units)  # as it came, and with channels last
    for source in range(len(plan.graph.body)):
        readers, size = plan.graph.consumers(source), plan.owned[source][rank].size
        if size and readers:
            there = schedule.moves[source].held[rank].holds  # else it lives on in the buffer that the first reads
            for index in range(source + 1, readers[-1] + 1 if there else readers[0]):
                living[index] += size
    return living


def _inside(unit: Unit, parts: Parts, batch: int) -> int:
    """Elements of the maps that a unit makes on its way, and of what else it needs for that.

    A unit is compiled by running it twice by torch's own operations, which reorder the kernels at every call; the maps
    of the first time are kept until it is over, and the second time finds no room there, since an aligned block needs
    more than one that was freed has.
    """
    made = [
        batch * part.size
        for before, layer, part in zip((None, *unit.layers[:-1]), unit.layers, parts, strict=True)
        if layer.kind != "head" and not (layer.kind == "norm" and before is not None and before.has_kernels)
    ]
    if compiled(unit):
        return 2 * (sum(made) + _kernels(unit, parts)[0] // FLOAT_BYTES)
    return max((sum(made[number : number + 2]) for number in range(len(made))), default=0)


def _checking(graph: Graph, pictures: int) -> int:
    """B that the root needs to compare what was traced with the model: a layer at a time, in torch's own order."""
    most = 0
    for unit in graph.body:
        for layer in unit.layers:
            moved = _elements(layer.out_shape) + sum(_elements(shape) for shape in layer.in_shapes)
            kernels = sum(param.size for param in layer.params) if layer.kind == "conv" else 0
            most = max(most, 2 * pictures * moved + kernels)
    return FLOAT_BYTES * most


def _elements(shape: tuple[int, int, int]) -> int:
    return shape[0] * shape[1] * shape[2]
