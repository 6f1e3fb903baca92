"""Faults of a disk at the n-th call that writes: it is full, it fails, or the power goes, and nothing is written since.

For what writes by ``os`` and by ``mpiconv.files``, in this process.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from unittest import mock

KINDS = ("full", "error", "cut")
"""Only part fits on the disk, and no more from then on; one call fails; the power goes half way through one."""

PIECE_BYTES = 2048
"""How much one write takes at most, so that there are many."""


class Disk:
    """Counts the calls that write, and has a fault at one of them.

    Attributes
    ----------
    calls
        How many there were so far.
    gone
        Whether the power is gone: from then on nothing can be written, renamed or removed.
    """

    def __init__(self, kind: str, at: int) -> None:
        self.kind, self.at = kind, at
        self.calls, self.gone = 0, False
        self._unsynced: dict[int, tuple[str, int]] = {}
        self._os = {name: getattr(os, name) for name in ("write", "fsync", "replace", "ftruncate", "unlink", "open")}

    def _due(self, *, takes_room: bool) -> bool:
        if self.gone:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.calls += 1
        return self.calls == self.at or (self.kind == "full" and takes_room and self.calls > self.at)

    def _fail(self) -> None:
        if self.kind == "cut":
            self.gone = True
            for path, size in self._unsynced.values():  # of what was not synced, half is lost
                with suppress(OSError):
                    os.truncate(path, (size + os.path.getsize(path)) // 2)
        number = errno.ENOSPC if self.kind == "full" else errno.EIO
        raise OSError(number, os.strerror(number))

    def write(self, handle: int, data: bytes) -> int:
        """As ``os.write``, a piece at a time."""
        data = memoryview(data).cast("B")[:PIECE_BYTES]
        path = os.readlink(f"/proc/self/fd/{handle}")
        self._unsynced.setdefault(os.fstat(handle).st_ino, (path, os.fstat(handle).st_size))
        if self._due(takes_room=True):
            if self.kind != "error":
                self._os["write"](handle, data[: len(data) // 2])
            self._fail()
        return self._os["write"](handle, data)

    def fsync(self, handle: int) -> None:
        """As ``os.fsync``."""
        if self._due(takes_room=False):
            self._fail()
        self._os["fsync"](handle)
        self._unsynced.pop(os.fstat(handle).st_ino, None)

    def replace(self, source: str, target: str) -> None:
        """As ``os.replace``; what was not synced may be lost under the new name."""
        if self._due(takes_room=False):
            self._fail()
        number = os.stat(source).st_ino
        self._os["replace"](source, target)
        if number in self._unsynced:
            self._unsynced[number] = (str(target), self._unsynced[number][1])

    def ftruncate(self, handle: int, size: int) -> None:
        """As ``os.ftruncate``."""
        if self._due(takes_room=False):
            self._fail()
        self._os["ftruncate"](handle, size)

    def unlink(self, path: str, **options: int) -> None:
        """As ``os.unlink``; not counted, as what cannot be removed is not lost."""
        if self.gone:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._os["unlink"](path, **options)

    def open(self, path: str, flags: int, *more: int, **options: int) -> int:
        """As ``os.open``; counted where a file is made."""
        if flags & os.O_CREAT and self._due(takes_room=True):
            self._fail()
        return self._os["open"](path, flags, *more, **options)

    def open_file(self, path: str, mode: str = "r", **options: str) -> io.IOBase:
        """As ``open``; what is written to a new binary file comes by."""
        if mode != "x+b":
            return builtins.open(path, mode, **options)
        if self._due(takes_room=True):
            self._fail()
        return io.BufferedRandom(_Raw(self, path), 512)


class _Raw(io.FileIO):
    def __init__(self, disk: Disk, path: str) -> None:
        super().__init__(path, "x+")
        self._disk = disk

    def write(self, data: bytes) -> int:
        return self._disk.write(self.fileno(), data)

    def close(self) -> None:
        with suppress(OSError):  # the fault was told before
            super().close()


@contextmanager
def fault(kind: str, at: int) -> Iterator[Disk]:
    """Have a fault at a call within the block."""
    disk = Disk(kind, at)
    names = ("write", "fsync", "replace", "ftruncate", "unlink", "open")
    with mock.patch.multiple(os, **{name: getattr(disk, name) for name in names}):  # noqa: SIM117 - one is optional
        with mock.patch("mpiconv.files.open", disk.open_file, create=True):
            yield disk
