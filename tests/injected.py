"""Run mpiconv with a rank on which something happens at the n-th call of a function: RANK WHAT PLACE N WORDS...

WHAT is the name of an exception, which is raised there, or of a signal, which the process sends itself. PLACE is
module:name or module:class.name. The time of it goes into the file that MPICONV_INJECTED names.
"""

from __future__ import annotations

import builtins
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

from mpiconv import errors
from mpiconv.cli import main
from mpiconv.job.world import launcher_rank


class Cancelled(BaseException):
    """As other libraries have them, no Exception on purpose."""


def happen(what: str, name: str) -> None:
    if os.environ.get("MPICONV_INJECTED"):
        Path(os.environ["MPICONV_INJECTED"]).write_text(str(time.time()))
    if what.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, what))
        return
    kind = getattr(errors, what, None) or getattr(builtins, what, Cancelled)
    raise kind(f"{name} is broken here")


if __name__ == "__main__":
    rank, what, place, call, *words = sys.argv[1:]
    if launcher_rank() == int(rank):
        module, path = place.split(":")
        owner = import_module(module)
        *outer, last = path.split(".")
        for part in outer:
            owner = getattr(owner, part)
        original = getattr(owner, last)
        calls = 0

        def injected(*args, **options):
            global calls  # noqa: PLW0603
            calls += 1
            if calls == int(call):
                happen(what, last)
            return original(*args, **options)

        setattr(owner, last, injected)
    raise SystemExit(main(words))
