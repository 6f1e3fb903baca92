"""The loop: epochs of steps, each followed by validation, a checkpoint and, if it is the best so far, its weights."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name
from torch.nn.parallel import DistributedDataParallel

from mpiconv.data.datasets import Dataset, prepare
from mpiconv.errors import MpiconvError, UsageError
from mpiconv.job.control import allgather_json, bcast_json, on_root
from mpiconv.job.team import Team
from mpiconv.models.metadata import to_metadata
from mpiconv.training.batches import change, draw_changes, epoch_batches, share
from mpiconv.training.checkpoint import Checkpoint, read_checkpoint, write_weights
from mpiconv.training.group import process_group
from mpiconv.training.settings import Epoch, Settings, difference
from mpiconv.training.start import Task, begin

if TYPE_CHECKING:
    from mpi4py import MPI

Told = Callable[[int, int, float], None]
"""Is told after each step: steps done, steps in all, the step's loss."""


def checkpoint_of(output: str | Path) -> Path:
    """Where the checkpoint of a training lies: beside its weights."""
    path = Path(output)
    return path.with_name(path.stem + ".checkpoint")


def train(
    settings: Settings,
    comm: MPI.Intracomm | Team,
    output: str | Path,
    *,
    resume: bool = False,
    on_step: Told | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> tuple[Epoch, ...]:
    """Teach a model, data-parallel over the ranks; the best weights and a checkpoint are files of rank 0. Collective.

    The result depends on the ranks only by rounding, unless the model has dropout (drawn by each rank for itself) or
    BatchNorm (which sees a rank's own part of a batch).

    Parameters
    ----------
    settings
        What to do.
    comm
        The communicator, or a team of one; every rank reads the data and builds the model for itself.
    output
        The .safetensors file of the weights with the best held-out accuracy; ``checkpoint_of`` it lies beside it.
    resume
        Whether to go on from that checkpoint: the same numbers as without the stop, on the same number of ranks.
    on_step, on_epoch
        Are told of progress, on rank 0.

    Returns
    -------
    tuple of Epoch
        All epochs, on every rank.

    Raises
    ------
    MpiconvError
        The data, the model, the checkpoint or the settings are wrong, or the loss is no number.
    """
    task = begin(settings)
    with Team.of(comm) as team:
        _check_ranks(team, settings, task)
        with process_group(team):
            return _Trainer(settings, team, task, Path(output)).run(resume, on_step, on_epoch)


def _check_ranks(team: Team, settings: Settings, task: Task) -> None:
    """Raise unless all ranks see the same data and each has pictures in every batch. Collective."""
    for rank, summary in enumerate(allgather_json(team, task.summary)):
        other = difference(summary, task.summary)
        if other:
            raise MpiconvError(f"rank {rank} finds other data than rank {team.rank}: {other}; copy them to all hosts")
    least = min(settings.batch, len(task.learned))
    if least < team.size:
        raise UsageError(f"a batch of {least} pictures cannot be shared among {team.size} ranks: raise --batch")


class _Trainer:
    def __init__(self, settings: Settings, team: Team, task: Task, output: Path) -> None:
        self.settings, self.team, self.task, self.output = settings, team, task, output
        self.model = task.model
        self.parameters = dict(self.model.named_parameters())
        self.optimiser = torch.optim.SGD(
            self.parameters.values(), settings.lr, settings.momentum, weight_decay=settings.weight_decay
        )
        self.steps = len(epoch_batches(len(task.learned), settings.batch, settings.seed, 0))

    def run(self, resume: bool, on_step: Told | None, on_epoch: Callable[[Epoch], None] | None) -> tuple[Epoch, ...]:
        epochs = self._resume() if resume else ()
        while len(epochs) < self.settings.epochs:
            begun, number = time.monotonic(), len(epochs) + 1
            # a new wrapper an epoch: after its first step it reorders its sums, and a resumed training has to as well
            net = DistributedDataParallel(self.model) if self.team.size > 1 else self.model
            loss = self._learn(net, number, on_step if self.team.rank == 0 else None)
            del net
            gc.collect()  # with it go its hooks and its copy of the gradients
            accuracy = self._validate()
            rate = float(self.optimiser.param_groups[0]["lr"])
            seconds = time.monotonic() - begun
            epoch = Epoch(number, loss, accuracy, rate, seconds)
            best = max((earlier.accuracy for earlier in epochs), default=-1.0)
            epochs = (*epochs, epoch)
            on_root(self.team, lambda: self._write(epochs, accuracy > best))  # noqa: B023 - called at once
            if on_epoch is not None and self.team.rank == 0:
                on_epoch(epoch)
        return epochs

    def _learn(self, net: nn.Module, number: int, on_step: Told | None) -> float:
        """One epoch of steps; the mean loss of its pictures. Collective."""
        settings, rank, ranks = self.settings, self.team.rank, self.team.size
        torch.manual_seed(int(np.random.SeedSequence((settings.seed, number, rank)).generate_state(1)[0]))
        flip = settings.flip and self.task.learned.about.flip
        net.train()
        total, seen = np.zeros(1), 0
        for step, batch in enumerate(epoch_batches(len(self.task.learned), settings.batch, settings.seed, number)):
            done = (number - 1) * self.steps + step
            for group in self.optimiser.param_groups:
                group["lr"] = settings.rate(done, settings.epochs * self.steps)
            images, answers = _read(self.task.learned, share(batch, rank, ranks), self.task)
            changes = draw_changes(
                len(batch),
                self.task.info.input_shape[1:],
                (settings.seed, number, step),
                flip=flip,
                shift=settings.shift,
            )
            images = change(images, changes.share(rank, ranks))
            self.optimiser.zero_grad()
            losses = F.cross_entropy(net(images), answers, reduction="sum")
            (losses * (ranks / len(batch))).backward()  # type: ignore[no-untyped-call]
            if settings.clip:
                nn.utils.clip_grad_norm_(self.parameters.values(), settings.clip)
            self.optimiser.step()
            value = losses.item()
            if not math.isfinite(value):
                raise MpiconvError(f"the loss is {value} in step {step + 1} of epoch {number}: try a smaller --lr")
            total += value
            seen += len(batch)
            if on_step is not None:
                on_step(done + 1, settings.epochs * self.steps, value / len(answers))
        return float(self._sum(total)[0]) / seen

    def _validate(self) -> float:
        """The part of the held-out pictures, shared among the ranks, that get the right class. Collective."""
        self.model.eval()
        if self.team.size > 1:
            for buffer in self.model.buffers():  # a rank's BatchNorm has seen other pictures; rank 0's is written
                dist.broadcast(buffer, 0)
        right = np.zeros(1)
        mine = np.arange(self.team.rank, len(self.task.held_out), self.team.size)
        size = max(self.settings.batch // self.team.size, 1)
        with torch.inference_mode():
            for start in range(0, len(mine), size):
                images, answers = _read(self.task.held_out, mine[start : start + size], self.task)
                right += int((self.model(images).argmax(1) == answers).sum())
        return float(self._sum(right)[0]) / len(self.task.held_out)

    def _sum(self, mine: np.ndarray) -> np.ndarray:
        total = np.empty_like(mine)
        self.team.mpi.Allreduce(mine, total)
        return total

    def _write(self, epochs: tuple[Epoch, ...], best: bool) -> None:
        """On rank 0: the weights before the checkpoint, so that a stop between the two repeats the epoch."""
        state, last = self.model.state_dict(), epochs[-1]
        if best:
            kind, limit = self.task.learned.about.kind, self.settings.limit
            extent = f", {limit} pictures of it" if limit is not None else ""
            metadata = to_metadata(self.task.info) | {
                "trained": f"on {kind}{extent}, by mpiconv train, {last.number} of {self.settings.epochs} epochs",
                "data": kind,
                "held_out_pictures": str(len(self.task.held_out)),
                "held_out_accuracy": f"{last.accuracy:.4f}",
            }
            write_weights(self.output, state, metadata)
        Checkpoint(self.settings, self.task.summary, state, self._momenta(), epochs).write(checkpoint_of(self.output))

    def _momenta(self) -> dict[str, torch.Tensor]:
        states = {name: self.optimiser.state.get(parameter, {}) for name, parameter in self.parameters.items()}
        return {name: state["momentum_buffer"] for name, state in states.items() if "momentum_buffer" in state}

    def _resume(self) -> tuple[Epoch, ...]:
        """Put everything where the checkpoint on rank 0 says, on all ranks; the epochs so far. Collective."""

        def read() -> Checkpoint:
            return read_checkpoint(checkpoint_of(self.output), self.settings, self.task.summary)

        found = on_root(self.team, read)
        if found is not None:
            self.model.load_state_dict(dict(found.model))  # DistributedDataParallel gives it to the others
        for name, parameter in self.parameters.items() if self.settings.momentum else ():
            momentum = found.momenta[name] if found is not None else torch.zeros_like(parameter)
            if self.team.size > 1:
                dist.broadcast(momentum, 0)
            self.optimiser.state[parameter]["momentum_buffer"] = momentum
        told: list[dict[str, Any]] = bcast_json(self.team, [vars(e) for e in found.epochs] if found else None)
        return tuple(Epoch(**epoch) for epoch in told)


def _read(data: Dataset, indices: np.ndarray, task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (N, C, H, W) and answers (N,) of a data set."""
    pictures, answers = zip(*(data.load(int(index)) for index in indices), strict=True)
    return prepare(pictures, task.info), torch.tensor(answers)
