"""How maps get from rank to rank: media behind one interface. Those of the package are registered on import."""

from mpiconv.runtime.exchange import point_to_point, shared

__all__ = ["point_to_point", "shared"]
