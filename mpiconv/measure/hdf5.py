"""HDF5 files in and out: written by way of memory, and read only if they are what they seem."""

from __future__ import annotations

import io
import math
import mmap
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpiconv.errors import MpiconvError
from mpiconv.files import replaced

SMALL_BYTES = 2**28
UNPACKING = 4
"""A file may take ``SMALL_BYTES`` in memory, or this multiple of its size on disk if that is more."""

TEXT_BYTES = 2**24
PACKED_CHUNK_BYTES = 2**20
"""The most that a packed chunk may have: zlib makes at most a thousand times as much of it."""

MOST_CHUNKS = 100_000
BLOCK_BYTES = 512

HEAP = re.compile(rb"GCOL\x01\0\0\0(.{8})", re.DOTALL)
HEAP_HEADER = struct.Struct("<H6xQ")


def write_hdf5(path: str | Path, fill: Callable[[h5py.File], None]) -> None:
    """Write an HDF5 file, whole or not at all.

    It is made in memory, for HDF5 itself does not survive a full disk: it tries to write again whenever it can, last
    at the end of the process.

    Parameters
    ----------
    path
        The file; one that is there already is replaced.
    fill
        Is called with the open, empty file.

    Raises
    ------
    MpiconvError
        The file cannot be made or written.
    """
    image = io.BytesIO()
    try:
        with h5py.File(image, "w") as file:
            fill(file)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise MpiconvError(f"cannot make the HDF5 file {path}: {error}") from None
    with replaced(path) as target:
        target.write(image.getbuffer())


@contextmanager
def opened(path: str | Path) -> Iterator[h5py.File]:
    """An HDF5 file to read whose variables lie in it, in memory of reasonable size, and nowhere else.

    Whatever goes wrong in the block is the file's fault.

    Raises
    ------
    MpiconvError
        The file is missing, locked, broken or has links to other files or more in it than there is reason for; named.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "there is no such file" if missing else getattr(error, "strerror", None) or error
        raise MpiconvError(f"cannot read {path}: {reason}") from None
    if not stat.S_ISREG(found.st_mode):
        raise MpiconvError(f"cannot read {path}: it is a folder, a device or a pipe, no HDF5 file")
    try:
        _check_heaps(path)
        with h5py.File(path, "r") as file:
            _check(file, max(SMALL_BYTES, UNPACKING * min(found.st_size, BLOCK_BYTES * found.st_blocks)))
            yield file
    except MpiconvError as error:
        raise MpiconvError(f"{path} {error}") from None
    except BlockingIOError:
        raise MpiconvError(
            f"{path} is open for writing in another program: try again when that has closed it"
        ) from None
    except PermissionError as error:
        raise MpiconvError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # of any type, h5py raises also KeyError, RuntimeError, TypeError and others
        if not h5py.is_hdf5(path):
            raise MpiconvError(f"{path} is no HDF5 file: {error}") from None
        raise MpiconvError(f"{path} is damaged or cut short: {' '.join(str(error).split())}") from None


def _check_heaps(path: str | Path) -> None:
    """Raise MpiconvError for a heap of texts in which HDF5 2.0 would look for the next free part for ever.

    A heap has a header of 16 bytes, then parts: a number (0 for what is free), a count, their size in bytes, their
    data padded to 8 bytes. The size of what is free counts its own header, so it cannot be 0.
    """
    if not os.path.getsize(path):
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        for found in HEAP.finditer(raw):
            at, end = found.end(), min(found.start() + int.from_bytes(found[1], "little"), len(raw))
            while at + HEAP_HEADER.size <= end:
                number, length = HEAP_HEADER.unpack_from(raw, at)
                if number == length == 0:
                    raise MpiconvError("is damaged: the heap with its texts has a part without an end")
                at += length if number == 0 else HEAP_HEADER.size - (-length // 8) * 8


def _check(file: h5py.File, most_bytes: int) -> None:
    """Raise MpiconvError for links, storage outside the file, and what would take too much memory."""
    texts = _Texts()
    texts.add_attributes(file)
    total = 0
    for name in file:
        kind = file.id.links.get_info(name.encode()).type
        if kind != h5py.h5l.TYPE_HARD:
            raise MpiconvError(f"has {name!r} as a link to elsewhere, which is not followed")
        data = file[name]
        if not isinstance(data, h5py.Dataset):
            raise MpiconvError(f"has {name!r} in it, which is no variable: no file of mpiconv has that")
        properties = data.id.get_create_plist()
        if properties.get_external_count() or data.is_virtual:
            raise MpiconvError(f"has {name!r} stored in another file, which is not read")
        each = max(data.dtype.itemsize, 8)
        total += math.prod(data.shape or (1,)) * each
        if max(total, math.prod(data.chunks or (0,)) * each) > most_bytes:
            raise MpiconvError(f"has {name!r} of shape {data.shape} in it: that is more than such a file holds")
        if data.chunks and properties.get_nfilters():
            _check_packed(data)
        texts.add_attributes(data)
        if h5py.check_vlen_dtype(data.dtype) or data.dtype.kind == "O":
            texts.add(data)


def _check_packed(data: h5py.Dataset) -> None:
    """Raise MpiconvError for packed chunks that may unpack to very much."""
    count = data.id.get_num_chunks()
    sizes: list[int] = []
    if count <= MOST_CHUNKS:
        data.id.chunk_iter(lambda chunk: sizes.append(chunk.size))
    if count > MOST_CHUNKS or max(sizes, default=0) > PACKED_CHUNK_BYTES:
        raise MpiconvError(f"has {data.name!r} packed in chunks that are too large or too many")


class _Texts:
    """The text of a file, read one by one: a file can name the same long text again and again."""

    def __init__(self) -> None:
        self.bytes = 0

    def add(self, data: h5py.Dataset) -> None:
        """Count a dataset of texts, which xarray turns into an array where every one has the length of the longest."""
        longest = max((self._count(data[index]) for index in np.ndindex(data.shape)), default=0)
        if longest * data.size > TEXT_BYTES:
            raise MpiconvError(f"has texts in {data.name!r} that are longer than there is reason for")

    def add_attributes(self, item: Any) -> None:
        """Count the attributes of a file or a dataset, but for the lists of references that dimensions have."""
        for name in item.attrs:
            about = item.attrs.get_id(name)
            many = math.prod(about.shape or (1,))
            if about.dtype.kind == "O" and not h5py.check_ref_dtype(about.dtype) and name != "DIMENSION_LIST":
                if many > 1:
                    raise MpiconvError(f"has a list of texts as its attribute {name!r}: no file of mpiconv has that")
                self._count(item.attrs[name])

    def _count(self, value: Any) -> int:
        length = len(value) if isinstance(value, str | bytes | np.ndarray) else 8
        self.bytes += length
        if self.bytes > TEXT_BYTES:
            raise MpiconvError("has more text in it than there is reason for")
        return length
