"""Has every rank the weights that the root has? Checksums of what came to it, by messages or from its disk, tell."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import torch

from mpiconv.errors import ModelError
from mpiconv.graph.form import Param
from mpiconv.job.control import allgather_json, on_root
from mpiconv.job.team import Team
from mpiconv.models.slices import rows_of
from mpiconv.partition import Span
from mpiconv.partition.schemes import ROOT


def compare(
    team: Team,
    params: Sequence[Param],
    new: Sequence[tuple[int, Span, torch.Tensor]],
    state: Mapping[str, torch.Tensor],
) -> None:
    """See that the rows that came to every rank are the root's. Collective.

    Parameters
    ----------
    params
        Tensors, the same on all ranks.
    new
        What came to this rank: the number of the tensor, which rows, and them.
    state
        On the root the model's tensors.

    Raises
    ------
    ModelError
        On every rank, naming the one that has something else.
    """
    mine = [[number, span.lo, span.hi, checksum(rows)] for number, span, rows in new]
    everywhere = allgather_json(team, mine, what="the checksums of the weights")

    def look() -> None:
        for rank, found in enumerate(everywhere):
            for number, lo, hi, value in found:
                param = params[number]
                if checksum(rows_of(param, state[param.key].detach())[lo:hi]) != value:
                    raise ModelError(
                        f"rank {rank} (host {team.hosts[rank]}) has other rows {lo}:{hi} of {param.key} than rank "
                        f"{ROOT}: its memory, disk or link changes data; run without it, or with --weight-cache off"
                    )

    on_root(team, look)


def checksum(rows: torch.Tensor) -> int:
    """Of float32 numbers in their order; it tells a fault, no forgery."""
    return zlib.crc32(rows.contiguous().reshape(-1).view(torch.uint8).numpy().data)
