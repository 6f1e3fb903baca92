"""What a pickle would do, read off its opcodes without doing any of it."""

from __future__ import annotations

import pickletools
from typing import IO, Any

MOST_BYTES = 2**23
MOST_OPCODES = 2**20
MOST_STEPS = 10**8
MEMO_GAP = 2**12
PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
HASHED = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"})


def globals_of(file: IO[bytes]) -> set[str]:
    """The globals, as ``module.name``, that the pickle at the file's position names; the file then stands behind it.

    What a pickle of protocol 4 takes from the stack has the name ``a global of protocol 4``.

    Raises ValueError for what is no pickle, and for one that takes far more memory or time than its size tells: by
    numbering an object in the memo far beyond the last one, or by tuples of tuples, which Python walks through whenever
    it hashes one.
    """
    named: set[str] = set()
    stack: list[int | None] = []  # for each object how many values its hash depends on; None: a mark
    memo: dict[int, int] = {}
    steps = 0
    number: Any
    for count, (opcode, number, _) in enumerate(pickletools.genops(file)):
        if count > MOST_OPCODES:
            raise ValueError(f"it makes more than {MOST_OPCODES} objects")
        if opcode.name in PUTS or opcode.name == "MEMOIZE":
            index = int(number) if opcode.name in PUTS else len(memo)
            if index > len(memo) + MEMO_GAP:
                raise ValueError("it numbers its objects at random")
            memo[index] = (stack[-1] or 1) if stack else 1
            continue
        taken = _take(stack, opcode)
        steps += taken
        if steps > MOST_STEPS:
            raise ValueError("it holds tuples of tuples without end")
        if opcode.name in GETS:
            stack.append(memo.get(int(number), 1))
        else:
            made = 1 + taken if opcode.name in HASHED else 1
            stack += [None if kind is pickletools.markobject else made for kind in opcode.stack_after]
        if opcode.name in ("GLOBAL", "INST"):
            named.add(str(number).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            named.add("a global of protocol 4")
    return named


def _take(stack: list[int | None], opcode: pickletools.OpcodeInfo) -> int:
    """Take what an opcode takes from the stack, and tell on how many values the hashes of that depend."""
    before, total = opcode.stack_before, 0
    if pickletools.stackslice in before:
        while stack and (size := stack.pop()) is not None:
            total += size
    for kind in before:
        if kind not in (pickletools.stackslice, pickletools.markobject) and stack:
            total += stack.pop() or 0
    return total
