"""What a network returns: the tensors in it, whatever they are packed in, and how far it is from what was wanted."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree


def tensors_in(value: Any) -> list[torch.Tensor]:
    """All tensors in lists, dictionaries, dataclasses and other objects, each once, in order."""
    found: dict[int, torch.Tensor] = {}
    known: set[int] = set()

    def look(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            found.setdefault(id(part), part)
            return
        if id(part) in known or isinstance(part, str | int | float | type | None):
            return
        known.add(id(part))
        children = pytree.tree_leaves(part, is_leaf=lambda x: x is not part)
        if children and not (len(children) == 1 and children[0] is part):
            inner = children
        elif is_dataclass(part):
            inner = [getattr(part, f.name, None) for f in fields(part)]
        else:
            inner = list(getattr(part, "__dict__", {}).values())
        for child in inner:
            look(child)

    look(value)
    return list(found.values())


def with_tensors(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A copy of an output with what a function makes of each tensor in it; itself where that is the same tensors."""
    if isinstance(value, torch.Tensor):
        return function(value)
    made = {id(tensor): function(tensor) for tensor in tensors_in(value)}
    if all(id(tensor) == key for key, tensor in made.items()):
        return value
    return copy.deepcopy(value, dict[int, Any](made))


@dataclass
class Difference:
    """How far outputs are from those wanted.

    Attributes
    ----------
    absolute, relative
        The largest difference of an element so far, and the largest as a part of its tensor's largest element; infinite
        where one is finite and the other is not. NaN at the same place is no difference.
    equal
        Whether everything is the same bit for bit.
    problem
        What differs in type, shape or structure, the first that was found; empty if nothing does.
    """

    absolute: float = 0.0
    relative: float = 0.0
    equal: bool = True
    problem: str = ""

    def add(self, mine: Any, wanted: Any, at: str = "the output") -> None:
        """Take another output, or a part of one, into account."""
        if type(mine) is not type(wanted):
            self._differs(f"{at} is {_called(mine)}, not {_called(wanted)}")
        elif isinstance(wanted, torch.Tensor):
            self._add_tensor(mine, wanted, at)
        elif isinstance(wanted, Mapping):
            self._add_parts(dict(mine), dict(wanted), at)
        elif isinstance(wanted, list | tuple):
            self._add_parts(dict(enumerate(mine)), dict(enumerate(wanted)), at)
        elif hasattr(wanted, "__dict__") and not isinstance(wanted, type) and not callable(wanted):
            self._add_parts(vars(mine), vars(wanted), at)
        elif mine is not wanted and mine != wanted and not (mine != mine and wanted != wanted):  # noqa: PLR0124 - NaN
            self._differs(f"{at} is {mine!r}, not {wanted!r}")

    def _differs(self, problem: str) -> None:
        self.problem = self.problem or problem
        self.absolute = self.relative = math.inf
        self.equal = False

    def _add_parts(self, mine: Mapping[Any, Any], wanted: Mapping[Any, Any], at: str) -> None:
        if list(mine) != list(wanted):
            self._differs(f"{at} has the parts {list(mine)}, not {list(wanted)}")
            return
        for key, part in wanted.items():
            self.add(mine[key], part, f"{at}[{key!r}]")

    def _add_tensor(self, mine: torch.Tensor, wanted: torch.Tensor, at: str) -> None:
        if (mine.shape, mine.dtype) != (wanted.shape, wanted.dtype):
            self._differs(f"{at} is {_called(mine)}, not {_called(wanted)}")
            return
        same = (mine == wanted) | ((mine != mine) & (wanted != wanted))  # noqa: PLR0124 - NaN
        if bool(same.all()):
            return
        self.equal = False
        kind = torch.complex128 if wanted.is_complex() else torch.float64
        one, other = mine.to(kind), wanted.to(kind)
        error = (one - other).abs()[~same].max().item()
        sizes = other.abs()
        largest = sizes[sizes.isfinite()].max().item() if sizes.isfinite().any() else 0.0
        ratio = error / largest if largest else error
        self.absolute = max(self.absolute, error if math.isfinite(error) else math.inf)
        self.relative = max(self.relative, ratio if math.isfinite(ratio) else math.inf)


def _called(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return "None" if value is None else f"of type {type(value).__name__}"
