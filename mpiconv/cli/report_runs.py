"""The work behind ``mpiconv report --figure`` and ``--combine``."""

from __future__ import annotations

import argparse
from pathlib import Path

from mpiconv.cli.notes import note
from mpiconv.errors import UsageError
from mpiconv.study.combined import combine, points, write_combined
from mpiconv.study.curves import figure_8, figure_9


def combined_or_figure(arguments: argparse.Namespace) -> int:
    """Combine the files and write them, or draw a figure from them."""
    if arguments.trace or arguments.title:
        raise UsageError(f"--{'trace' if arguments.trace else 'title'} is for the page, not for --figure or --combine")
    data = combine(arguments.files, note)
    if arguments.combine:
        out = arguments.out or "combined.h5"
        write_combined(data, out)
        print(f"combined {data.sizes['run']} runs into {out}")
        return 0
    out = arguments.out or f"figure{arguments.figure}.png"
    {8: figure_8, 9: figure_9}[arguments.figure](points(data), Path(out))
    print(f"figure   {out}")
    return 0
