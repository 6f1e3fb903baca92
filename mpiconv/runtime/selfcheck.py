"""Does the graph compute what the module computes? Compared once, on the root, before any rank gets its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mpiconv.errors import ModelError, PlanError
from mpiconv.graph.form import PICTURE, Graph, Unit
from mpiconv.graph.grouping import GATHERS, grouped
from mpiconv.graph.outputs import Difference, tensors_in
from mpiconv.graph.trace import Traced, trace
from mpiconv.models.slices import rows_of
from mpiconv.partition import SCHEMES, Box, Plan, make_plan
from mpiconv.partition.making import fitted, on_rank
from mpiconv.partition.plan import at_work
from mpiconv.partition.receptive import unit_needs
from mpiconv.partition.schemes import ROOT
from mpiconv.partition.turns import AnyPlan, each_of
from mpiconv.runtime.compute.local import LocalUnit
from mpiconv.runtime.compute.operations import WholeUnit

TOLERANCE = 1e-4
"""Of the largest output: far more than rounding makes, far less than what was lost."""

SENSITIVE = 30
"""A module that amplifies rounding may differ by this multiple of what the pictures' memory format alone changes."""

FEW = 2
MOST_ELEMENTS = 2**26
"""Pictures of more elements are not compared: they would double the memory that a run needs."""


def traced_for(model: nn.Module, plan: AnyPlan, *, check: bool = True) -> tuple[Traced, AnyPlan]:
    """Trace a module for a plan, and see to it that what was traced computes what the module does.

    The units are run unsplit by torch's operations on a small random batch and compared with the module. Where they
    differ, the operations that torch.export finds are compared instead, and the plan is made anew for their units.

    Parameters
    ----------
    plan
        A plan, or several in turn.
    check
        False leaves the comparison out.

    Raises
    ------
    ModelError
        Those differ too; the first unit that does is named.
    PlanError
        The plan is for another network.
    """
    picture = plan.graph.input_shape
    found = trace(model, picture, batch=plan.batch)
    fitting = each_of(plan, lambda each: fitted(each, found.layers))
    problem = _problem(model, found, fitting.graph, plan.batch) if check else ""
    if problem and found.tracer == "run":
        again = found = trace(model, picture, batch=plan.batch, tracer="export")
        fitting = each_of(plan, lambda each: _planned_anew(each, again))
        problem = problem if _problem(model, found, fitting.graph, plan.batch) else ""
    if problem:
        raise _refusal(found, problem)
    return found, fitting


def _planned_anew(plan: Plan, traced: Traced) -> Plan:
    """The plan for what another tracer found, made anew where that has other layers."""
    try:
        return fitted(plan, traced.layers)
    except PlanError:
        if plan.scheme not in SCHEMES or plan.gather not in GATHERS:
            raise
    working = at_work(plan)
    if len(working) == 1 and working != [ROOT]:
        made = on_rank(grouped(traced.layers, plan.gather, "split"), working[0], plan.ranks, plan.batch)
        return replace(made, wire=plan.wire)
    return make_plan(
        traced.layers, plan.input_shape, plan.scheme, plan.ranks, plan.shares, plan.gather, plan.head, plan.wire
    )


def _refusal(traced: Traced, problem: str) -> ModelError:
    return ModelError(
        f"model {traced.layers.model} was traced, but its units compute something else than the module: {problem}; "
        "it may keep or read something besides tensors (--no-selfcheck runs it all the same)"
    )


