"""Rows of weights kept on each device's disk by the hash of their tensor, so that a second start sends hashes alone."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from mpiconv.errors import MpiconvError
from mpiconv.files import remove_unfinished, replaced, user_cache
from mpiconv.graph.form import Param
from mpiconv.models.slices import rows_of
from mpiconv.partition import Span

if TYPE_CHECKING:
    from mpiconv.job.team import Team

ENDING = ".safetensors"


def users(team: Team, setting: str, root: int = 0) -> tuple[int, ...]:
    """The ranks that keep their rows on disk: all but the root where a folder is named, else those of other hosts."""
    if setting == "off":
        return ()
    others = (rank for rank in range(team.size) if rank != root)
    return tuple(rank for rank in others if setting != "auto" or team.hosts[rank] != team.hosts[root])


def hashes_of(params: Iterable[Param], state: Mapping[str, torch.Tensor]) -> list[str]:
    """The SHA-256 of each tensor as its layer computes with it, in hexadecimal."""
    return [hashlib.sha256(_bytes(rows_of(param, state[param.key].detach()))).hexdigest() for param in params]


class WeightCache:
    """A folder of safetensors files, one for each start at which rows came that were not in it.

    A tensor in it is called ``SHA256:LO:HI``, by the hash of the whole tensor and the rows that it has; with each goes
    a checksum, since memory cards fail. The files that were used least lately go where all are larger than
    ``most_bytes``. What cannot be read or written is as if it were not there.

    Parameters
    ----------
    folder
        Where the files are; empty for the user's cache folder, ``~/.cache/mpiconv/weights`` mostly.
    most_bytes
        The most that all files may have together, in B.
    """

    def __init__(self, folder: str | Path, most_bytes: int) -> None:
        self.folder, self.most_bytes = Path(folder) if folder else user_cache("weights"), most_bytes
        self._rows: dict[str, list[tuple[Span, Path, str]]] = {}
        for path in self._paths():
            with suppress(SafetensorError, OSError), safe_open(str(path), framework="pt") as file:
                self._note(path, file.keys())

    def _note(self, path: Path, names: Iterable[str]) -> None:
        for name in names:
            mark, _, rows = name.partition(":")
            lo, _, hi = rows.partition(":")
            if lo.isdecimal() and hi.isdecimal():
                self._rows.setdefault(mark, []).append((Span(int(lo), int(hi)), path, name))

    def find(self, mark: str, shape: tuple[int, ...], rows: Span) -> tuple[Span, torch.Tensor] | None:
        """Some of the rows of the tensor with this hash and shape, and which: the most that lie together."""
        found: tuple[Span, torch.Tensor] | None = None
        for span, path, name in sorted(self._rows.get(mark, ()), key=lambda each: each[0]):
            part = span & rows
            if not part or (found is not None and part in found[0]):
                continue
            tensor = self._read(path, name, (len(span), *shape[1:]))
            if tensor is None:
                continue
            tensor = tensor[part.lo - span.lo : part.hi - span.lo]
            if found is not None and found[0].lo <= part.lo <= found[0].hi:
                new = Span(found[0].hi, part.hi)
                found = found[0].hull(new), torch.cat([found[1], tensor[new.lo - part.lo :]])
            elif found is None or len(part) > len(found[0]):
                found = part, tensor
        return found

    def _read(self, path: Path, name: str, shape: tuple[int, ...]) -> torch.Tensor | None:
        """A tensor of a file; None if it is damaged or gone."""
        try:
            with safe_open(str(path), framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(name).clone()  # where it lies changes the bits of products
                written = (file.metadata() or {}).get(name)
            os.utime(path)
        except (SafetensorError, OSError):
            return None
        right = tensor.dtype == torch.float32 and tuple(tensor.shape) == shape
        return tensor if right and str(zlib.crc32(_bytes(tensor))) == written else None

    def keep(self, rows: Mapping[str, tuple[Span, torch.Tensor]]) -> None:
        """Write rows of tensors, by their tensors' hashes, in one file; the oldest files go if there is no room."""
        tensors = {f"{mark}:{span.lo}:{span.hi}": tensor.contiguous() for mark, (span, tensor) in rows.items()}
        size = sum(tensor.nbytes for tensor in tensors.values())
        if not size or size > self.most_bytes:
            return
        sums = {name: str(zlib.crc32(_bytes(tensor))) for name, tensor in tensors.items()}
        path = self.folder / (hashlib.sha256(" ".join(sorted(tensors)).encode()).hexdigest() + ENDING)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(size, path)
            _write(path, tensors, sums)
        except (OSError, MpiconvError):
            return
        self._note(path, tensors)

    def _make_room(self, size: int, path: Path) -> None:
        """Remove what was left half written, and files until ``size`` B more are not too many."""
        remove_unfinished(self.folder)
        there = sorted((p for p in self._paths() if p != path), key=lambda p: p.stat().st_mtime)
        total = size + sum(p.stat().st_size for p in there)
        for oldest in there:
            if total <= self.most_bytes:
                break
            total -= oldest.stat().st_size
            oldest.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        try:
            return [Path(entry.path) for entry in os.scandir(self.folder) if entry.name.endswith(ENDING)]
        except OSError:
            return []


class CacheStore:
    """A weight cache as a ``Store``: looks tensors up by the hashes that the root sent."""

    def __init__(self, cache: WeightCache) -> None:
        self.cache, self.marks = cache, dict[Param, str]()

    def find(self, param: Param, rows: Span) -> tuple[Span, torch.Tensor] | None:
        """Some of the rows; None for none."""
        mark = self.marks.get(param)
        return None if mark is None else self.cache.find(mark, param.shape, rows)

    def keep(self, came: Mapping[Param, tuple[Span, torch.Tensor]]) -> None:
        """Write what came in messages."""
        self.cache.keep({self.marks[param]: rows for param, rows in came.items() if param in self.marks})


def _write(path: Path, tensors: Mapping[str, torch.Tensor], sums: Mapping[str, str]) -> None:
    """Write float32 tensors and their checksums as a safetensors file, whole or not at all, tensor by tensor.

    Raises MpiconvError if it cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": dict(sums)}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replaced(path, sync=False) as file:  # the checksums find what a loss of power tears
        os.fchmod(file.fileno(), 0o600)
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(_bytes(tensor))


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
