"""The network that the options of a command name."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from torch import nn

from mpiconv.graph.form import Graph
from mpiconv.graph.trace import trace
from mpiconv.models import Info, info_of, load_model, outline


def build_model(arguments: argparse.Namespace) -> tuple[nn.Module, Info]:
    """The model that the options name, and how it wants its pictures; built once."""
    if getattr(arguments, "built", None) is None:
        model = load_model(
            arguments.model,
            arguments.weights,
            arguments.classes,
            arguments.seed,
            allow_nonfinite=arguments.allow_nonfinite,
        )
        arguments.built = _as_asked(model, arguments)
    built: tuple[nn.Module, Info] = arguments.built
    return built


def build_graph(arguments: argparse.Namespace) -> Graph:
    """The network that the options name, as the planner takes it."""
    model, info = build_model(arguments)
    return trace(model, info.input_shape, batch=arguments.batch or 1).layers


def build_outline(arguments: argparse.Namespace) -> tuple[nn.Module, Info]:
    """The same for whoever only plans: weights that nobody named are not drawn."""
    if arguments.weights:
        return build_model(arguments)
    return _as_asked(outline(arguments.model, arguments.classes), arguments)


def _as_asked(model: nn.Module, arguments: argparse.Namespace) -> tuple[nn.Module, Info]:
    """A model with how it wants its pictures; ``--input-size`` says another size."""
    info = info_of(model)
    if info.note and not getattr(arguments, "quiet", False):
        print(f"mpiconv: note: {info.note}", file=sys.stderr, flush=True)
    if arguments.input_size:
        info = replace(info, input_shape=(info.input_shape[0], *arguments.input_size))
    return model, info
