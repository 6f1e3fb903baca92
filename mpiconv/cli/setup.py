"""From parsed options to a model, its pictures and its plan: what rank 0 does before the others join in."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from mpiconv.cli.auto import as_published, plans_to_try, wants_baseline
from mpiconv.cli.kept import KeptFor
from mpiconv.cli.memory_limit import check_plan
from mpiconv.cli.networks import build_model
from mpiconv.cli.options import AUTO, SPLIT, shares_for
from mpiconv.cli.turns import check_watched, turns_for
from mpiconv.data.datasets import HELD_OUT, LabelledPictures, is_labelled, open_data
from mpiconv.data.pictures import PictureFiles, Pictures, RandomPictures, folder_pictures
from mpiconv.errors import ModelError, PlanError, UsageError
from mpiconv.measure.energy import EnergyProfile, load_profile
from mpiconv.models import Info
from mpiconv.partition import make_plan
from mpiconv.partition.box import normalised
from mpiconv.partition.plan import plans_of
from mpiconv.partition.schemes import ROOT_ALONE, check_scheme
from mpiconv.partition.turns import TURNS, AnyPlan, Turns, each_of, load_any
from mpiconv.planner.baselines import BASELINES
from mpiconv.planner.candidates import Candidate
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.estimating import estimate
from mpiconv.planner.simulation import Timeline
from mpiconv.runtime.weights import check_state
from mpiconv.words import counted

REPEATS = 100
"""Measured inferences unless told, but for a data set with answers, which is read once."""


@dataclass(frozen=True)
class Job:
    """What rank 0 knows of a run.

    ``trials`` are the plans to try on the ``cluster``, where none was asked for; ``baseline`` is the name of the
    baseline that made the plan, if one did; ``kept_for`` keeps the plan that was fastest for the next run.
    """

    model: nn.Module
    info: Info
    pictures: Pictures
    plan: AnyPlan
    profile: EnergyProfile
    cluster: Cluster | None = None
    trials: tuple[Candidate, ...] = ()
    baseline: str = ""
    kept_for: KeptFor | None = None

    @property
    def scheme(self) -> str:
        """The baseline's name, else the plan's scheme."""
        return self.baseline or self.plan.scheme

    @cached_property
    def predicted(self) -> Timeline | None:
        """How a frame goes by the plan as estimated; None where the cluster is not known, or plans take turns."""
        return None if self.cluster is None or isinstance(self.plan, Turns) else estimate(self.plan, self.cluster)

    @property
    def batches(self) -> int:
        """How many batches the pictures fill."""
        return math.ceil(len(self.pictures) / self.plan.batch)

    def batch(self, index: int) -> torch.Tensor:
        """The pictures (N, C, H, W) of a batch; the series starts again at its end."""
        size, count = self.plan.batch, len(self.pictures)
        start = index % self.batches * size
        return torch.stack([self.pictures.load(i % count) for i in range(start, start + size)])


def prepare(arguments: argparse.Namespace, ranks: int, cluster: Cluster | None = None) -> Job:
    """Read and check all that the run needs; with ``--scheme auto`` look for a plan for the cluster.

    Raises MpiconvError for whatever is missing, broken or does not fit.
    """
    profile = replace(load_profile(arguments.energy), link_bytes_per_s=arguments.link_rate)
    saved = saved_plan(arguments, ranks)
    model, info = build_model(arguments)
    if saved is not None:
        _check_network(arguments.plan, saved, model, info)
        info = replace(info, input_shape=saved.graph.input_shape)
        if saved.ranks != ranks:
            raise UsageError(f"{arguments.plan} is a plan for {counted(saved.ranks, 'rank')} and {ranks} are running")
    batch = arguments.batch
    if arguments.image:
        pictures: Pictures = PictureFiles(arguments.image, info)
        for index in range(len(pictures)):
            pictures.load(index)
    elif arguments.data and is_labelled(arguments.data):
        pictures, info = labelled_pictures(arguments, info)
    elif arguments.data:
        pictures = folder_pictures(arguments.data, info)
        pictures.load(0)
    else:
        pictures = RandomPictures((arguments.repeats or REPEATS) * batch, arguments.seed, info)
    shape = (batch, *info.input_shape)
    trials: tuple[Candidate, ...] = ()
    baseline = arguments.scheme if wants_baseline(arguments) else ""
    if cluster is not None and baseline:
        plan: AnyPlan = as_published(baseline, model, shape, cluster)
    elif cluster is not None and arguments.scheme == AUTO:
        repeats = repeats_of(arguments, pictures)
        trials = tuple(plans_to_try(arguments, model, shape, cluster, repeats))
        plan = trials[0].runs
    else:
        plan = saved or plan_for(arguments, model, shape, ranks)
    plan = in_wire(plan, arguments)
    if not trials:
        check_plan(arguments, plan)
    check_watched(arguments, plan)
    if isinstance(pictures, LabelledPictures):
        _check_outputs(model, info, arguments.data)
    return Job(model, info, pictures, plan, profile, cluster, trials, baseline)


def repeats_of(arguments: argparse.Namespace, pictures: Pictures) -> int:
    """Inferences to run: as many as asked for, and every picture at least once."""
    unasked = 1 if isinstance(pictures, LabelledPictures) else REPEATS
    asked, batch = int(arguments.repeats or unasked), int(arguments.batch)
    return max(asked, math.ceil(len(pictures) / batch))


def saved_plan(arguments: argparse.Namespace, ranks: int) -> AnyPlan | None:
    """The plan that --plan names; from then on the options of the split that were not given have a value.

    Raises UsageError for an option that says something else than the plan.
    """
    saved = load_any(arguments.plan) if arguments.plan else None
    if saved is not None:
        _compare_with_plan(arguments, saved, ranks)
    for name, usual in SPLIT.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, usual if saved is None else _of_plan(saved)[name])
    return saved


def _check_network(path: str, plan: AnyPlan, model: nn.Module, info: Info) -> None:
    """Raise PlanError where a plan of another name has tensors that the model has not, before it is traced as planned.

    The same network under another name is fine.
    """
    if info.name == plan.graph.model:
        return
    try:
        check_state(plan.graph, model.state_dict())
    except ModelError as error:
        raise PlanError(f"{path} is a plan for {plan.graph.model}, and --model is {info.name}: {error}") from None


def _of_plan(plan: AnyPlan) -> dict[str, Any]:
    """What the options of the split would be for a plan."""
    return {"scheme": plan.scheme, "gather": plan.gather, "head": plan.head, "batch": plan.batch}


def _compare_with_plan(arguments: argparse.Namespace, plan: AnyPlan, ranks: int) -> None:
    """Raise UsageError for the first option that says something else than the plan; naming it and both values."""
    found: dict[str, tuple[Any, Any]] = {
        name: (getattr(arguments, name), value)
        for name, value in _of_plan(plan).items()
        if name != "scheme" or any(set(each.schemes) != {ROOT_ALONE} for each in plans_of(plan))
    }
    rows, columns = plan.graph.input_shape[1:]
    size = arguments.input_size
    found["input-size"] = (f"{size[0]}x{size[1]}" if size else None), f"{rows}x{columns}"
    shares = shares_for(arguments, ranks)
    if shares is not None and ranks == plan.ranks and not np.allclose(normalised(shares, ranks), plan.shares):
        option = "shares" if arguments.offload is None else "offload"
        found[option] = getattr(arguments, option), ",".join(f"{share:g}" for share in plan.shares)
    for option, (given, value) in found.items():
        if given is not None and given != value:
            text = ",".join(f"{share:g}" for share in given) if isinstance(given, list) else given
            what = "shares" if option == "offload" else option.replace("-", " ")
            raise UsageError(
                f"{arguments.plan} is a plan with {what} {value}, and --{option} says {text}: leave --{option} out, or "
                "save another plan"
            )


def plan_for(arguments: argparse.Namespace, model: nn.Module, shape: tuple[int, ...], ranks: int) -> AnyPlan:
    """The plan that the options ask for, for pictures of the shape (N, C, H, W).

    Raises UsageError for a scheme that does not exist.
    """
    check_scheme(arguments.scheme, (*BASELINES, AUTO, TURNS))
    if arguments.scheme == TURNS:
        return turns_for(arguments, model, shape, ranks)
    shares = shares_for(arguments, ranks)
    return make_plan(model, shape, arguments.scheme, ranks, shares, arguments.gather, arguments.head)


def in_wire(plan: AnyPlan, arguments: argparse.Namespace) -> AnyPlan:
    """The plan with the number format that --wire names; its own where that is left out."""
    return each_of(plan, lambda each: replace(each, wire=arguments.wire)) if arguments.wire else plan


def labelled_pictures(arguments: argparse.Namespace, info: Info) -> tuple[LabelledPictures, Info]:
    """The held-out part of the data set that --data names, and the model's info with its classes.

    Raises MpiconvError where the data are missing or broken, or have other classes than the model was trained for.
    """
    data = open_data(arguments.data, "held-out", arguments.held_out or HELD_OUT)
    classes = data.about.classes
    if info.labels and set(info.labels) != set(classes):
        strange = sorted(set(classes) ^ set(info.labels))[0]
        raise UsageError(
            f"{arguments.data} has {len(classes)} classes, {info.name} was trained for {len(info.labels)}: "
            f"{strange!r} is not in both"
        )
    info = replace(info, labels=info.labels or classes)
    return LabelledPictures(data, info, info.labels), info


def _check_outputs(model: nn.Module, info: Info, data: str) -> None:
    """Raise UsageError unless the model gives one number per class of the data."""
    with torch.inference_mode():
        scores = model(torch.zeros(1, *info.input_shape))
    outputs = tuple(scores.shape[1:]) if isinstance(scores, torch.Tensor) else ()
    if outputs != (len(info.labels),):
        raise UsageError(
            f"{data} has {len(info.labels)} classes, {info.name} has {'x'.join(map(str, outputs)) or 'several'} "
            f"outputs: --weights of a model that was trained on it are wanted, or --classes {len(info.labels)}"
        )
