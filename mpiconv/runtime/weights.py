"""Gives every rank the rows of weights that it needs: from memory, its disk, or other ranks by the exchange of maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch

from mpiconv.errors import ModelError
from mpiconv.graph.form import Param
from mpiconv.job.control import allgather_json, bcast_json, on_root
from mpiconv.job.watch import Place
from mpiconv.models.slices import WeightsFile, fingerprint, rows_of
from mpiconv.partition import Box, Exchange, Span
from mpiconv.partition.holdings import Holdings, rows_needed, tensor_of, travels, whole_of
from mpiconv.partition.plan import FLOAT_BYTES
from mpiconv.partition.schedule import Held
from mpiconv.partition.schemes import ROOT
from mpiconv.runtime.exchange.point_to_point import by_messages
from mpiconv.runtime.weight_sums import compare

if TYPE_CHECKING:
    from collections.abc import Collection

    from mpiconv.graph.form import Graph, Unit
    from mpiconv.job.team import Team

LayerWeights = list[dict[str, torch.Tensor]]
Progress = Callable[[int, int], object]
"""Told how many B of weights have travelled so far, and how many will in all."""

CHUNK_BYTES = 2**22
"""What is sent at a time, so that a rank that waits long knows a slow link from one that is down."""


class Store(Protocol):
    """A place on a rank's own disk where rows of weights may be."""

    def find(self, param: Param, rows: Span) -> tuple[Span, torch.Tensor] | None:
        """Some of the rows, together, as (rows, ...) of float32, and which; None if none of them are there."""


class FileStore:
    """The safetensors file that the model's weights came from; the tensors ``but`` are not in it."""

    def __init__(self, path: str, wanted: Collection[str], but: Collection[str] = ()) -> None:
        self._file, self._but = WeightsFile(path, wanted), but

    def find(self, param: Param, rows: Span) -> tuple[Span, torch.Tensor] | None:
        """All of the rows. Raises ModelError where the file has no such tensor, or was changed."""
        return None if param.key in self._but else (rows, self._file.rows(param, rows.lo, rows.hi))


