"""Teaching a model: batches, checkpoints, and one loop for one rank or many."""

from mpiconv.training.settings import Epoch, Settings
from mpiconv.training.trainer import train

__all__ = ["Epoch", "Settings", "train"]
