"""What is known of the tensors in a run of a module: which depend on the picture, which operation made each."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from mpiconv.graph.calls import name_of

PREFIX = "constant:"
"""How the keys of tensors begin that are not the module's own."""


class CannotRecordError(Exception):
    """The module does something that cannot be noted as operations on tensors; the message says what."""


@dataclass
class Seen:
    """A tensor that depends on the picture: the module's object, its stand-in without values, the node that made it.

    ``stale`` is the operation that has written over a part of it, or of what it is a part of, since.
    """

    tensor: torch.Tensor
    twin: torch.Tensor
    node: fx.Node
    stale: str = ""

    def read(self) -> fx.Node:
        """The node, unless what it made has been written over in part."""
        if self.stale:
            raise CannotRecordError(f"{self.stale} writes in place over a part of a map that is read later")
        return self.node


class Noted:
    """The operations that depend on the picture, and the tensors that they read and made.

    Attributes
    ----------
    graph
        The operations. In ``meta`` each has its ``value`` (tensors without values, as the operation returned them), the
        ``name`` of the module of torch.nn that it is of, if any, and whether it ``writes`` over an argument.
    tensors
        Every constant tensor that the operations read, by key: as in the module's state_dict, the name of a buffer that
        is not saved there, or ``constant:0``, ``constant:1`` ... in the order of their first use.
    own
        The names of the module's own parameters and buffers, by their ids.
    seen
        The tensors that depend on the picture, by their ids.
    """

    def __init__(self, model: nn.Module) -> None:
        self.graph = fx.Graph()
        self.tensors: dict[str, torch.Tensor] = {}
        self.own = {id(t): key for key, t in [*model.named_buffers(), *model.named_parameters()]}
        self.seen: dict[int, Seen] = {}
        self.alive: list[torch.Tensor] = []  # so that no other tensor gets an id that is known
        self._skeleton = any(t.device.type == "meta" for t in model.parameters())
        self._keys: dict[int, str] = dict(self.own)
        self._nodes: dict[str, fx.Node] = {}
        self._overwritten: set[int] = set()  # storages of constants that what depends on the picture was written to

    def node_of(self, tensor: torch.Tensor) -> fx.Node:
        """The node of a tensor that the module returned."""
        seen = self.seen.get(id(tensor))
        return self._constant(tensor) if seen is None else seen.read()

    def depends(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor depends on the picture."""
        return id(tensor) in self.seen

    def argument(self, value: Any) -> Any:
        """A tensor's node; anything else as it is."""
        if isinstance(value, torch.Tensor):
            return self.node_of(value)
        return tuple(value) if isinstance(value, torch.Size) else value

    def note(self, node: fx.Node, value: Any, name: str, *, writes: bool = False) -> fx.Node:
        """A node, with what is to be known of it."""
        node.meta |= {"value": value, "name": name, "writes": writes}
        return node

    def see(self, tensor: torch.Tensor, twin: torch.Tensor, node: fx.Node) -> None:
        """Know a tensor, its stand-in without values and the node that made it."""
        self.seen[id(tensor)] = Seen(tensor, twin, node)

    def check_constant(self, tensor: torch.Tensor, name: str) -> None:
        """Raise CannotRecordError for a tensor that an operation reads as a constant and that is none."""
        if tensor.device.type == "meta" and not self._skeleton:
            raise CannotRecordError(
                f"{name} reads a tensor that something else than torch's functions made of the picture"
            )
        if self._overwritten and tensor.untyped_storage()._cdata in self._overwritten:  # noqa: SLF001
            raise CannotRecordError(f"{name} reads a part of a tensor that was written over elsewhere")

    def _constant(self, tensor: torch.Tensor) -> fx.Node:
        """The node of a tensor that does not depend on the picture."""
        key = self._keys.setdefault(id(tensor), f"{PREFIX}{len(self._keys) - len(self.own)}")
        if key not in self._nodes:
            self.alive.append(tensor)
            self.tensors[key] = tensor.detach()
            self._nodes[key] = self.note(self.graph.get_attr(key), tensor, "")
        return self._nodes[key]

    def overwrite(self, tensor: torch.Tensor, twin: torch.Tensor, node: fx.Node | None, name: str) -> None:
        """Who reads a tensor that was written over reads what the node made of it; None where the node made another."""
        if id(tensor) not in self.seen:
            self._overwritten.add(tensor.untyped_storage()._cdata)  # noqa: SLF001
            self.see(tensor, twin, node if node is not None else self._constant(tensor))
        storage, place = twin.untyped_storage()._cdata, _place(twin)  # noqa: SLF001
        for seen in self.seen.values():
            if seen.twin.untyped_storage()._cdata != storage:  # noqa: SLF001
                continue
            if node is not None and _place(seen.twin) == place:
                seen.node = node
            elif _overlap(seen.twin, twin):
                seen.stale = name

    def tracked(self, result: Any, node: fx.Node, sources: Mapping[int, torch.Tensor]) -> Any:
        """The result as the module gets it, with its tensors known."""
        if isinstance(result, torch.Tensor):
            if id(result) in sources:
                tensor = sources[id(result)]
                if id(tensor) in self.seen:
                    self.seen[id(tensor)].node = node
                return tensor
            self.see(result, result, node)
            return result
        parts = []
        for at, part in enumerate(result if isinstance(result, tuple | list) else ()):
            if isinstance(part, torch.Tensor):
                child = self.note(self.graph.call_function(operator.getitem, (node, at)), part, node.meta["name"])
                parts.append(self.tracked(part, child, sources))
            elif tensors_of(part):
                raise CannotRecordError(f"{name_of(node.target)} returns tensors in lists of lists")
            else:
                parts.append(part)
        return type(result)(parts) if parts else result


def tensors_of(values: Any) -> list[torch.Tensor]:
    """The tensors in nested lists, tuples and dictionaries."""
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype


def _overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one storage have elements in common."""
    size = one.untyped_storage().nbytes() // one.element_size()
    taken = torch.zeros(size, dtype=torch.bool)
    taken.as_strided(one.shape, one.stride(), one.storage_offset()).fill_(True)
    return bool(taken.as_strided(other.shape, other.stride(), other.storage_offset()).any())
