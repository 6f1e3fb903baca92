"""CIFAR-10 as its authors publish it: the binary distribution, memory-mapped, and the python one, safely unpickled."""

from __future__ import annotations

import io
import mmap
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from mpiconv.errors import MpiconvError, UsageError
from mpiconv.pickles import globals_of

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
RECORD = 1 + PIXELS
OFFICIAL = 10000
"""Pictures in each of the five official training batches and in the test batch."""

MOST_BYTES = 2**28
MOST_NAMES_BYTES = 2**16

DISTRIBUTIONS = {".bin": "cifar-10-batches-bin", "": "cifar-10-batches-py"}


@dataclass(frozen=True)
class Batch:
    """One file: ``labels`` (N,) and ``pixels`` (N, 3072) of uint8, red, green, blue, row by row; views of the file."""

    path: Path
    labels: np.ndarray
    pixels: np.ndarray


def read_batches(folder: str | Path, part: str) -> tuple[list[Batch], tuple[str, ...]]:
    """The files of one part (``train`` or ``held-out``) of either distribution, and the names of the classes.

    Parameters
    ----------
    folder
        Where the batch files lie, or the folder above it, as the archive unpacks.
    part
        ``train``: data_batch_1 to 5; ``held-out``: test_batch.

    Raises
    ------
    UsageError
        There is no CIFAR-10 in the folder.
    MpiconvError
        A file is missing, cut, of a wrong size, no such file at all, or wants more than arrays; it is named.
    """
    root, suffix = _find(Path(folder))
    read = _read_binary if suffix else _read_python
    batches = [read(path) for path in _paths(root, part, suffix)]
    sizes = [len(batch.labels) for batch in batches]
    for batch, size in zip(batches, sizes, strict=True):
        if size != max(sizes):
            raise MpiconvError(f"{batch.path} holds {size} pictures, another batch {max(sizes)}: it was cut short")
    if part == "train" and max(sizes) == OFFICIAL and len(batches) < 5:
        raise MpiconvError(f"{root} has {len(batches)} of the five data batches: data_batch_{len(batches) + 1} is gone")
    first = root / f"data_batch_1{suffix}"
    if part != "train" and suffix and first.exists() and first.stat().st_size == OFFICIAL * RECORD != sizes[0] * RECORD:
        raise MpiconvError(
            f"{batches[0].path} holds {sizes[0]} pictures, the data batches {OFFICIAL}: it was cut short"
        )
    return batches, _class_names(root, suffix)


def _find(folder: Path) -> tuple[Path, str]:
    if folder.is_file():
        raise UsageError(f"{folder} is a file: unpack it, and name the folder that holds {' or '.join(_names())}")
    for suffix, below in DISTRIBUTIONS.items():
        for root in (folder, folder / below):
            if any((root / f"{stem}{suffix}").is_file() for stem in ("data_batch_1", "test_batch")):
                return root, suffix
    what = "has no CIFAR-10 in it" if folder.is_dir() else "is not there"
    raise UsageError(f"{folder} {what}: a folder with {' or '.join(_names())} is wanted, as the archive unpacks")


def _names() -> list[str]:
    return [f"data_batch_1{suffix}" for suffix in DISTRIBUTIONS]


def _paths(root: Path, part: str, suffix: str) -> list[Path]:
    if part != "train":
        return [root / f"test_batch{suffix}"]
    there = [i for i in range(1, 6) if (root / f"data_batch_{i}{suffix}").exists()]
    return [root / f"data_batch_{i}{suffix}" for i in range(1, max(there, default=1) + 1)]


def _class_names(root: Path, suffix: str) -> tuple[str, ...]:
    path = root / ("batches.meta.txt" if suffix else "batches.meta")
    if not path.is_file():
        return CLASSES
    if suffix:
        try:
            with path.open("rb") as file:
                names = file.read(MOST_NAMES_BYTES).decode(errors="replace").split()
        except OSError as error:
            raise MpiconvError(f"cannot read {path}: {error.strerror}") from None
    else:
        found = _entry(_unpickle(path), "label_names")
        names = [_text(name) for name in found] if isinstance(found, list) else []
    if len(names) != len(CLASSES):
        raise MpiconvError(f"{path} names {len(names)} classes, CIFAR-10 has {len(CLASSES)}")
    return tuple(names)


