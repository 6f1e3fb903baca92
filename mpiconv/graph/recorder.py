"""Running a module's own code once, on tensors without values, and noting every operation that depends on the picture.

What does not depend on it - weights that forward prepares, grids, tables - is really computed and kept as a constant.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from mpiconv.graph.calls import CannotSplitError, bound, called, kind_of_target, name_of
from mpiconv.graph.shapes import shape_after

ASKS_FOR_VALUES = frozenset(
    (
        *("__bool__", "__int__", "__float__", "__complex__", "__index__", "__contains__", "__array__", "__dlpack__"),
        *("item", "tolist", "numpy", "is_nonzero", "equal", "allclose", "data_ptr", "untyped_storage", "storage"),
    )
)
"""What reads values out of tensors into Python, where they decide what is computed."""

OF_THE_PROCESSOR = frozenset(("device", "is_meta", "is_cpu", "is_cuda", "is_mkldnn", "get_device", "type"))
"""Properties in which tensors without values differ from those that the module will get."""

FILLED = frozenset(
    (
        *("zeros_like", "ones_like", "full_like", "empty_like"),
        *("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"),
    )
)
"""Constants in the shape, or of the type, of another tensor."""

DRAWN = frozenset(("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"))
"""What gives something else at every call."""

PREFIX = "constant:"
"""How the keys of tensors begin that are not the module's own."""


class CannotRecordError(Exception):
    """The module does something that cannot be noted as operations on tensors; the message says what."""


@dataclass
class _Seen:
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