def _problem(model: nn.Module, traced: Traced, graph: Graph, batch: int) -> str:
    """How the output of the units of ``graph`` differs from the module's, in words; empty if it does not.

    Raises ModelError for a module that answers the same pictures differently every time.
    """
    if batch > FEW:  # as long as two pictures are computed alike
        small = trace(model, graph.input_shape, batch=FEW, tracer=traced.tracer)
        if small.layers == traced.layers:
            traced, batch = small, FEW
    images = torch.randn(batch, *graph.input_shape, generator=torch.Generator().manual_seed(0))
    if images.numel() > MOST_ELEMENTS:
        return ""
    with torch.inference_mode(), _same_noise():
        wanted = model(images.clone())
    with torch.inference_mode(), _same_noise():
        found = Difference()
        found.add(_unsplit(traced, graph, images.clone()), wanted)
        if found.relative <= TOLERANCE:
            return ""
        if _changed(model, images, wanted) > TOLERANCE:
            raise _refusal(traced, "called twice with the same pictures, the module itself answers differently")
        if found.relative <= SENSITIVE * _changed(model, images.contiguous(memory_format=torch.channels_last), wanted):
            return ""
        problem = found.problem or f"the output differs by {found.relative:.2g} of its largest"
        return problem + _first(model, traced, graph, images)


@contextmanager
def _same_noise() -> Iterator[None]:
    """Let a dropout that is always on draw the same every time, and leave torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _changed(model: nn.Module, images: torch.Tensor, wanted: Any) -> float:
    """How far the module's output now is from ``wanted``, relative to the largest element of that."""
    found = Difference()
    with _same_noise():
        found.add(model(images.clone()), wanted)
    return found.relative


def _unsplit(traced: Traced, graph: Graph, images: torch.Tensor) -> Any:
    """The network's output, its units one after the other by torch's own operations."""
    output = None
    for output in _outputs(traced, graph, images):  # noqa: B007 - the last one counts
        pass
    return output


def _outputs(traced: Traced, graph: Graph, images: torch.Tensor) -> Iterator[Any]:
    """What each unit computes, in order; a map that nobody reads any more is not kept."""
    batch = len(images)
    maps: dict[int, Any] = {PICTURE: images}
    for index, unit in enumerate(graph.units):
        inputs = [maps[source] for source in unit.inputs]
        if index == len(graph.body):
            rest = replace(unit, layers=unit.layers[:-1])
            inputs = [_local(rest, traced, batch)(*inputs)] if rest.layers else inputs
            yield traced.head(*inputs)
            return
        if unit.opaque:
            maps[index] = WholeUnit(traced.modules[unit.layers[-1].name])(*inputs)
        else:
            needs = unit_needs(unit, Box.whole(unit.out_shape))
            parts: list[Any] = [_part(m, need) for m, need in zip(inputs, needs, strict=True)]
            maps[index] = _local(unit, traced, batch)(*parts)
        yield maps[index]
        for source in set(unit.inputs):
            if graph.consumers(source)[-1] == index:
                del maps[source]


def _part(whole: torch.Tensor, need: Box) -> torch.Tensor | None:
    """What a unit reads of a map (N, C, H, W)."""
    channels, rows, columns = need.within(Box.whole((whole.shape[1], whole.shape[2], whole.shape[3])))
    return whole[:, channels, rows, columns] if need else None


def _local(unit: Unit, traced: Traced, batch: int) -> LocalUnit:
    weights = [{p.role: rows_of(p, traced.tensors[p.key]) for p in layer.params} for layer in unit.layers]
    return LocalUnit(unit, Box.whole(unit.out_shape), weights, batch)


def _first(model: nn.Module, traced: Traced, graph: Graph, images: torch.Tensor) -> str:
    """The first unit whose last layer is a module with another output than the unit has, as ``, from unit NAME on``."""
    ends = {unit.layers[-1].name: unit for unit in graph.body}
    seen: dict[str, torch.Tensor] = {}

    def note(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            tensors = tensors_in(output)
            if name not in seen and tensors:
                seen[name] = tensors[0].clone()

        return hook

    named = dict(model.named_modules())
    hooks = [named[name].register_forward_hook(note(name)) for name in ends if name in named]
    try:
        with _same_noise():
            model(images.clone())
    finally:
        for hook in hooks:
            hook.remove()
    with _same_noise():
        for unit, output in zip(graph.units, _outputs(traced, graph, images.clone()), strict=True):
            wanted = seen.get(unit.layers[-1].name)
            found = Difference()
            if wanted is not None:
                found.add(output, wanted)
            if found.relative > TOLERANCE:
                return f", from unit {unit.name} on"
    return ""
