"""Damage for files: bytes and values that nobody wrote. ``MPICONV_FUZZ=N`` tries N of everything instead of a few."""

from __future__ import annotations

import copy
import json
import math
import os
import resource
import time

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from mpiconv.errors import MpiconvError

FEW = 40
EXAMPLES = int(os.environ.get("MPICONV_FUZZ", "0"))
SECONDS, BYTES = 60.0, 2**30

NUMBERS = [0, -1, 1, 2, 7, 2**31, 2**63, -(2**70), 10**400, 0.0, 0.5, 1e308, 5e-324, math.nan, math.inf, -math.inf]
TEXTS = ["", "x", "kpm", "\x00", "\x1b[31m", "\N{SNOWMAN}", "0" * 300]
NESTS = [[], {}, [[]], [{}], {"": {}}, [0, 0], [-1, 1], [1, 2, 3], [[0, 1]] * 3, [[1, 0], [0, 1], [0, 1]], ["a", 1]]
ODD = st.one_of(
    st.sampled_from([None, True, False, *NUMBERS, *TEXTS, *NESTS]),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-2, 9), max_size=4),
).map(copy.deepcopy)


def fuzzed(few: int = FEW):
    """The settings of a fuzzer that tries a few in CI."""
    return settings(
        max_examples=EXAMPLES or few,
        deadline=None,
        derandomize=not EXAMPLES,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def damaged(draw, data: bytes) -> bytes:
    """A file with some bytes changed, taken out, put in or repeated, or cut short."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        where = draw(st.integers(0, max(len(out) - 1, 0)))
        length = draw(st.sampled_from([1, 1, 1, 2, 4, 8, 64]))
        match draw(st.integers(0, 6)):
            case 0:
                del out[where : where + length]
            case 1:
                out[where:where] = draw(st.binary(min_size=1, max_size=8))
            case 2:
                out[where:where] = out[where : where + length] * draw(st.sampled_from([1, 2, 100]))
            case 3:
                del out[where:]
            case 4 if out:
                out[where] ^= 1 << draw(st.integers(0, 7))
            case _:
                new = draw(st.one_of(st.binary(min_size=length, max_size=length), st.sampled_from([b"\xff", b"\0"])))
                out[where : where + len(new)] = new
    return bytes(out)


@st.composite
def changed(draw, data):
    """Nested dictionaries and lists with some values changed, taken away, added or moved."""
    out = copy.deepcopy(data)
    for _ in range(draw(st.integers(1, 3))):
        inner, key = out, None
        while isinstance(inner, dict | list) and inner and (key is None or draw(st.integers(0, 5))):
            holder, key = inner, draw(st.sampled_from(list(inner) if isinstance(inner, dict) else range(len(inner))))
            inner = holder[key]
        if key is None:
            return draw(ODD)
        match draw(st.integers(0, 5)):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[draw(st.sampled_from([key[:-1], key.upper(), "new", ""]))] = holder.pop(key)
            case 1 | 2 if isinstance(holder, list):
                holder.extend(copy.deepcopy(holder[: draw(st.integers(1, 3))]))
            case 3 if isinstance(inner, int | float) and not isinstance(inner, bool):
                holder[key] = draw(st.sampled_from([-inner, inner + 1, inner - 1, inner * 2, inner * 10**6, 0.5]))
            case _:
                holder[key] = draw(ODD)
    return out


def toml(data) -> str:
    """Nested dictionaries as TOML, each table in a line; what TOML has no word for is left out."""
    if not isinstance(data, dict):
        return f"value = {_toml(data)}\n"
    return "".join(f"{json.dumps(str(key))} = {_toml(value)}\n" for key, value in data.items() if value is not None)


def _toml(value) -> str:
    if isinstance(value, dict):
        parts = [f"{json.dumps(str(key))} = {_toml(item)}" for key, item in value.items() if item is not None]
        return "{" + ", ".join(parts) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value if item is not None) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value).replace("\x7f", "\\u007f")


def sentence_or_answer(read, use, error=MpiconvError):
    """What ``read`` gives, if it can be used; None if it raised an error in words. Neither takes long or much."""
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    found, words = None, "an answer"
    try:
        found = read()
    except error as said:
        words = str(said)
    if found is not None:
        use(found)
    assert words.strip()
    assert "Traceback" not in words
    assert time.monotonic() - begun < SECONDS
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < BYTES
    return found
