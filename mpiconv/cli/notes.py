"""Notes on stderr: what is not an error. Standard library only."""

from __future__ import annotations

import sys


def note(text: str) -> None:
    """Say something on stderr that is not an error."""
    print(f"mpiconv: note: {text}", file=sys.stderr, flush=True)
