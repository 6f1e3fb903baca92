"""The answers file: a line of JSON per picture, in order, that survives the run; and beside it what it is of."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mpiconv.errors import MpiconvError
from mpiconv.files import disk, write_text
from mpiconv.text import to_json

ENDING = ".run"
"""What is added to the name of an answers file for the file that tells what it is of."""

VERSION = 1


@dataclass(frozen=True)
class Identity:
    """What answers depend on: two runs alike in all of it give the same answers, however they split the network.

    ``weights`` and ``pictures`` are hashes; ``count`` is the number of pictures.
    """

    model: str
    weights: str
    pictures: str
    preprocessing: str
    count: int

    def difference(self, other: Identity) -> str:
        """In what another one differs, in a few words; empty if in nothing."""
        if self.model != other.model:
            return f"the model {self.model}, and this run has {other.model}"
        if self.weights != other.weights:
            return "other weights than this run has"
        if (self.pictures, self.count) != (other.pictures, other.count):
            return "another list of pictures than this run has"
        return "" if self == other else "pictures that were scaled, normalised or labelled in another way than here"


def beside(path: str | Path) -> Path:
    """The file that tells what an answers file is of."""
    return Path(f"{path}{ENDING}")


def read_identity(path: str | Path) -> Identity | None:
    """What an answers file is of; None where the file beside it is missing or not one of this version."""
    try:
        found = json.loads(beside(path).read_text(encoding="utf-8"))
        version = found.pop("mpiconv_answers")
        return Identity(**found) if version == VERSION else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def read_answers(path: str | Path) -> tuple[list[dict[str, Any]], int]:
    """The answers that a file begins with, from picture 0 on without a gap, and how many B they take.

    A line that was cut, and whatever follows it, does not count. Without a file there are none.

    Raises MpiconvError where there is a file that cannot be read.
    """
    answers: list[dict[str, Any]] = []
    size = 0
    try:
        with open(path, "rb") as file:
            for line in file:
                found = _parsed(line) if line.endswith(b"\n") else None
                if found is None or found.get("index") != len(answers):
                    break
                answers.append(found)
                size += len(line)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise MpiconvError(f"cannot read {path}: {error.strerror}") from None
    return answers, size


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


class AnswersFile:
    """A file that gets a line per picture, in order and none twice, each on the disk before the next is written.

    Parameters
    ----------
    path
        The file; None for none: then nothing is written.
    identity
        What the answers depend on. It is written to a file of its own beside the answers, so that every line of theirs
        is an answer.
    resume
        Go on after the last whole line that is there, if there is any, instead of writing a new file.
    fsync_every
        After how many lines the file is brought to the disk; what is not yet there a loss of power may take away, the
        end of the program not.

    Attributes
    ----------
    kept
        The answers that were there.
    problem
        Why an answer could not be written; empty if all could. From then on none is, and the file ends with the last
        one that could.

    Raises
    ------
    MpiconvError
        The file cannot be read or written, another process writes it, or its answers are of something else.
    """

    def __init__(self, path: str | None, identity: Identity, *, resume: bool = False, fsync_every: int = 1) -> None:
        self.kept: list[dict[str, Any]] = []
        self.problem = ""
        self._path, self._handle, self._size = path, -1, 0
        self._count, self._waiting, self._every = 0, 0, fsync_every
        if path is not None:
            self._open(path, identity, resume=resume)

    def _open(self, path: str, identity: Identity, *, resume: bool) -> None:
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._lock(path)
            if resume:
                self.kept, self._size = read_answers(path)
            if self.kept:
                self._compare(path, identity)
            os.ftruncate(self._handle, self._size)
            os.lseek(self._handle, self._size, os.SEEK_SET)
            os.fsync(self._handle)  # before it is said whose answers follow, those of another run are gone
            if not self.kept:
                write_text(beside(path), to_json({"mpiconv_answers": VERSION, **asdict(identity)}) + "\n")
        except OSError as error:
            self.close()
            raise MpiconvError(f"cannot write {path}: {error.strerror}") from None
        except MpiconvError:
            self.close()
            raise
        self._count = len(self.kept)

    def _lock(self, path: str) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MpiconvError(f"another run is writing {path}: wait for its end, or name another file") from None
        except OSError:  # a file system without locks
            pass

    def _compare(self, path: str, identity: Identity) -> None:
        known = read_identity(path)
        if known is None:
            raise MpiconvError(
                f"cannot go on with {path}: there is no {beside(path)} that tells which model and pictures its answers "
                "are of; leave out --resume to begin anew"
            )
        other = known.difference(identity)
        if other:
            raise MpiconvError(
                f"cannot go on with {path}: it has the answers of {other}; give what it was made with, name another "
                "file, or leave out --resume to begin anew"
            )

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write the answers of the next pictures; those of pictures that have one already are passed over.

        If that fails, ``problem`` says why.
        """
        if self._handle < 0 or self.problem:
            return
        if lines and lines[0]["index"] > self._count:
            raise ValueError(f"the answer of picture {lines[0]['index']} came before that of picture {self._count}")
        for line in lines:
            if line["index"] == self._count:
                self._try(self._write, to_json(line).encode() + b"\n")
        if self._waiting >= self._every:
            self._try(self._sync)

    def _write(self, line: bytes) -> None:
        disk.check()
        left = memoryview(line)
        while left:
            left = left[os.write(self._handle, left) :]
        self._size += len(line)
        self._count += 1
        self._waiting += 1

    def _sync(self) -> None:
        self._waiting = 0
        os.fsync(self._handle)

    def _try(self, work: Callable[..., None], *what: bytes) -> None:
        """Do it unless something has failed before; where it fails, say why and leave no half of a line."""
        if self.problem:
            return
        try:
            work(*what)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.problem = f"cannot write {self._path}: {error.strerror}"
        with suppress(OSError):  # who reads it passes over a last line that was cut
            os.ftruncate(self._handle, self._size)

    def close(self) -> None:
        """Have it on the disk."""
        if self._handle >= 0:
            if self._waiting:
                self._try(self._sync)
            os.close(self._handle)
            self._handle = -1
