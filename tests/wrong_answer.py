"""``mpiconv`` with rank 1 computing something else than it should."""

from __future__ import annotations

import sys

from mpiconv.cli import main
from mpiconv.job.world import launcher_rank
from mpiconv.runtime.compute.local import LocalUnit

if launcher_rank() == 1:
    right = LocalUnit.__call__
    LocalUnit.__call__ = lambda self, *maps: right(self, *maps) * 1.001
raise SystemExit(main(sys.argv[1:]))
