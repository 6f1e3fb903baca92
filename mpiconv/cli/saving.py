"""What ``mpiconv run`` writes: answers as they come, results so far with ``--save-every``, and results at the end."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from mpiconv.cli.notes import note
from mpiconv.errors import MpiconvError, UsageError
from mpiconv.files import check_writable
from mpiconv.measure.results import STILL_RUNNING
from mpiconv.text import to_json

if TYPE_CHECKING:
    from mpiconv.measure import Record
    from mpiconv.runtime.net import DistributedNet

T = TypeVar("T")
Write = Callable[["Record", str, "dict[str, Any] | None", "dict[str, Any]"], None]


def check_outputs(arguments: argparse.Namespace) -> None:
    """Raise MpiconvError unless the files that the options name can be written."""
    paths = [path for path in (arguments.output, arguments.answers) if path]
    for path in paths:
        check_writable(path)
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise UsageError(f"--output and --answers are both {arguments.output}: name two files")
    if arguments.save_every and not arguments.output:
        raise UsageError("--save-every wants a file to write: --output FILE.h5")


class Answers:
    """The file with a line per picture; a run goes on if that cannot be written."""

    def __init__(self, path: str | None) -> None:
        self.problem = ""
        self._path = path
        self._file = None if path is None else self._try(lambda: open(path, "w", encoding="utf-8"))  # noqa: SIM115

    def add(self, line: dict[str, Any]) -> None:
        """Write a picture's line."""
        file = self._file
        if file is not None and not self.problem:
            self._try(lambda: print(to_json(line), file=file, flush=True))

    def close(self) -> None:
        """Have it on the disk."""
        file = self._file
        if file is not None:
            self._try(file.close)

    def _try(self, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except OSError as error:
            self.problem = self.problem or f"cannot write {self._path}: {error.strerror}"
            return None


class Results:
    """What rank 0 writes of a run.

    Parameters
    ----------
    arguments
        The options: ``output``, ``answers`` and ``save_every``.
    write
        Writes the result file from a record, what ended the run early, the check and other attributes.

    Attributes
    ----------
    answers
        The file with the answers.
    paused_s
        How long the inferences waited for results to be written.
    unwritten
        Why the result file could not be written the last time; empty if it could.
    """

    def __init__(self, arguments: argparse.Namespace, write: Write) -> None:
        self.answers = Answers(arguments.answers)
        self.paused_s, self.unwritten = 0.0, ""
        self._path: str | None = arguments.output
        self._write, self._every = write, arguments.save_every

    @property
    def path(self) -> str | None:
        """The result file, None where there is none."""
        return None if self.unwritten else self._path

    def raise_problem(self) -> None:
        """Raise MpiconvError if a file could not be written."""
        if self.unwritten or self.answers.problem:
            raise MpiconvError(self.unwritten or self.answers.problem)

    def save(
        self,
        record: Record,
        ended_early: str,
        check: dict[str, Any] | None = None,
        about: dict[str, Any] | None = None,
    ) -> None:
        """Write the result file, and note if that fails: the rest of what the run found is still to be told."""
        if self._path is None:
            return
        try:
            self._write(record, ended_early, check, about or {})
            self.unwritten = ""
        except MpiconvError as error:
            self.unwritten = str(error)

    def until_due(self, batches: Iterator[T]) -> Iterator[T]:
        """The batches until it is time to write; the rest stays in ``batches``."""
        begun = monotonic()
        for count, batch in enumerate(batches, 1):
            yield batch
            if self._every is not None and self._every.over(count, monotonic() - begun):
                return

    def save_so_far(self, net: DistributedNet, more: bool) -> bool:
        """Write what was measured so far, if there is more to come, which is returned. On rank 0; the others follow."""
        if self._every is None or not more:
            return False
        begun, known = monotonic(), bool(self.unwritten)
        record = net.collect()
        if record is not None:
            self.save(record, STILL_RUNNING)
            if self.unwritten and not known:
                note(f"{self.unwritten}; the run goes on")
            self.paused_s += (monotonic() - begun) / net.settings.dilation
        return more