class Weights:
    """The rows of weights that this rank has, and which ones the others have.

    Attributes
    ----------
    rows, held
        What this rank has of each tensor: which rows, and them; which rows each rank has, the same on all ranks.
    received_bytes, stored_bytes
        B of weights that came to this rank in messages, counted from their buffers; that it read from its own disk.
    moved_bytes
        B of weights that travelled between all ranks, as planned.
    """

    def __init__(
        self,
        team: Team,
        state: Mapping[str, torch.Tensor],
        stores: Sequence[Store] = (),
        before: Weights | None = None,
        *,
        asked: bool = False,
    ) -> None:
        """``state`` has the model's tensors on rank 0; ``asked``: some rank has more than what the last plan gave it.

        That is ``stores``, or what it had ``before`` others were lost; all ranks know whether it is so.
        """
        self._team, self._state, self._stores, self._asked = team, state, stores, asked
        self.rows: dict[Param, tuple[Span, torch.Tensor]] = {} if before is None else before.rows
        self.held: Holdings = {}
        self._new: set[Param] = set()
        self.received_bytes: int = 0 if before is None else before.received_bytes
        self.stored_bytes: int = 0 if before is None else before.stored_bytes
        self.moved_bytes: int = 0 if before is None else before.moved_bytes

    def adopt(self, wanted: Holdings, progress: Progress | None = None) -> dict[Param, tuple[Span, torch.Tensor]]:
        """Get the rows that are wanted and drop all others; only rows travel that a rank has not in memory or on disk.

        Collective. Returns what came in messages, a tensor's rows together with what lies between them.
        """
        rank = self._team.rank
        mine = {param: self._here(param, spans[rank]) for param, spans in wanted.items()}
        if self._asked:
            here = [[span.lo, span.hi] for span, _ in mine.values()]
            everywhere = allgather_json(self._team, here, what="the weights that are stored")
            had = {param: tuple(Span(*each[i]) for each in everywhere) for i, param in enumerate(wanted)}
        else:
            had = {
                param: tuple(a & b for a, b in zip(self._held(param), wanted[param], strict=True)) for param in wanted
            }
        moves = travels(had, wanted)
        all_bytes = FLOAT_BYTES * sum(t.box.size for spread in moves.values() for t in spread.transfers)
        self.moved_bytes += all_bytes
        sent_bytes, came = 0, dict[Param, tuple[Span, torch.Tensor]]()
        for param, spread in moves.items():
            size = FLOAT_BYTES * sum(t.box.size for t in spread.transfers)

            def told(part: float, before: int = sent_bytes, more: int = size) -> None:
                if progress is not None and all_bytes:
                    progress(before + round(part * more), all_bytes)

            rows = self._moved(param, spread, mine.pop(param)[1], told)
            sent_bytes += size
            if rank != ROOT:
                self._keep(param, wanted[param][rank], rows)
                got = [t.box.channels for t in spread.transfers if t.target == rank]
                if got and rows is not None:
                    around = Span(min(span.lo for span in got), max(span.hi for span in got))
                    first = wanted[param][rank].lo
                    came[param] = around, rows[around.lo - first : around.hi - first]
        self.rows = {param: rows for param, rows in self.rows.items() if param in wanted}
        self.held = dict(wanted)
        new = [(i, *self.rows[param]) for i, param in enumerate(self.held) if param in self._new]
        compare(self._team, list(self.held), new, self._state)
        self._new = set()
        return came

    def of(self, unit: Unit, box: Box) -> LayerWeights:
        """For every layer of a unit the tensors by role, sliced to the rows that this rank's box needs."""
        found: LayerWeights = [{} for _ in unit.layers]
        for number, param, span in rows_needed(unit, box) if box else ():
            found[number][param.role] = self._cut(tensor_of(param), span)
        return found

    def _held(self, param: Param) -> Sequence[Span]:
        return self.held.get(param, (Span(),) * self._team.size)

    def _cut(self, param: Param, rows: Span) -> torch.Tensor:
        """Rows that this rank has, as a view."""
        if self._team.rank == ROOT:
            return rows_of(param, self._state[param.key].detach())[rows.lo : rows.hi].contiguous()
        span, tensor = self.rows[param]
        return tensor[rows.lo - span.lo : rows.hi - span.lo]

    def _keep(self, param: Param, span: Span, rows: torch.Tensor | None) -> None:
        """Keep these rows of a tensor, in memory of their own."""
        if rows is None:
            self.rows.pop(param, None)
        else:
            whole = rows.untyped_storage().nbytes() == rows.nbytes
            self.rows[param] = span, rows if whole else rows.clone()
            self._new.add(param)

    def _here(self, param: Param, wanted: Span) -> tuple[Span, torch.Tensor | None]:
        """Which of some rows this rank has in memory or on its disk, one span; none on the root, which has all."""
        span = self.rows[param][0] & wanted if param in self.rows else Span()
        if self._team.rank == ROOT or not wanted:
            return Span(), None
        rows = self._cut(param, span) if span else None
        missing = (Span(wanted.lo, span.lo), Span(span.hi, wanted.hi)) if span else (wanted,)
        for part in filter(None, missing):
            found = next(filter(None, (store.find(param, part) for store in self._stores)), None)
            if found is not None:
                before = span
                span, rows = _joined(span, rows, *found)
                self.stored_bytes += found[1].nbytes if span != before else 0
        return span, rows

    def _moved(
        self, param: Param, spread: Exchange, own: torch.Tensor | None, told: Callable[[float], object]
    ) -> torch.Tensor | None:
        """This rank's rows of a tensor after the exchange of it, some rows at a time; None for none.

        ``told`` is called after each time with the part of the rows that was looked at.
        """
        rank, (count, _, width) = self._team.rank, whole_of(param).shape
        if rank == ROOT:
            own = rows_of(param, self._state[param.key].detach())
        if spread.transfers:
            tensor = None if own is None else own.contiguous().view(1, -1, 1, width)
            mine, held, buffer = spread.owned[rank].channels, Held.of(spread, rank), None
            step = max(1, CHUNK_BYTES // (FLOAT_BYTES * max(width, 1)))
            for lo in range(0, count, step):
                rows, part = Span(lo, min(lo + step, count)), spread
                if count > step:
                    part = spread.part([Box(box.channels & rows, box.rows, box.columns) for box in spread.owned])
                    part = replace(part, part_of="bcast" if spread.pattern == "bcast" else "p2p")
                exchanger = by_messages(part, 1, self._team, held=held, buffer=buffer)
                buffer = exchanger.buffer
                given = part.owned[rank].channels
                cut = None if tensor is None else tensor[:, given.lo - mine.lo : given.hi - mine.lo]
                exchanger(cut, place=Place(f"weights {param.key}"))
                self.received_bytes += exchanger.counter.bytes_received
                exchanger.close()
                told(rows.hi / count)
            if buffer is not None:
                return buffer.view(-1, *param.shape[1:])
        need = spread.needed[rank].channels
        first = spread.owned[rank].channels.lo
        return own[need.lo - first : need.hi - first] if need and own is not None else None


def _joined(span: Span, rows: torch.Tensor | None, more: Span, found: torch.Tensor) -> tuple[Span, torch.Tensor | None]:
    """Rows and those found beside them as one span; the longer where they do not lie side by side."""
    if rows is not None and more.hi == span.lo:
        return span.hull(more), torch.cat([found, rows])
    if rows is not None and span.hi == more.lo:
        return span.hull(more), torch.cat([rows, found])
    return (more, found) if len(more) > len(span) else (span, rows)


def check_state(graph: Graph, state: Mapping[str, torch.Tensor]) -> None:
    """Raise ModelError unless ``state`` has every tensor the graph names, float32 and of its shape."""
    for unit in graph.units:
        for param in unit.params:
            tensor = state.get(param.key)
            if tensor is None or not _fits(param, tensor) or tensor.dtype != torch.float32:
                found = "none" if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"
                raise ModelError(f"the plan wants {param.key} as float32 of shape {param.shape}, the model has {found}")


def _fits(param: Param, tensor: torch.Tensor) -> bool:
    try:
        return param.groups > 0 or tuple(rows_of(param, tensor).shape) == param.shape
    except (ValueError, RuntimeError):
        return False


def readers_of(team: Team, path: str) -> tuple[int, ...]:
    """The ranks but the root that have the same weights file as the root under this path. Collective.

    Raises ModelError on every rank if one has another file there; it is named.
    """
    found = allgather_json(team, fingerprint(path))

    def compare() -> list[int]:
        for rank, mark in enumerate(found):
            if mark and mark != found[ROOT]:
                raise ModelError(f"rank {rank} has another file {path} than rank {ROOT}: copy it anew, or remove it")
        return [rank for rank, mark in enumerate(found) if mark and rank != ROOT]

    return tuple(bcast_json(team, on_root(team, compare)))
