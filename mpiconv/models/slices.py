"""The tensors in a safetensors file, read one by one or some rows of one, and never left mapped."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mpiconv.errors import ModelError, MpiconvError
from mpiconv.files import user_cache, write_text
from mpiconv.graph.form import Param
from mpiconv.models.names import fit_names

LENGTH_BYTES = 8
MOST_HEADER_BYTES = 2**24
BLOCK_BYTES = 2**20
SETTLED_NS = 2 * 10**9
"""How old a file has to be for its times to tell it from one written right after."""

DTYPES = (
    {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    | {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
    | {"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "BOOL": torch.bool, "C64": torch.complex64}
    | {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
)


class WeightsFile:
    """A safetensors file; what is asked for is read from it then, so that a change of the file later changes nothing.

    Attributes
    ----------
    names
        The tensors in it.
    metadata
        Text by name, as the one who wrote it wished.

    Tensors are asked for by their names in the file, or by the model's own, ``wanted``, below whatever prefix they have
    in the file. Raises ModelError where it cannot be read, or several prefixes fit, below which numbers may differ.
    """

    def __init__(self, path: str | Path, wanted: Collection[str] = ()) -> None:
        self.path = Path(path)
        try:
            with open(path, "rb") as file:
                self._identity = _identity(os.fstat(file.fileno()))
                length = int.from_bytes(file.read(LENGTH_BYTES), "little")
                if length > MOST_HEADER_BYTES:
                    raise ValueError(f"its header would have {length} bytes, {MOST_HEADER_BYTES} at most are read")
                with safe_open(str(path), framework="pt"):  # sees whether the header is right
                    header = json.loads(file.read(length))
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"{path} is no safetensors file that can be read: {reason}") from None
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        self._header: dict[str, dict[str, Any]] = header
        self._data_at = LENGTH_BYTES + length
        self.names = tuple(header)
        fitted = fit_names(self.names, wanted)
        if wanted and fitted.others:
            raise ModelError(
                f"{path} holds the tensors several times, below {fitted.prefix or 'no prefix'} and below "
                f"{', '.join(fitted.others)}: --weights-on root takes the first"
            )
        self._stored = {name: name for name in self.names} | fitted.stored

    def read(self, name: str, lo: int = 0, hi: int | None = None) -> torch.Tensor:
        """Rows ``lo`` to ``hi`` of a tensor as it is in the file, or all of it.

        Raises ModelError where it is of an unknown number format, or the file has changed since it was opened.
        """
        entry = self._header[self._stored[name]]
        dtype, shape = DTYPES.get(entry["dtype"]), entry["shape"]
        if dtype is None:
            raise ModelError(
                f"{name} is {entry['dtype']} in {self.path}: float32, float16, bfloat16 or float64 is wanted"
            )
        first, last, _ = slice(lo, hi).indices(shape[0]) if shape else (0, 1, 1)
        part = torch.empty([last - first, *shape[1:]] if shape else [], dtype=dtype)
        if not part.numel():
            return part
        view = part.reshape(-1).view(torch.uint8).numpy().data
        try:
            with open(self.path, "rb") as file:
                file.seek(self._data_at + entry["data_offsets"][0] + first * (part.nbytes // (last - first)))
                whole = file.readinto(view) == len(view)
                if not whole or _identity(os.fstat(file.fileno())) != self._identity:
                    raise ModelError(f"{self.path} was changed while its weights were read: start again")
        except OSError as error:
            raise ModelError(f"cannot read the weights {self.path}: {error.strerror}") from None
        return part

    def rows(self, param: Param, lo: int, hi: int) -> torch.Tensor:
        """Rows ``lo`` to ``hi`` of a tensor as its layer computes with it, float32: output channels first.

        All of it is read only where its rows do not lie together in the file. Raises ModelError where it has none.
        """
        if param.key not in self._stored:
            raise ModelError(f"{self.path} has no {param.key} of shape {param.shape}")
        try:
            if self._header[self._stored[param.key]]["shape"][:1] == [param.shape[0]] and not param.groups:
                return self.read(param.key, lo, hi).float().reshape(hi - lo, *param.shape[1:])
            return rows_of(param, self.read(param.key).float())[lo:hi].contiguous()
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"{self.path} has no {param.key} of shape {param.shape}: {error}") from None


def rows_of(param: Param, tensor: torch.Tensor) -> torch.Tensor:
    """A parameter as its layer computes with it: of the shape ``param.shape``, output channels first.

    Raises ValueError where the tensor does not have the number of elements for that.
    """
    if param.groups:
        outs, ins, *kernel = param.shape
        parts = tensor.reshape(param.groups, ins, outs // param.groups, *kernel)
        return parts.transpose(1, 2).reshape(param.shape)
    if tensor.numel() == 1:
        return tensor.reshape([1] * len(param.shape)).expand(param.shape)
    if tensor.numel() != param.size:
        raise ValueError(f"{tuple(tensor.shape)} is not {param.shape}")
    return tensor.reshape(param.shape)


def fingerprint(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal; empty where there is none that can be read.

    It is kept in the user's cache folder and calculated anew once the file's path, size, times or inode differ.
    """
    try:
        with open(path, "rb") as file:
            before = _identity(os.fstat(file.fileno()))
            kept = user_cache("sha256") / hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()
            mark, found = " ".join(map(str, before)), _kept(kept).rpartition(" ")
            if found[0] == mark:
                return found[2]
            digest = hashlib.sha256()
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
            after = _identity(os.fstat(file.fileno()))
    except (OSError, ValueError):
        return ""
    if before == after and time.time_ns() - max(after[-2:]) > SETTLED_NS:
        _keep(kept, f"{mark} {digest.hexdigest()}")
    return digest.hexdigest()


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """What differs once a file was written again: nobody can set ``st_ctime_ns``."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _kept(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""


def _keep(path: Path, text: str) -> None:
    """Write a file of the cache in one step; a cache that cannot be written is none."""
    with suppress(MpiconvError):
        write_text(path, text)
