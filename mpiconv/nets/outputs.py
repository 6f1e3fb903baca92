"""What a network returns: the tensors in it, whatever they are packed in."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
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
