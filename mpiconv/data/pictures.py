"""Pictures from files, a folder or a random generator, as normalised tensors a model can read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from mpiconv.data.picture_files import SUFFIXES, list_pictures, open_picture, to_mode
from mpiconv.errors import UsageError
from mpiconv.models.info import Info

MODES = {1: "L", 3: "RGB"}


class Pictures(Protocol):
    """A series of pictures: how many, what each is called, and its tensor (C, H, W)."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What the picture is called."""

    def mark(self, index: int) -> str:
        """What tells the picture from every other, without reading it."""

    def load(self, index: int) -> torch.Tensor:
        """The picture as float32 (C, H, W), normalised."""


class PictureFiles:
    """Pictures in files, scaled to the model's input size and normalised as it wants them.

    Raises MpiconvError, naming the file, for one that is missing or broken, when it is loaded.
    """

    def __init__(self, paths: Sequence[str | Path], info: Info) -> None:
        self.paths = [Path(path) for path in paths]
        self.info = info

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The path as it was given."""
        return str(self.paths[index])

    def mark(self, index: int) -> str:
        """The path and how many B the file has; -1 where there is none."""
        path = self.paths[index]
        return f"{path} {path.stat().st_size if path.exists() else -1}"

    def load(self, index: int) -> torch.Tensor:
        """The picture as float32 (C, H, W), normalised."""
        return read_picture(self.paths[index], self.info)


class RandomPictures:
    """Pictures of noise; picture i depends on (seed, i) alone."""

    def __init__(self, count: int, seed: int, info: Info) -> None:
        self.count, self.seed, self.info = count, seed, info

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        """``random:INDEX``."""
        return f"random:{index}"

    def mark(self, index: int) -> str:
        """The seed and the number."""
        return f"random:{self.seed}:{index}"

    def load(self, index: int) -> torch.Tensor:
        """The picture as float32 (C, H, W), drawn from a normal distribution."""
        noise = np.random.default_rng((self.seed, index)).standard_normal(self.info.input_shape, np.float32)
        return torch.from_numpy(noise)


def folder_pictures(folder: str | Path, info: Info) -> PictureFiles:
    """All pictures in a folder and below it, in the order of their paths.

    Raises UsageError where there is no such folder, or none in it.
    """
    if not Path(folder).is_dir():
        raise UsageError(f"{folder} is not a folder of pictures")
    paths = list_pictures(folder)
    if not paths:
        raise UsageError(f"no pictures in {folder}: files ending in {', '.join(sorted(SUFFIXES))} are looked for")
    return PictureFiles(paths, info)


def read_picture(path: str | Path, info: Info) -> torch.Tensor:
    """One picture file as float32 (C, H, W), scaled (bilinear) to the input size and normalised.

    Raises MpiconvError, naming the file, where it is missing, broken, or too large to be one.
    """
    mode = MODES.get(info.input_shape[0])
    if mode is None:
        raise UsageError(f"{info.name} reads {info.input_shape[0]} channels; picture files have 1 or 3, use --random")
    return to_tensor(open_picture(path, mode), info)


def to_tensor(picture: Image.Image, info: Info) -> torch.Tensor:
    """A picture in memory as float32 (C, H, W), scaled (bilinear) to the input size and normalised."""
    channels, rows, columns = info.input_shape
    scaled = to_mode(picture, MODES[channels]).resize((columns, rows), Image.Resampling.BILINEAR)
    pixels = np.asarray(scaled, np.float32) / 255
    tensor = torch.from_numpy(pixels).reshape(rows, columns, channels).permute(2, 0, 1)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (info.mean, info.std))
    return ((tensor - mean) / std).contiguous()


def ahead(load: Callable[[int], torch.Tensor], count: int, depth: int) -> Iterator[torch.Tensor]:
    """``load(0)`` to ``load(count - 1)``, read by a thread up to ``depth`` beyond what was taken."""
    with ThreadPoolExecutor(1) as reader:
        waiting: deque[Future[torch.Tensor]] = deque()
        for index in range(count):
            while len(waiting) <= depth and index + len(waiting) < count:
                waiting.append(reader.submit(load, index + len(waiting)))
            yield waiting.popleft().result()
