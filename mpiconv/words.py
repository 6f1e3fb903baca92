"""Words of messages: a number with its noun or unit, and the known word that is nearest to an unknown one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches

IRREGULAR = {"batch": "batches", "class": "classes"}


def counted(count: int, noun: str) -> str:
    """``1 rank``, ``2 ranks``."""
    return f"{count} {noun if count == 1 else IRREGULAR.get(noun, noun + 's')}"


def seconds(value: float) -> str:
    """A time in s or ms, to three digits; whole seconds from a thousand on."""
    if value >= 999.5:
        return f"{value:.0f} s"
    return f"{value:.3g} s" if value >= 0.9995 else f"{1e3 * value:.3g} ms"


def percent(part: float) -> str:
    """A part of one in per cent, to two digits."""
    return f"{100 * part:.2g} %" if part < math.inf else "infinity"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'kpm'?`` for the known word that is nearest, whatever its case; empty where none is near.

    Of options, which are not quoted, the dashes do not count.
    """
    texts = {text.lstrip("-").lower(): text for text in known}
    close = get_close_matches(word.lstrip("-").lower(), texts, 1)
    if not close:
        return ""
    text = texts[close[0]]
    return f"; did you mean {text if text.startswith('-') else repr(text)}?"
