"""Text files that people and programs wrote: TOML and JSON, of reasonable size and depth. Standard library only."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mpiconv.errors import MpiconvError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TOML_BYTES, JSON_BYTES = 2**23, 2**24
DEEPEST = 32
MOST_DOTS_SQUARED = 20_000_000
"""Reading a TOML key takes the square of its dots in time and memory, and only a parser knows what is a key."""


def read_toml(path: str | Path, what: str) -> dict[str, Any]:
    """What a TOML file holds; ``what`` it should be is for the messages.

    Raises MpiconvError, naming the file, where it cannot be read or is too large or too deep.
    """
    data: dict[str, Any] = _read(path, what, "TOML", TOML_BYTES, _parse_toml)
    return data


def read_json(path: str | Path, what: str) -> Any:
    """What a JSON file holds; ``what`` it should be is for the messages.

    Raises MpiconvError, naming the file, where it cannot be read or is too large or too deep.
    """
    return _read(path, what, "JSON", JSON_BYTES, json.loads)


def _read(path: str | Path, what: str, kind: str, most_bytes: int, parse: Callable[[str], Any]) -> Any:
    try:
        with open(path, "rb") as file:
            raw = file.read(most_bytes + 1)
    except (OSError, ValueError) as error:
        raise MpiconvError(f"cannot read the {what} {path}: {getattr(error, 'strerror', None) or error}") from None
    if len(raw) > most_bytes:
        raise MpiconvError(f"{path} is no {what}: it has more than {most_bytes >> 20} MiB")
    try:
        data = parse(raw.decode("utf-8-sig"))
        _check_depth(data)
    except RecursionError:
        raise MpiconvError(f"{path} is no {what}: its tables or lists lie too deep in each other") from None
    except ValueError as error:  # of both parsers, of the decoder, and of numbers with thousands of digits
        raise MpiconvError(f"{path} is not {kind}: {error}") from None
    return data


def _parse_toml(text: str) -> dict[str, Any]:
    if sum(line.count(".") ** 2 for line in text.split("\n")) > MOST_DOTS_SQUARED:
        raise ValueError("its keys or lines are too long, break the lists in it into lines")
    data: dict[str, Any] = tomllib.loads(text)
    return data


def _check_depth(data: Any) -> None:
    """Raise RecursionError for what lies deeper than any table of ours, and would overturn who prints it."""
    level = [data]
    for _ in range(DEEPEST):
        level = [item for outer in level for item in _items(outer) if isinstance(item, Mapping | list)]
    if level:
        raise RecursionError


def _items(outer: Any) -> Any:
    return outer.values() if isinstance(outer, Mapping) else outer if isinstance(outer, list) else ()
