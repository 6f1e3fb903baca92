"""A bar that shows how the weights travel, on slow links."""

from __future__ import annotations

import sys
from collections.abc import Callable

from tqdm import tqdm

from mpiconv.job.world import on_terminal

SHOWN_AFTER_S = 1.0


def sending_bar(*, quiet: bool) -> Callable[[int, int], None]:
    """What shows a person on a terminal how the weights travel, where that takes more than ``SHOWN_AFTER_S``."""
    bars: list[tqdm] = []

    def show(sent: int, total: int) -> None:
        if not bars:
            hidden = quiet or not on_terminal()
            about = {"desc": "sending weights", "unit": "B", "unit_scale": True, "delay": SHOWN_AFTER_S, "leave": False}
            bars.append(tqdm(total=total, file=sys.stderr, disable=hidden, **about))
        bars[0].update(sent - bars[0].n)
        if sent >= total:
            bars[0].close()

    return show
