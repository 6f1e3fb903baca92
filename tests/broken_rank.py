"""``mpiconv`` with something broken on one rank: RANK PLACE WORDS...

PLACE is module:name or module:class.name, which then raises; ``version``, which is another one; or ``silent``.
"""

from __future__ import annotations

import importlib
import sys
import time

import mpiconv
from mpiconv.cli import main
from mpiconv.job.world import launcher_rank

rank, place, *words = sys.argv[1:]
if launcher_rank() == int(rank):
    if place == "version":
        mpiconv.__version__ = "0.0.0"
    elif place == "silent":
        from mpi4py import MPI

        assert MPI.Is_initialized()
        time.sleep(60)
    else:
        module, _, path = place.partition(":")
        target = importlib.import_module(module)
        *owners, name = path.split(".")
        for owner in owners:
            target = getattr(target, owner)
        seen = []

        def broken(*_args: object, **_kwargs: object) -> None:
            seen.append(1)
            raise RuntimeError(f"{name} is broken here")

        setattr(target, name, broken)
raise SystemExit(main(words))
