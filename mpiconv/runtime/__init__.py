"""Doing it: local compute, exchange and the engine. The only room that talks MPI."""

from mpiconv.runtime.engine import DistributedNet, distribute

__all__ = ["DistributedNet", "distribute"]
