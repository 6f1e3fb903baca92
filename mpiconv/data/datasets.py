"""Labelled data sets - CIFAR-10, a folder of pictures per class, the digits - read picture by picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - its usual name

from mpiconv.data import cifar
from mpiconv.data.picture_files import class_folders, open_picture
from mpiconv.errors import MpiconvError, UsageError, need
from mpiconv.models.info import Info

Part = Literal["train", "held-out"]

HELD_OUT = 0.2
"""The part of a folder without folders ``train`` and ``val`` that is held out unless told."""

HELD_OUT_FOLDERS = ("val", "valid", "validation", "test")
GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class About:
    """What is known of a data set: its kind, classes, normalisation (None: as the model has it), and habits.

    ``flip`` says whether a mirrored picture still shows its class.
    """

    kind: str
    classes: tuple[str, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    flip: bool = True


class Dataset(Protocol):
    """Pictures with answers: how many, what each is called, and its pixels and class."""

    about: About

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What the picture is called."""

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """The picture as uint8 (C, H, W), as large as it is, and the number of its class."""


class Cifar10:
    """CIFAR-10 in either of its distributions; the pictures stay in the files until they are asked for."""

    def __init__(self, folder: str | Path, part: Part) -> None:
        self._batches, classes = cifar.read_batches(folder, part)
        self._ends = np.cumsum([len(batch.labels) for batch in self._batches])
        self.about = About("cifar10", classes, cifar.MEAN, cifar.STD)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _at(self, index: int) -> tuple[cifar.Batch, int]:
        number = int(np.searchsorted(self._ends, index, "right"))
        return self._batches[number], index - (int(self._ends[number - 1]) if number else 0)

    def name(self, index: int) -> str:
        """``FILE:NUMBER``, from 0."""
        batch, number = self._at(index)
        return f"{batch.path.name}:{number}"

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """The picture as uint8 (3, 32, 32), and the number of its class."""
        batch, number = self._at(index)
        label = int(batch.labels[number])
        if label >= len(self.about.classes):
            raise MpiconvError(f"{batch.path}: picture {number} has the label {label}, CIFAR-10 has 0 to 9")
        return np.array(batch.pixels[number]).reshape(cifar.SHAPE), label


class Folder:
    """A folder of pictures per class: the classes are the folders' names, in their order.

    Where there are ``train`` and ``val`` (or valid, validation, test), these are the two parts. Otherwise a fraction of
    every class is held out, always the same pictures as long as the files are the same.
    """

    def __init__(self, folder: str | Path, part: Part, held_out: float = HELD_OUT) -> None:
        root = Path(folder)
        if not root.is_dir():
            raise UsageError(f"{folder} is not a folder with a folder of pictures per class")
        if (root / "train").is_dir():
            classes = class_folders(root / "train")
            chosen = root / "train" if part == "train" else _held_out_folder(root)
            there = classes if part == "train" else class_folders(chosen)
            strange = sorted(set(there) - set(classes))
            if strange:
                raise UsageError(f"{chosen / strange[0]} is a class that {root / 'train'} has not")
            files = [there.get(name, []) for name in classes]
        else:
            classes = class_folders(root)
            files = [_fraction(paths, number, part, held_out) for number, paths in enumerate(classes.values())]
        self.about = About("folder", tuple(classes))
        self._files = [(path, label) for label, paths in enumerate(files) for path in paths]
        if not self._files:
            raise UsageError(f"{folder} has no picture in its {part} part: --held-out is {held_out:g}")

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        """The path of the file."""
        return str(self._files[index][0])

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """The picture as uint8 (3, H, W), and the number of its class.

        Raises MpiconvError, naming the file, for one that is missing or broken.
        """
        path, label = self._files[index]
        return np.asarray(open_picture(path, "RGB")).transpose(2, 0, 1), label


class Digits:
    """scikit-learn's 1797 handwritten digits of 8 x 8 pixels: 80 % to train, 20 % held out, by class and always alike.

    Raises MpiconvError without scikit-learn.
    """

    about = About("digits", tuple("0123456789"), flip=False)

    def __init__(self, part: Part) -> None:
        images, labels = need("sklearn.datasets", "train").load_digits(return_X_y=True)
        parts = need("sklearn.model_selection", "train").train_test_split(
            np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels
        )
        self._indices = parts[0 if part == "train" else 1]
        self._pixels = np.round(images.reshape(-1, 1, 8, 8) * 255 / 16).astype(np.uint8)
        self._labels = labels

    def __len__(self) -> int:
        return len(self._indices)

    def name(self, index: int) -> str:
        """``digits:NUMBER``, as scikit-learn counts."""
        return f"digits:{self._indices[index]}"

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """The scan as uint8 (1, 8, 8), and its digit."""
        number = self._indices[index]
        return self._pixels[number], int(self._labels[number])


