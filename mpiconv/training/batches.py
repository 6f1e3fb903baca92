"""Which pictures a step learns from and how they are changed: pure functions of seed, epoch and step.

Everything is drawn for the batch of all ranks and then shared out, so that any number of ranks sees the same pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

SHIFT = 0.1
"""The furthest that a picture is moved, as a part of its height or width."""


def epoch_batches(pictures: int, batch: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches (each (batch,) of picture numbers) of an epoch, drawn without putting back.

    What does not fill a batch is left out, other pictures in each epoch; fewer pictures than a batch make one.
    """
    order = np.random.default_rng((seed, epoch)).permutation(pictures)
    full = max(pictures // batch, 1)
    return [order[i * batch : (i + 1) * batch] for i in range(full)]


@dataclass(frozen=True)
class Changes:
    """What is done to each picture of a batch: ``flips`` (N,) of bool, ``moves`` (N, 2) down and right in pixels."""

    flips: np.ndarray
    moves: np.ndarray

    def share(self, rank: int, ranks: int) -> Changes:
        """The changes of the pictures that are a rank's."""
        return Changes(share(self.flips, rank, ranks), share(self.moves, rank, ranks))


def share(array: np.ndarray, rank: int, ranks: int) -> np.ndarray:
    """A rank's part of what belongs to a batch; the first ranks get one more where it does not divide evenly."""
    return np.array_split(array, ranks)[rank]


def draw_changes(count: int, size: tuple[int, int], seed: tuple[int, int, int], *, flip: bool, shift: bool) -> Changes:
    """Draw the changes of a batch: a mirror image for half of the pictures, a move by up to ``SHIFT`` of the size.

    Parameters
    ----------
    count
        Pictures in the batch of all ranks.
    size
        Rows and columns of the model's input in pixels.
    seed
        Seed, epoch, step.
    flip, shift
        Which of the two are done at all.
    """
    generator = np.random.default_rng(seed)
    flips = generator.random(count) < (0.5 if flip else 0)
    furthest = [round(SHIFT * side) if shift else 0 for side in size]
    moves = np.stack([generator.integers(-most, most + 1, count) for most in furthest], 1)
    return Changes(flips, moves)


def change(images: torch.Tensor, changes: Changes) -> torch.Tensor:
    """Images (N, C, H, W), each mirrored and moved; what moves in from beyond the edge repeats the edge."""
    rows, columns = (torch.arange(side) for side in images.shape[2:])
    changed = []
    for image, flip, (down, right) in zip(images, changes.flips, changes.moves.tolist(), strict=True):
        across = (columns - right).clamp(0, len(columns) - 1)
        across = across.flip(0) if flip else across
        changed.append(image[:, (rows - down).clamp(0, len(rows) - 1)][:, :, across])
    return torch.stack(changed) if changed else images
