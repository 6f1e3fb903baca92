"""The work behind ``mpiconv train``: settings from options, progress, signals, what is printed."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from mpiconv.data.datasets import HELD_OUT
from mpiconv.errors import MpiconvError
from mpiconv.files import check_writable
from mpiconv.job.control import on_root
from mpiconv.job.world import join_world, on_terminal
from mpiconv.text import to_json
from mpiconv.training import Epoch, Settings
from mpiconv.training.trainer import checkpoint_of
from mpiconv.training.trainer import train as teach


class InterruptedTrainingError(MpiconvError):
    """A signal ended the training."""

    exit_status = 130


def train(arguments: argparse.Namespace) -> int:
    """Train and print; collective. Exit status 0."""
    team = join_world()
    torch.set_num_threads(arguments.threads)
    settings = settings_of(arguments)
    output = Path(arguments.output or f"results/{settings.model.replace(':', '.')}.safetensors")
    checkpoint = checkpoint_of(output)

    def ready() -> None:
        if output.suffix != ".safetensors":
            raise MpiconvError(f"{output} does not end in .safetensors, which the weights are")
        check_writable(output)
        check_writable(checkpoint)
        if checkpoint.exists() and not arguments.resume and not arguments.quiet:
            print(f"mpiconv: note: {checkpoint} will be replaced; --resume goes on from it", file=sys.stderr)

    on_root(team, ready)
    root = team.rank == 0
    hidden = arguments.quiet or not root or not on_terminal()
    with tqdm(unit="step", disable=hidden, file=sys.stderr) as bar, _signals(checkpoint, team.size):

        def on_step(done: int, steps: int, loss: float) -> None:
            if bar.total is None:
                bar.reset(steps)
                bar.update(done - 1)
            bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            bar.update(done - bar.n)

        def on_epoch(epoch: Epoch) -> None:
            if not arguments.json:
                with bar.external_write_mode(file=sys.stdout):
                    print(_line(epoch, settings), flush=True)

        epochs = teach(settings, team, output, resume=arguments.resume, on_step=on_step, on_epoch=on_epoch)
    if root:
        _tell(arguments, settings, output, epochs)
    return 0


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The options as a training's settings."""
    return Settings(
        model=arguments.model or ("digits" if arguments.data == "digits" else "alexnet"),
        data=arguments.data,
        epochs=arguments.epochs,
        batch=arguments.batch,
        lr=arguments.lr,
        momentum=arguments.momentum,
        weight_decay=arguments.weight_decay,
        clip=arguments.clip,
        schedule=arguments.schedule,
        flip=not arguments.no_flip,
        shift=not arguments.no_shift,
        input_size=arguments.input_size,
        seed=arguments.seed,
        limit=arguments.limit,
        held_out=HELD_OUT if arguments.held_out is None else arguments.held_out,
    )


@contextmanager
def _signals(checkpoint: Path, ranks: int) -> Iterator[None]:
    """Take half a file away when SIGINT or SIGTERM ends the training, and say what there is to go on from.

    Of several ranks, one that mpirun ends (SIGTERM, perhaps because another has failed and said so) goes silently.
    """
    terminated = False

    def stop(*_: object) -> None:
        nonlocal terminated
        terminated = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        if terminated and ranks > 1:
            os._exit(128 + signal.SIGTERM)
        left = f"--resume goes on from {checkpoint}" if checkpoint.exists() else "before the first checkpoint"
        raise InterruptedTrainingError(f"interrupted: {left}") from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _line(epoch: Epoch, settings: Settings) -> str:
    return (
        f"epoch {epoch.number}/{settings.epochs}  loss {epoch.loss:.4f}  held-out accuracy {epoch.accuracy:.2%}  "
        f"{epoch.seconds:.1f} s"
    )


def _tell(arguments: argparse.Namespace, settings: Settings, output: Path, epochs: tuple[Epoch, ...]) -> None:
    best = max(epochs, key=lambda epoch: epoch.accuracy)
    if arguments.json:
        report = {
            "model": settings.model,
            "data": settings.data,
            "epochs": [asdict(epoch) for epoch in epochs],
            "best": asdict(best),
            "output": str(output),
            "checkpoint": str(checkpoint_of(output)),
        }
        print(to_json(report))
        return
    print(f"best     {best.accuracy:.2%} of the held-out pictures, after epoch {best.number}: {output}")
    print(f"try      mpiconv run --model {settings.model} --weights {output} --data {settings.data}")
