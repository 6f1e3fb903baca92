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
from mpiconv.measure.answers import AnswersFile, Identity
from mpiconv.measure.results import STILL_RUNNING
from mpiconv.study.answers import identity_of

if TYPE_CHECKING:
    from mpiconv.cli.setup import Job
    from mpiconv.measure import Record
    from mpiconv.runtime.net import DistributedNet

T = TypeVar("T")
NOTHING = Identity("", "", "", "", 0)
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
    for option in ("resume", "fsync_every"):
        if getattr(arguments, option) and not arguments.answers:
            raise UsageError(f"--{option.replace('_', '-')} wants the file it is about: --answers FILE.jsonl")


def open_answers(arguments: argparse.Namespace, job: Job) -> AnswersFile:
    """The file with a line per picture that --answers names, begun or gone on with. Raises MpiconvError as it does."""
    if not arguments.answers:
        return AnswersFile(None, NOTHING)
    return AnswersFile(
        arguments.answers,
        identity_of(job.model, job.info, job.pictures),
        resume=arguments.resume,
        fsync_every=arguments.fsync_every or 1,
    )


class Results:
    """What rank 0 writes of a run.

    Parameters
    ----------
    arguments
        The options: ``output`` and ``save_every``.
    write
        Writes the result file from a record, what ended the run early, the check and other attributes.
    answers
        The file with the answers.

    Attributes
    ----------
    answers
        That file.
    paused_s
        How long the inferences waited for results to be written.
    unwritten
        Why the result file could not be written the last time; empty if it could.
    """

    def __init__(self, arguments: argparse.Namespace, write: Write, answers: AnswersFile) -> None:
        self.answers = answers
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
