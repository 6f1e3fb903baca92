"""From operations to ``Layer``s: what each means for box arithmetic.

Every builder has the signature of the torch function that it stands for, and is registered when it is imported.
"""

from mpiconv.nets.layers import kernels, norms, pointwise, sizes, windows
from mpiconv.nets.layers.base import FULLY_CONNECTED, Map, build
from mpiconv.nets.layers.sizes import resample

__all__ = ["FULLY_CONNECTED", "Map", "build", "kernels", "norms", "pointwise", "resample", "sizes", "windows"]
