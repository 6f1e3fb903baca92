"""Running a module's own code once, on tensors without values, and noting every operation that depends on the picture.

What does not depend on it - weights that forward prepares, grids, tables - is really computed and kept as a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from mpiconv.graph.calls import CannotSplitError, bound, called, kind_of_target, name_of
from mpiconv.graph.noted import CannotRecordError, Noted, tensors_of
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


class Recorder(TorchFunctionMode):
    """Notes the operations of one run of a module in evaluation mode.

    Attributes
    ----------
    noted
        The operations and the tensors.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.noted = Noted(model)
        self._twins: dict[int, torch.Tensor] = {}
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
            self.noted.see(
                picture, picture, self.noted.note(self.noted.graph.placeholder("picture"), picture, self.inside)
            )
            with self:
                return model(picture)

    @property
    def inside(self) -> str:
        """The name of the module of torch.nn that runs, or that an exception ended; empty if it is another."""
        return self._inside[-1] if self._inside else ""

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
        tensors = tensors_of((args, kwargs))
        traced = sum(id(t) in self.noted.seen for t in tensors)
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
            self.noted.check_constant(tensor, name)
        own = {self.noted.own[id(t)]: (t, _version(t)) for t in tensors if id(t) in self.noted.own}
        result = func(*args, **kwargs)
        changed = [key for key, (t, version) in own.items() if _version(t) != version]
        if changed:
            raise CannotRecordError(f"{name} changes {changed[0]} whenever the model is called")
        return result

    def _operation(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What depends on the picture: done without values, and noted where it makes tensors."""
        there, named = pytree.tree_map(lambda value: self._without_values(value, name), (args, kwargs))
        sources = {id(twin): t for t, twin in zip(tensors_of((args, kwargs)), tensors_of((there, named)), strict=True)}
        versions = {id(twin): twin._version for twin in tensors_of((there, named))}  # noqa: SLF001
        target, method = called(func)
        result, over = _done(func, target, self.inside or name, there, named)
        written = {id(t) for t in tensors_of((there, named)) if t is over or t._version != versions[id(t)]}  # noqa: SLF001
        if not tensors_of(result) and not written:
            return result  # numbers that shapes alone decide
        args, kwargs = pytree.tree_map(self.noted.argument, (args, kwargs))
        if torch.is_autocast_enabled("cpu"):
            target, method = _under_autocast(func, name), False
        make = self.noted.graph.call_method if method else self.noted.graph.call_function
        node = self.noted.note(make(target, args, kwargs), result, self.inside, writes=bool(written))
        made = self.noted.tracked(result, node, sources)
        for twin in tensors_of((there, named)):
            if id(twin) in written:
                self.noted.overwrite(sources[id(twin)], twin, node if twin is result else None, name)
        return made

    def _without_values(self, value: Any, name: str) -> Any:
        """The stand-in of a tensor, and the device ``meta`` in place of another one."""
        if not isinstance(value, torch.Tensor):
            elsewhere = isinstance(value, torch.device) or (name == "to" and isinstance(value, str))
            return torch.device("meta") if elsewhere else value
        if id(value) in self.noted.seen:
            self.noted.seen[id(value)].read()
            return self.noted.seen[id(value)].twin
        self.noted.check_constant(value, name)
        if id(value) not in self._twins:
            self._twins[id(value)] = _without(value)
            self.noted.alive.append(value)
        return self._twins[id(value)]


def set_item(tensor: torch.Tensor, at: Any, value: Any) -> torch.Tensor:
    """``tensor[at] = value`` as an operation that gives the tensor."""
    tensor[at] = value
    return tensor


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
