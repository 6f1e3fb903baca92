"""The inferences of a run on rank 0: warm-up, plans that are tried, and those that are measured."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from time import perf_counter
from typing import Any, cast

import torch
from tqdm import tqdm

from mpiconv.cli.meanwhile import Meanwhile
from mpiconv.cli.notes import note
from mpiconv.cli.objectives import objective_of
from mpiconv.cli.saving import Results
from mpiconv.cli.setup import Job, repeats_of
from mpiconv.cli.startup import Startup
from mpiconv.cli.surviving import Surviving
from mpiconv.data.pictures import ahead
from mpiconv.job.stopping import Stopping
from mpiconv.job.world import on_terminal
from mpiconv.measure import Record
from mpiconv.runtime.exactness import Exactness
from mpiconv.runtime.net import DistributedNet
from mpiconv.runtime.trials import Limit, Trial, choose
from mpiconv.study.answers import answers as answers_of


class Running:
    """Feeds pictures to the network and keeps what comes out.

    Attributes
    ----------
    first
        The number of the batch that it begins with: those before it have their answers.
    outputs
        Of the first pass over the pictures, batch by batch from ``first`` on.
    done
        How many inferences were run, the warm-up apart.
    tried
        The plans that were tried, with what they took.
    measured
        How many inferences were run by the plan that stayed, and measured; where a signal ended the trials, those of
        the last plan.
    meanwhile
        What looks after the plan meanwhile.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        surviving: Surviving,
        net: DistributedNet,
        stopping: Stopping,
        startup: Startup,
        first: int,
    ) -> None:
        self.arguments, self._surviving, self._net, self.first = arguments, surviving, net, first
        self.meanwhile = Meanwhile(arguments, net, surviving, self._tell)
        self._stopping, self._startup, self.outputs = stopping, startup, list[Any]()
        self.done, self.measured, self.tried, self._answers = 0, 0, list[Trial](), cast("Any", None)
        self._bar: Any = None

    @property
    def job(self) -> Job:
        """With the plan that runs."""
        return self._surviving.job

    @property
    def frames(self) -> int:
        """How many inferences there are to run; one at least, for something to be measured."""
        return max(repeats_of(self.arguments, self.job.pictures) - self.first, 1)

    def batch(self, index: int) -> torch.Tensor:
        """The pictures (N, C, H, W) of a batch, counted from the first that is run."""
        return self.job.batch(self.first + index)

    def run_all(self, results: Results) -> None:
        """Run all inferences, or those until a signal."""
        arguments, net, first = self.arguments, self._net, self.job.batch(0)
        for _ in net.stream(self._until_signal(itertools.repeat(first, arguments.warmup)), copy=False):
            self._startup.done("first picture")
        net.reset()
        frames = self.frames
        if self.job.batches == 1:
            batches: Iterator[torch.Tensor] = itertools.repeat(first, frames)
        else:
            batches = iter(ahead(self.batch, frames, net.settings.in_flight))
        batches = self._until_signal(batches)
        hidden = arguments.quiet or not on_terminal()
        with ExitStack() as stack:
            self._answers = stack.enter_context(closing(results.answers))
            self._bar = stack.enter_context(
                tqdm(total=frames, desc="inferences", unit="", disable=hidden, file=sys.stderr)
            )
            self._try_plans(batches, frames)
            self.meanwhile.begin(frames - self.done)
            more = True
            while more:
                for _ in self._run(results.until_due(batches)):
                    if not self._stopping.look():
                        self.meanwhile.after(self.done, frames - self.done)
                more = results.save_so_far(net, self.done < frames and not self._stopping.look())
            self.measured = net.reports.measured
        self.meanwhile.end()

    def collect(self) -> Record:
        """The record of all ranks; where some were lost after the last picture one more is run, to be measured."""
        while (record := self._net.collect()) is None or not len(record.latency_s):
            list(self._net.stream([self.job.batch(0)]))
        self.meanwhile.note_losses(self.done)
        self.measured = len(record.latency_s)
        return record

    def _tell(self, text: str) -> None:
        """A line on stderr above the bar."""
        if not self.arguments.quiet:
            self._bar.clear()
            note(text)

    def _try_plans(self, batches: Iterator[torch.Tensor], frames: int) -> None:
        """Find the fastest of the plans to try, if there are several, and run by it from now on."""
        cluster, trials = self.job.cluster, self.job.trials
        if cluster is None or len(trials) < 2:
            return
        lost = len(self._net.losses)

        def over() -> bool:
            return self._stopping.look() or len(self._net.losses) > lost

        exact, most = Exactness(self._net, over), self.arguments.wire_error

        def run(count: int) -> list[float]:
            if len(self._net.losses) > lost:
                return []
            seconds = list(self._run(exact.asking(itertools.islice(batches, count)), exact.answered))
            return [] if len(self._net.losses) > lost else seconds

        limit = None if most is None else Limit(most, exact.errs)
        self.tried = choose(self._net, trials, cluster, run, frames, objective_of(self.arguments), limit)
        self.meanwhile.adopted()
        if not over():
            self._net.reset()
            if self.job.kept_for is not None:
                self.job.kept_for.keep(self.tried, self.job)

    def _run(
        self, batches: Iterable[torch.Tensor], answered: Callable[[Any], object] = lambda _: None
    ) -> Iterator[float]:
        """Run some batches and keep what comes out; the s that each took from the one before."""
        last = perf_counter()
        for output in self._net.stream(batches, copy=False):
            seconds = perf_counter() - last
            self._startup.done("first picture")
            self.meanwhile.note_losses(self.done)
            self.done += 1
            self._bar.update()
            self._keep(output)
            answered(output)
            self.meanwhile.verify(self.done)
            yield seconds
            last = perf_counter()

    def _keep(self, output: Any) -> None:
        if (number := self.first + self.done - 1) >= self.job.batches:
            return
        self.outputs.append(output)
        if self.arguments.answers:
            lines = answers_of(output, number, self.job.pictures, self.job.info)
            self._answers.add([{key: line[key] for key in ("index", "label", "score")} for line in lines])

    def _until_signal(self, batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The batches until a signal; one more where nothing was measured yet of a plan that was adopted."""

        def wanted(_: torch.Tensor) -> bool:
            return not (self._stopping.look() and (self._net.reports.measured or not self.meanwhile.events))

        return itertools.takewhile(wanted, batches)


def predictions(running: Running, kept: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The answers of all pictures that have one, in order: those of runs before, and those of this one."""
    job = running.job
    found = [{**line, "image": job.pictures.name(line["index"])} for line in kept]
    for number, output in enumerate(running.outputs, running.first):
        lines = answers_of(output, number, job.pictures, job.info)
        found += [line for line in lines if line["index"] >= len(kept)]
    return found
