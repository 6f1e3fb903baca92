"""Some rows of the tensors in a safetensors file, read without the rest of it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mpiconv.errors import ModelError
from mpiconv.nets.graph import Param

HEADER_BYTES, STEP_BYTES, SAMPLE_BYTES = 2**16, 2**20, 2**12


class WeightsFile:
    """An open safetensors file.

    Raises ModelError where it cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        try:
            self._file: Any = safe_open(str(path), framework="pt")
            names = list(self._file.keys())  # type: ignore[no-untyped-call]
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is no safetensors file that can be read: {error}") from None
        self._prefix = "module." if names and all(name.startswith("module.") for name in names) else ""

    def rows(self, param: Param, lo: int, hi: int) -> torch.Tensor:
        """Rows ``lo`` to ``hi`` of a tensor as its layer computes with it, float32: output channels first.

        All of it is read only where its rows do not lie together in the file. Raises ModelError where it has none.
        """
        try:
            part = self._file.get_slice(self._prefix + param.key)
            if part.get_shape()[:1] == [param.shape[0]] and not param.groups:
                rows: torch.Tensor = part[lo:hi]
                return rows.float().reshape(hi - lo, *param.shape[1:])
            return rows_of(param, part[:].float())[lo:hi].contiguous()
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
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
    """What tells a copy of a file from another one: its size, first bytes and a sample of every MiB; empty: no file.

    Much less than the file is read.
    """
    try:
        size = Path(path).stat().st_size
        with Path(path).open("rb") as file:
            found = hashlib.sha256(str(size).encode() + file.read(HEADER_BYTES))
            for start in range(0, size, STEP_BYTES):
                file.seek(start)
                found.update(file.read(SAMPLE_BYTES))
            file.seek(max(size - SAMPLE_BYTES, 0))
            found.update(file.read(SAMPLE_BYTES))
    except OSError:
        return ""
    return found.hexdigest()