class Recorder(TorchFunctionMode):
    """Notes the operations of one run of a module in evaluation mode.

    Attributes
    ----------
    graph
        The operations. In ``meta`` each has its ``value`` (tensors without values, as the operation returned them), the
        ``name`` of the module of torch.nn that it is of, if any, and whether it ``writes`` over an argument.
    tensors
        Every constant tensor that the operations read, by key: as in the module's state_dict, the name of a buffer that
        is not saved there, or ``constant:0``, ``constant:1`` ... in the order of their first use.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.tensors: dict[str, torch.Tensor] = {}
        self._own = {id(t): key for key, t in [*model.named_buffers(), *model.named_parameters()]}
        self._skeleton = any(t.device.type == "meta" for t in model.parameters())
        self._keys: dict[int, str] = dict(self._own)
        self._nodes: dict[str, fx.Node] = {}
        self._twins: dict[int, torch.Tensor] = {}
        self._alive: list[torch.Tensor] = []  # so that no other tensor gets an id that is known
        self._seen: dict[int, _Seen] = {}
        self._overwritten: set[int] = set()  # storages of constants that what depends on the picture was written to
        self._names = {id(module): name for name, module in model.named_modules()}
        self._inside: list[str] = []

    def run(self, model: nn.Module, shape: Sequence[int]) -> Any:
        """Call the module with a picture (N, C, H, W); what it returns, its tensors without values.

        Raises
        ------
        CannotRecordError
            See there; whatever the module raises comes through.
        """
        with torch.inference_mode(False), torch.no_grad(), self._named_modules():
            picture = torch.empty(tuple(shape), device="meta")
            self._see(picture, picture, self._noted(self.graph.placeholder("picture"), picture, writes=False))
            with self:
                return model(picture)

    @property
    def inside(self) -> str:
        """The name of the module of torch.nn that runs, or that an exception ended; empty if it is another."""
        return self._inside[-1] if self._inside else ""

    def node_of(self, tensor: torch.Tensor) -> fx.Node:
        """The node of a tensor that the module returned."""
        seen = self._seen.get(id(tensor))
        return self._constant(tensor) if seen is None else seen.read()

    def depends(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor depends on the picture."""
        return id(tensor) in self._seen

    @contextmanager
    def _named_modules(self) -> Iterator[None]:
        """Know at every operation in which module it runs."""

        def enter(module: nn.Module, _args: Any) -> None:
            own = type(module).__module__.startswith("torch.nn.")
            self._inside.append(self._names.get(id(module), "") if own else "")

        def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
            self._inside.pop()

        hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Called by torch in place of every function and method of tensors."""
        kwargs = dict(kwargs or {})
        name = name_of(func)
        tensors = _tensors((args, kwargs))
        traced = sum(id(t) in self._seen for t in tensors)
        if not traced and name not in DRAWN:
            return self._computed(func, name, tensors, args, kwargs)
        if name in ASKS_FOR_VALUES:
            raise CannotRecordError(f"{name.strip('_')} asks for the values of a tensor that depends on the picture")
        if (name in OF_THE_PROCESSOR and len(args) == 1) or (name in FILLED and traced == 1):
            args, kwargs = pytree.tree_map_only(torch.Tensor, _zeros, (args, kwargs))
            return func(*args, **kwargs)
        if name == "__iter__":
            return iter(self.__torch_function__(torch.unbind, types, args))
        if name == "cpu":
            return args[0]
        return self._operation(set_item if name == "setitem" else func, name, args, kwargs)

    def _computed(
        self, func: Callable[..., Any], name: str, tensors: Sequence[torch.Tensor], args: Any, kwargs: Any
    ) -> Any:
        """What does not depend on the picture, computed."""
        for tensor in tensors:
            self._check_constant(tensor, name)
        own = {self._own[id(t)]: (t, _version(t)) for t in tensors if id(t) in self._own}
        result = func(*args, **kwargs)
        changed = [key for key, (t, version) in own.items() if _version(t) != version]
        if changed:
            raise CannotRecordError(f"{name} changes {changed[0]} whenever the model is called")
        return result

    def _check_constant(self, tensor: torch.Tensor, name: str) -> None:
        if tensor.device.type == "meta" and not self._skeleton:
            raise CannotRecordError(
                f"{name} reads a tensor that something else than torch's functions made of the picture"
            )
        if self._overwritten and tensor.untyped_storage()._cdata in self._overwritten:  # noqa: SLF001
            raise CannotRecordError(f"{name} reads a part of a tensor that was written over elsewhere")

    def _operation(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What depends on the picture: done without values, and noted where it makes tensors."""
        there, named = pytree.tree_map(lambda value: self._without_values(value, name), (args, kwargs))
        sources = {id(twin): t for t, twin in zip(_tensors((args, kwargs)), _tensors((there, named)), strict=True)}
        versions = {id(twin): twin._version for twin in _tensors((there, named))}  # noqa: SLF001
        target, method = called(func)
        result, over = _done(func, target, self.inside or name, there, named)
        written = {id(t) for t in _tensors((there, named)) if t is over or t._version != versions[id(t)]}  # noqa: SLF001
        if not _tensors(result) and not written:
            return result  # numbers that shapes alone decide
        args, kwargs = pytree.tree_map(self._argument, (args, kwargs))
        if torch.is_autocast_enabled("cpu"):
            target, method = _under_autocast(func, name), False
        make = self.graph.call_method if method else self.graph.call_function
        node = self._noted(make(target, args, kwargs), result, writes=bool(written))
        made = self._tracked(result, node, sources)
        for twin in _tensors((there, named)):
            if id(twin) in written:
                self._overwrite(sources[id(twin)], twin, node if twin is result else None, name)
        return made

    def _noted(self, node: fx.Node, value: Any, *, writes: bool) -> fx.Node:
        node.meta |= {"value": value, "name": self.inside, "writes": writes}
        return node

    def _see(self, tensor: torch.Tensor, twin: torch.Tensor, node: fx.Node) -> None:
        self._seen[id(tensor)] = _Seen(tensor, twin, node)

    def _without_values(self, value: Any, name: str) -> Any:
        """The stand-in of a tensor, and the device ``meta`` in place of another one."""
        if not isinstance(value, torch.Tensor):
            elsewhere = isinstance(value, torch.device) or (name == "to" and isinstance(value, str))
            return torch.device("meta") if elsewhere else value
        if id(value) in self._seen:
            self._seen[id(value)].read()
            return self._seen[id(value)].twin
        self._check_constant(value, name)
        if id(value) not in self._twins:
            self._twins[id(value)] = _without(value)
            self._alive.append(value)
        return self._twins[id(value)]

    def _argument(self, value: Any) -> Any:
        """A tensor's node; anything else as it is."""
        if isinstance(value, torch.Tensor):
            return self.node_of(value)
        return tuple(value) if isinstance(value, torch.Size) else value

    def _constant(self, tensor: torch.Tensor) -> fx.Node:
        """The node of a tensor that does not depend on the picture."""
        key = self._keys.setdefault(id(tensor), f"{PREFIX}{len(self._keys) - len(self._own)}")
        if key not in self._nodes:
            self._alive.append(tensor)
            self.tensors[key] = tensor.detach()
            self._nodes[key] = self._noted(self.graph.get_attr(key), tensor, writes=False)
        return self._nodes[key]

    def _overwrite(self, tensor: torch.Tensor, twin: torch.Tensor, node: fx.Node | None, name: str) -> None:
        """Who reads a tensor that was written over reads what the node made of it; None where the node made another."""
        if id(tensor) not in self._seen:
            self._overwritten.add(tensor.untyped_storage()._cdata)  # noqa: SLF001
            self._see(tensor, twin, node if node is not None else self._constant(tensor))
        storage, place = twin.untyped_storage()._cdata, _place(twin)  # noqa: SLF001
        for seen in self._seen.values():
            if seen.twin.untyped_storage()._cdata != storage:  # noqa: SLF001
                continue
            if node is not None and _place(seen.twin) == place:
                seen.node = node
            elif _overlap(seen.twin, twin):
                seen.stale = name

    def _tracked(self, result: Any, node: fx.Node, sources: Mapping[int, torch.Tensor]) -> Any:
        """The result as the module gets it, with its tensors known."""
        if isinstance(result, torch.Tensor):
            if id(result) in sources:
                tensor = sources[id(result)]
                if id(tensor) in self._seen:
                    self._seen[id(tensor)].node = node
                return tensor
            self._see(result, result, node)
            return result
        parts = []
        for at, part in enumerate(result if isinstance(result, tuple | list) else ()):
            if isinstance(part, torch.Tensor):
                child = self._noted(self.graph.call_function(operator.getitem, (node, at)), part, writes=False)
                parts.append(self._tracked(part, child, sources))
            elif _tensors(part):
                raise CannotRecordError(f"{name_of(node.target)} returns tensors in lists of lists")
            else:
                parts.append(part)
        return type(result)(parts) if parts else result


