"""Cooperative CNN inference over MPI: split a network over devices, exactly, and measure what it gains."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from mpiconv.job import openmpi

__version__ = "0.1.0"

_EXPORTS = {
    "load_model": "mpiconv.models",
    "trace": "mpiconv.graph.trace",
    "Plan": "mpiconv.partition",
    "make_plan": "mpiconv.partition",
    "Turns": "mpiconv.partition",
    "make_turns": "mpiconv.partition",
    "distribute": "mpiconv.runtime",
    "open_results": "mpiconv.measure",
    "MpiconvError": "mpiconv.errors",
}

openmpi.configure()  # MPI reads it when it starts, so this module has to be imported before mpi4py.MPI

__all__ = ["__version__", *_EXPORTS]  # noqa: PLE0604 - the names are strings


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that ``mpiconv --help`` needs neither torch nor MPI."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'mpiconv' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
