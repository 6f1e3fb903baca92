"""What happened: records, energy, and result files."""

from mpiconv.measure.record import Record
from mpiconv.measure.results import open_results

__all__ = ["Record", "open_results"]