def set_item(tensor: torch.Tensor, at: Any, value: Any) -> torch.Tensor:
    """``tensor[at] = value`` as an operation that gives the tensor."""
    tensor[at] = value
    return tensor


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _version(tensor: torch.Tensor) -> int:
    """How often a tensor was written over, as far as torch counts it."""
    return 0 if tensor.is_inference() else tensor._version  # noqa: SLF001


def _zeros(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype)


def _without(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor like it, without values."""
    if tensor.device.type == "meta":
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _done(
    func: Callable[..., Any], target: Any, name: str, args: Any, kwargs: dict[str, Any]
) -> tuple[Any, torch.Tensor | None]:
    """What an operation makes of tensors without values; the one it writes over, where torch was not asked."""
    autocast = torch.is_autocast_enabled("cpu")
    if not autocast:
        try:
            given = bound(target, args, kwargs)
            shape = shape_after(kind_of_target(target), name, given)
        except CannotSplitError:
            shape = None
        if shape is not None:
            raw = str(getattr(func, "__name__", ""))
            if given.get("inplace") is True or (raw.endswith("_") and not raw.endswith("__")):
                return given["input"], given["input"]
            return torch.empty(shape, device="meta"), None
    elsewhere = {**kwargs, "device": "meta"} if kwargs.get("device") is not None else kwargs
    with torch.inference_mode(False), torch.no_grad():
        result = func(*args, **elsewhere)
    if autocast:  # the types that it makes are those on the processor
        args, kwargs = pytree.tree_map_only(torch.Tensor, _zeros, (args, kwargs))
        result = func(*args, **kwargs)
    return pytree.tree_map_only(torch.Tensor, _without, result), None


def _under_autocast(func: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function as it runs within the ``torch.autocast`` that is entered now."""
    dtype = torch.get_autocast_dtype("cpu")

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", dtype=dtype):
            return func(*args, **kwargs)

    run.__name__ = f"autocast_{name}"
    return run


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype


def _overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one storage have elements in common."""
    size = one.untyped_storage().nbytes() // one.element_size()
    taken = torch.zeros(size, dtype=torch.bool)
    taken.as_strided(one.shape, one.stride(), one.storage_offset()).fill_(True)
    return bool(taken.as_strided(other.shape, other.stride(), other.storage_offset()).any())
