"""From operations to ``Layer``s: what each means for box arithmetic.

Every builder has the signature of the torch function that it stands for, and is registered when it is imported.
"""

from mpiconv.graph.layers import kernels, norms, pointwise, sizes, windows
from mpiconv.graph.layers.base import Map, build
from mpiconv.graph.layers.sizes import resample

__all__ = ["Map", "build", "kernels", "norms", "pointwise", "resample", "sizes", "windows"]
