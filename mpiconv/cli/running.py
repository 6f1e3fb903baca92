"""The inferences of a run on rank 0: warm-up, plans that are tried, and those that are measured."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from time import monotonic, perf_counter
from typing import Any

import torch
from tqdm import tqdm

from mpiconv.cli.notes import note
from mpiconv.cli.objectives import objective_of
from mpiconv.cli.saving import Results
from mpiconv.cli.setup import Job, repeats_of
from mpiconv.cli.startup import Startup
from mpiconv.cli.surviving import Surviving, event_of
from mpiconv.cli.surviving import line_of as loss_line
from mpiconv.data.pictures import ahead
from mpiconv.job import launcher
from mpiconv.job.stopping import Stopping
from mpiconv.job.world import on_terminal
from mpiconv.measure import Record
from mpiconv.partition.turns import Turns
from mpiconv.runtime.exactness import Exactness
from mpiconv.runtime.net import DistributedNet
from mpiconv.runtime.rebalance import Rebalance
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
    rebalancing
        What adopts other plans meanwhile; None where nothing does.
    events
        What became of the plan meanwhile, as results have it: ranks that were lost, and what rebalancing did.
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
        self.events: list[dict[str, Any]] = []
        self._begin_s = monotonic()
        self.rebalancing: Rebalance | None = None
        self._stopping, self._startup = stopping, startup
        self.outputs: list[Any] = []
        self.done, self.measured, self.tried = 0, 0, list[Trial]()
        self._answers: Any = None
        self._bar: Any = None

    @property
    def job(self) -> Job:
        """With the plan that runs."""
        return self._surviving.job

    def _adopted(self) -> None:
        self._surviving.job = replace(self.job, plan=self._net.plan)

    @property
    def frames(self) -> int:
        """How many inferences there are to run; one at least, for something to be measured."""
        return max(repeats_of(self.arguments, self.job.pictures) - self.first, 1)

    def batch(self, index: int) -> torch.Tensor:
        """The pictures (N, C, H, W) of a batch, counted from the first that is run."""
        return self.job.batch(self.first + index)

    def predictions(self, kept: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The answers of all pictures that have one, in order: those of runs before, and those of this one."""
        pictures = self.job.pictures
        found = [{**line, "image": pictures.name(line["index"])} for line in kept]
        for number, output in enumerate(self.outputs, self.first):
            lines = answers_of(output, number, pictures, self.job.info)
            found += [line for line in lines if line["index"] >= len(kept)]
        return found

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
            if arguments.rebalance and self.job.cluster is not None and self.job.plan.ranks > 1:
                self.rebalancing = Rebalance(net, self.job.cluster, self._tell, self.events)
            if net.team.watch.lifeline is not None:
                self._surviving.plan_ahead(frames - self.done)
            more = True
            while more:
                for _ in self._run(results.until_due(batches)):
                    self._rebalance(frames)
                more = results.save_so_far(net, self.done < frames and not self._stopping.look())
            self.measured = net.reports.measured
        if self.rebalancing is not None:
            self.rebalancing.end()

    def collect(self) -> Record:
        """The record of all ranks; where some were lost after the last picture that is run once more, to measure it."""
        while (record := self._net.collect()) is None or not len(record.latency_s):
            list(self._net.stream([self.job.batch(0)]))
        self._note_losses()
        self.measured = len(record.latency_s)
        return record

    def _rebalance(self, frames: int) -> None:
        """Have another plan adopted if that pays; what was measured by the one before is forgotten."""
        if self.rebalancing is None or self._stopping.look():
            return
        if self.rebalancing.after_picture(self.done, frames - self.done):
            self._adopted()

    def _note_losses(self) -> bool:
        """Note what ranks were lost since this was asked last; whether there were any."""
        known = sum(event["kind"] == "loss" for event in self.events)
        new = self._net.losses[known:]
        for loss in new:
            self.events.append(event_of(loss, self._net.plan, self.done, monotonic() - self._begin_s))
            launcher.tell(f"mpiconv: note: {loss_line(self.events[-1])}")
        if new and self.rebalancing is not None:
            self.rebalancing = self._rebalance_anew()
        return bool(new)

    def _rebalance_anew(self) -> Rebalance | None:
        """What watches the plan of those who are left."""
        cluster = self.job.cluster
        if cluster is None or self._net.team.size < 2 or isinstance(self._net.plan, Turns):
            return None
        return Rebalance(self._net, cluster, self._tell, self.events)

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
        self._adopted()
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
            self._note_losses()
            self.done += 1
            self._bar.update()
            self._keep(output)
            answered(output)
            yield seconds
            last = perf_counter()

    def _keep(self, output: Any) -> None:
        number = self.first + self.done - 1
        if number >= self.job.batches:
            return
        self.outputs.append(output)
        if self.arguments.answers:
            lines = answers_of(output, number, self.job.pictures, self.job.info)
            self._answers.add([{key: line[key] for key in ("index", "label", "score")} for line in lines])

    def _until_signal(self, batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        return itertools.takewhile(lambda _: not self._stopping.look() or self._unmeasured, batches)

    @property
    def _unmeasured(self) -> bool:
        """Whether another plan was adopted that nothing was measured of yet: there has to be something to write."""
        return bool(self.events) and not self._net.reports.measured
