"""What happened: records, energy, and result files."""

from mpiconv.measure.record import Record

__all__ = ["Record"]
