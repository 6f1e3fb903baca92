"""Files that the program writes: whole or not at all, and never in place of a device. Standard library only."""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mpiconv.errors import MpiconvError
from mpiconv.text import encodable, safe_text

ENDING = ".mpiconv-tmp"
LONGEST_STEM_BYTES = 200
"""How much of the target's name goes into a temporary one, which may have 255 bytes."""


class Disk:
    """Whether writing is to fail as on a full disk: ``--inject full-disk`` has it so."""

    full = False

    def check(self) -> None:
        """Raise OSError where it is so."""
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


disk = Disk()

KINDS = {
    stat.S_IFDIR: "a folder, name a file in it",
    stat.S_IFCHR: "a device, name a file",
    stat.S_IFBLK: "a device, name a file",
    stat.S_IFIFO: "a pipe, name a file",
    stat.S_IFSOCK: "a socket, name a file",
}


def user_cache(name: str) -> Path:
    """A folder of the user's cache folder, which need not be there: ``$MPICONV_CACHE``, or else ``mpiconv`` in that."""
    own = os.environ.get("MPICONV_CACHE")
    if own:
        return Path(own) / name
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "mpiconv" / name


def check_writable(path: str | Path) -> None:
    """Raise MpiconvError unless a file can be written at ``path``.

    Its folder is made if need be, and what an earlier run left there half written is removed.
    """
    target = _target(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(target.parent, re.escape(_stem(target)))
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise MpiconvError(f"cannot write to the folder {target.parent}: {error.strerror}") from None


@contextmanager
def replaced(path: str | Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A new file to write to, which takes the place of ``path`` at the end of the block, or vanishes at an error.

    Until then it has a name that nobody can guess, in the same folder, which is made if need be. At the end the file
    and its folder are on the disk, not only on their way there. It gets the permissions of the file in whose place it
    comes, else those that the umask gives. Where ``path`` is a link, the file that it leads to is replaced.

    The file is locked while it is written; one that is not, of a run that died, is removed when ``path`` is next
    written. Where the file system has no locks, none is removed.

    Without ``sync`` it is not waited for the disk: a loss of power may leave a file that is cut or has zeros in it.

    Raises
    ------
    MpiconvError
        The file cannot be written, or ``path`` is a folder, a device, a pipe or a socket.
    """
    target = _target(path)
    name = ""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(target.parent, re.escape(_stem(target)))
        disk.check()
        with _locked(target) as file:
            name = file.name
            yield file
            file.flush()
            with suppress(OSError):  # there is none yet, or the file system knows no permissions
                os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
            if sync:
                os.fsync(file.fileno())
            os.replace(name, target)
            name = ""
        if sync:
            _sync_folder(target.parent)
    except (OSError, RuntimeError) as error:  # torch.save tells of a full disk by a RuntimeError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise MpiconvError(f"cannot write {path}: {reason}") from None
    finally:
        if name:
            with suppress(OSError):
                os.unlink(name)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file as UTF-8, as ``replaced`` does. Raises MpiconvError as it does."""
    with replaced(path) as file:
        file.write(encodable(text).encode())


def write_csv(path: str | Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows with the same keys as CSV, as ``replaced`` does. Raises MpiconvError as it does."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    with replaced(path) as file:
        file.write(encodable(text.getvalue()).encode())


def _target(path: str | Path) -> Path:
    """The file that a path leads to. Raises MpiconvError where no file can be written there."""
    try:
        target = Path(os.path.realpath(path))
        try:
            kind = stat.S_IFMT(os.stat(path).st_mode)
        except FileNotFoundError:
            if os.path.islink(path):
                raise MpiconvError(f"cannot write {path}: it is a link to {target}, which is not there") from None
            return target
        if kind in KINDS:
            raise MpiconvError(f"cannot write {path}: it is {KINDS[kind]}")
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))  # may this user, by this link?
    except ValueError:
        raise MpiconvError(f"cannot write {safe_text(str(path))}: no file can have this name") from None
    except OSError as error:
        raise MpiconvError(f"cannot write {path}: {error.strerror}") from None
    return target


def _locked(target: Path) -> BinaryIO:
    """A new file beside the target under a name of its own, locked as long as it is open."""
    while True:
        name = target.with_name(f".{_stem(target)}.{secrets.token_hex(8)}{ENDING}")
        file = open(name, "x+b")  # noqa: SIM115 - the caller closes it; x follows no link
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:  # else another run took it for a dead one's before it was locked
            return file
        file.close()


def remove_unfinished(folder: Path, stem: str = ".+") -> None:
    """Remove the temporary files in a folder that no living process has locked, for the targets of this pattern.

    Raises OSError where there is no such folder.
    """
    pattern = re.compile(rf"\.{stem}\.[0-9a-f]{{16}}{re.escape(ENDING)}", re.DOTALL)
    for name in os.listdir(folder):
        if not pattern.fullmatch(name):
            continue
        path = folder / name
        with suppress(OSError), open(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)


def _stem(target: Path) -> str:
    return os.fsdecode(os.fsencode(target.name)[:LONGEST_STEM_BYTES])


def _sync_folder(folder: Path) -> None:
    """Have the folder's entries on the disk, where its file system can do that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
