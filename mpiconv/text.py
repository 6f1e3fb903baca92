"""Text that every file and terminal takes, and JSON that every reader does. Standard library only."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""All control characters but the tab and the end of a line."""


def encodable(text: str) -> str:
    r"""Text that UTF-8 can hold: the odd bytes of a file's name as ``\xNN``.

    Python keeps a byte that is not UTF-8 as half of a surrogate pair, which can be neither printed nor written.
    """
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = text.encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace")


def safe_text(text: str) -> str:
    r"""Text that is ``encodable`` and that a terminal or HDF5 can hold too: control characters as ``\xNN``."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", encodable(text))


def to_json(value: Any) -> str:
    """One line of JSON by the standard: null for NaN and infinity, which it has not, and safe text."""
    return json.dumps(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return safe_text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def align(rows: list[list[str]]) -> list[str]:
    """Rows as lines of one table: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
