"""Where networks come from: the named models, a user's own, and weights files."""

from mpiconv.models.info import Info, info_of
from mpiconv.models.registry import REGISTRY, load_model, outline

__all__ = ["REGISTRY", "Info", "info_of", "load_model", "outline"]
