"""From parsed options to a model, its pictures and its plan: what rank 0 does before the others join in."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace

import torch
from torch import nn

from mpiconv.cli.options import shares_for
from mpiconv.errors import UsageError
from mpiconv.measure.energy import EnergyProfile, load_profile
from mpiconv.nets import Info, info_of, load_model
from mpiconv.nets.pictures import PictureFiles, Pictures, RandomPictures, folder_pictures
from mpiconv.partition import Plan, make_plan


@dataclass(frozen=True)
class Job:
    """What rank 0 knows of a run."""

    model: nn.Module
    info: Info
    pictures: Pictures
    plan: Plan
    profile: EnergyProfile

    @property
    def batches(self) -> int:
        """How many batches the pictures fill."""
        return math.ceil(len(self.pictures) / self.plan.batch)

    def batch(self, index: int) -> torch.Tensor:
        """The pictures (N, C, H, W) of a batch; the series starts again at its end."""
        size, count = self.plan.batch, len(self.pictures)
        start = index % self.batches * size
        return torch.stack([self.pictures.load(i % count) for i in range(start, start + size)])


def build_model(arguments: argparse.Namespace) -> tuple[nn.Module, Info]:
    """The model that the options name, and how it wants its pictures."""
    model = load_model(arguments.model, arguments.weights, arguments.classes, arguments.seed)
    info = info_of(model)
    if arguments.input_size:
        info = replace(info, input_shape=(info.input_shape[0], *arguments.input_size))
    return model, info


def prepare(arguments: argparse.Namespace, ranks: int) -> Job:
    """Read and check all that the run needs.

    Raises MpiconvError for whatever is missing, broken or does not fit.
    """
    profile = replace(load_profile(arguments.energy), link_bytes_per_s=arguments.link_rate)
    saved = Plan.load(arguments.plan) if arguments.plan else None
    model, info = build_model(arguments)
    if saved is not None:
        info = replace(info, input_shape=saved.graph.input_shape)
        if saved.ranks != ranks:
            raise UsageError(f"{arguments.plan} is a plan for {saved.ranks} ranks and {ranks} are running")
    batch = saved.batch if saved is not None else arguments.batch
    if arguments.image:
        pictures: Pictures = PictureFiles(arguments.image, info)
        for index in range(len(pictures)):
            pictures.load(index)
    elif arguments.data:
        pictures = folder_pictures(arguments.data, info)
        pictures.load(0)
    else:
        pictures = RandomPictures(arguments.repeats * batch, arguments.seed, info)
    shape = (batch, *info.input_shape)
    plan = saved or make_plan(model, shape, arguments.scheme, ranks, shares_for(arguments, ranks), arguments.gather)
    return Job(model, info, pictures, plan, profile)
