"""What is computed: the named models, any ``nn.Module`` traced into units, and weights files."""

from mpiconv.nets.registry import REGISTRY, Info, info_of, load_model
from mpiconv.nets.trace import Traced, trace

__all__ = ["REGISTRY", "Info", "Traced", "info_of", "load_model", "trace"]