class Some:
    """So many pictures of a data set, drawn once, the same for the same data set and number."""

    def __init__(self, whole: Dataset, count: int) -> None:
        self._whole, self.about = whole, whole.about
        self._indices = np.random.default_rng(0).permutation(len(whole))[:count]

    def __len__(self) -> int:
        return len(self._indices)

    def name(self, index: int) -> str:
        """As in the whole data set."""
        return self._whole.name(int(self._indices[index]))

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """As in the whole data set."""
        return self._whole.load(int(self._indices[index]))


def is_labelled(text: str) -> bool:
    """Whether a ``--data`` names a data set with answers: cifar10:DIR, folder:DIR or digits."""
    return text == "digits" or text.startswith(("cifar10:", "folder:"))


def open_data(text: str, part: Part, held_out: float = HELD_OUT) -> Dataset:
    """One part of the data set that ``cifar10:DIR``, ``folder:DIR``, ``DIR`` or ``digits`` names.

    Parameters
    ----------
    text
        As above; a folder without a kind before it is a folder of pictures per class.
    part
        ``train``, or ``held-out``: the test batch, the folder val, or the pictures that training does not see.
    held_out
        For a folder without train and val: the fraction of every class, from 0 to 1, that is held out.

    Raises
    ------
    UsageError
        There is no such data.
    MpiconvError
        A file of it is missing, cut or wrong; it is named.
    """
    kind, _, folder = text.partition(":")
    if text == "digits":
        return Digits(part)
    if kind == "cifar10" and folder:
        return Cifar10(folder, part)
    return Folder(folder if kind == "folder" and folder else text, part, held_out)


class LabelledPictures:
    """A data set as the pictures of ``mpiconv run``, with the answer of each in the model's order of classes."""

    def __init__(self, data: Dataset, info: Info, classes: Sequence[str]) -> None:
        self._data, self._info = data, info
        self._order = [list(classes).index(name) for name in data.about.classes]
        self._answers: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._data)

    def name(self, index: int) -> str:
        """What the picture is called."""
        return self._data.name(index)

    def mark(self, index: int) -> str:
        """The name of the data set and of the picture."""
        return f"{self._data.about.kind}:{self._data.name(index)}"

    def load(self, index: int) -> torch.Tensor:
        """The picture as float32 (C, H, W), normalised."""
        picture, label = self._data.load(index)
        self._answers[index] = self._order[label]
        return prepare([picture], self._info)[0]

    def answer(self, index: int) -> int:
        """The number of the right class, as the model counts."""
        if index not in self._answers:
            self.load(index)
        return self._answers[index]


def prepare(pictures: Sequence[np.ndarray], info: Info) -> torch.Tensor:
    """Pictures of uint8 (C, H, W) as one float32 (N, C, H, W), scaled (bilinear) to the input size and normalised."""
    shapes = {picture.shape for picture in pictures}
    if len(shapes) > 1:
        return torch.cat([prepare([picture], info) for picture in pictures])
    channels, *size = info.input_shape
    images = torch.from_numpy(np.stack(pictures)).float() / 255
    if images.shape[1] != channels:
        if channels not in (1, 3):
            raise UsageError(f"{info.name} reads {channels} channels: pictures have 1 or 3")
        images = images.expand(-1, channels, -1, -1) if channels == 3 else _grey(images)
    if list(images.shape[2:]) != size:
        images = F.interpolate(images, size, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (info.mean, info.std))
    return ((images - mean) / std).contiguous()


def _grey(images: torch.Tensor) -> torch.Tensor:
    return (images * torch.tensor(GREY).view(-1, 1, 1)).sum(1, keepdim=True)


def _held_out_folder(root: Path) -> Path:
    for name in HELD_OUT_FOLDERS:
        if (root / name).is_dir():
            return root / name
    raise UsageError(f"{root} has a folder train, but none of {', '.join(HELD_OUT_FOLDERS)} beside it")


def _fraction(paths: list[Path], number: int, part: Part, held_out: float) -> list[Path]:
    """The pictures of a class that belong to a part; unless all are held out, each part gets one if there are two."""
    count = round(held_out * len(paths))
    if 0 < held_out < 1:
        count = min(max(count, 1), len(paths) - 1)
    chosen = set(np.random.default_rng((0, number)).permutation(len(paths))[:count].tolist())
    return [path for i, path in enumerate(paths) if (i in chosen) == (part == "held-out")]
