"""Running a plan: the builder makes it ready, the engine runs frames, exchanges move maps, engines compute units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpiconv.runtime.building import distribute
    from mpiconv.runtime.net import DistributedNet

__all__ = ["DistributedNet", "distribute"]


def __getattr__(name: str) -> Any:
    """Import the engine on first use: a command that needs only ``mpiconv.job.world`` does not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module 'mpiconv.runtime' has no attribute {name!r}")
    from mpiconv.runtime import building, net

    return {"DistributedNet": net.DistributedNet, "distribute": building.distribute}[name]