def _read_binary(path: Path) -> Batch:
    try:
        size = path.stat().st_size
        if size == 0 or size % RECORD:
            raise MpiconvError(
                f"{path} has {size} bytes: records of {RECORD} bytes are wanted, {OFFICIAL * RECORD} bytes in the "
                f"official files; it was cut short, or is no CIFAR-10 batch"
            )
        records = np.memmap(path, np.uint8, "r", shape=(size // RECORD, RECORD))
    except OSError as error:
        raise MpiconvError(f"cannot read {path}: {error.strerror}") from None
    return Batch(path, records[:, 0], records[:, 1:])


def _read_python(path: Path) -> Batch:
    found = _unpickle(path)
    data, labels = _entry(found, "data"), _entry(found, "labels")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != PIXELS:
        shape = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else f"{type(data).__name__}"
        raise MpiconvError(f"{path}: data is {shape}, uint8 (N, {PIXELS}) is wanted")
    answers = labels.tolist() if isinstance(labels, np.ndarray) else labels
    if not isinstance(answers, list) or not all(isinstance(label, int) and 0 <= label <= 9 for label in answers):
        raise MpiconvError(f"{path}: labels is no list of numbers from 0 to 9")
    if not 0 < len(data) == len(answers):
        raise MpiconvError(f"{path} holds {len(data)} pictures and {len(answers)} labels: as many are wanted")
    return Batch(path, np.array(answers, np.uint8), _mapped(path, data))


def _mapped(path: Path, data: np.ndarray) -> np.ndarray:
    """The same array, mapped from its file where the pickle holds it as it is: 31 MB of memory less a batch."""
    raw = data.tobytes()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        start = view.find(raw)
    return data if start < 0 else np.memmap(path, np.uint8, "r", start, data.shape)


def _entry(found: object, key: str) -> Any:
    """An entry by its name; Python 2 wrote the names as bytes."""
    return (found.get(key, found.get(key.encode()))) if isinstance(found, Mapping) else None


def _text(name: object) -> str:
    return name.decode("latin1") if isinstance(name, bytes) else str(name)


DTYPES = {"u1": np.uint8, "i2": np.int16, "i4": np.int32, "i8": np.int64}


class _Refused(Exception):  # noqa: N818 - it names what was found, the error is made of it
    pass


class _Dtype:
    """Stands for numpy.dtype: whole numbers only."""

    def __init__(self, code: object, *_: object) -> None:
        code = _text(code)
        if code not in DTYPES:
            raise _Refused(f"arrays of {code}")
        self.dtype = np.dtype(DTYPES[code])

    def __setstate__(self, state: tuple[object, ...]) -> None:
        order = _text(state[1])
        if order == ">":
            self.dtype = self.dtype.newbyteorder(">")


class _Array:
    """Stands for numpy.ndarray while its state comes in."""

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, raw = state
        self.value = _from_buffer(raw, kind, shape, "F" if fortran else "C").value


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _from_buffer(raw: Any, kind: Any, shape: Any, order: Any) -> _Array:
    if not isinstance(kind, _Dtype) or not isinstance(raw, bytes | bytearray | str):
        raise _Refused("arrays of objects")
    data = raw.encode("latin1") if isinstance(raw, str) else raw
    array = _Array()
    array.value = np.frombuffer(data, kind.dtype).reshape(shape, order=_text(order))  # type: ignore[call-overload]
    return array


def _scalar(kind: Any, raw: Any) -> int:
    value = _from_buffer(raw, kind, (1,), "C").value
    return 0 if value is None else int(value[0])


def _encode(text: str, encoding: object = "") -> bytes:
    if _text(encoding) != "latin1":
        raise _Refused(f"the codec {_text(encoding)}")
    return text.encode("latin1")


# nothing that a file names is imported or called, only these instead of what numpy writes
STAND_INS: dict[str, Callable[..., Any]] = {"numpy.ndarray": _Array, "numpy.dtype": _Dtype, "_codecs.encode": _encode}
for _core in ("numpy.core", "numpy._core"):
    STAND_INS[f"{_core}.multiarray._reconstruct"] = _reconstruct
    STAND_INS[f"{_core}.multiarray.scalar"] = _scalar
    STAND_INS[f"{_core}.numeric._frombuffer"] = _from_buffer


class _Unpickler(pickle.Unpickler):
    """Gives stand-ins for the few things that a batch is made of, and refuses all else before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in STAND_INS:
            raise _Refused(full)
        return STAND_INS[full]

    def persistent_load(self, pid: Any) -> NoReturn:  # noqa: ARG002 - its signature
        raise _Refused("an object from elsewhere")


def _unpickle(path: Path) -> object:
    """What a pickle of plain containers and arrays of whole numbers holds.

    Raises MpiconvError, naming the file and what it wanted, for any other pickle; nothing of it is executed.
    """
    try:
        if path.exists() and not path.is_file():
            raise MpiconvError(f"cannot read {path}: it is no regular file")
        with path.open("rb") as file:
            content = io.BytesIO(file.read(MOST_BYTES + 1))
        if content.getbuffer().nbytes > MOST_BYTES:
            raise MpiconvError(f"{path} has more than {MOST_BYTES} bytes, which no CIFAR-10 batch has")
        globals_of(content)
        content.seek(0)
        return _plain(_Unpickler(content, encoding="bytes").load())
    except MpiconvError:
        raise
    except OSError as error:
        raise MpiconvError(f"cannot read {path}: {error.strerror}") from None
    except _Refused as refused:
        raise MpiconvError(
            f"{path} wants {refused}, which no CIFAR-10 batch needs: refused, nothing of it was executed"
        ) from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MpiconvError(f"{path} is cut short or no pickle of CIFAR-10: {reason}") from None


def _plain(found: Any) -> object:
    if isinstance(found, _Array):
        return found.value
    if isinstance(found, dict):
        return {_text(key): _plain(value) for key, value in found.items()}
    return found
