"""Run mpiconv with a rank that signals itself at the n-th call of a function: RANK SIGNAL PLACE N WORDS..."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module

from mpiconv.cli import main
from mpiconv.runtime.world import launcher_rank

rank, name, place, call, *words = sys.argv[1:]
if launcher_rank() == int(rank):
    module, path = place.split(":")
    owner = import_module(module)
    *outer, last = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    original = getattr(owner, last)
    calls = 0

    def signals(*args, **options):
        global calls  # noqa: PLW0603
        calls += 1
        if calls == int(call):
            os.kill(os.getpid(), getattr(signal, name))
        return original(*args, **options)

    setattr(owner, last, signals)
raise SystemExit(main(words))
