"""Finding a module's operations: by running it on tensors without values, or by torch.export where that fails."""

from __future__ import annotations

import copy
import inspect
import io
import logging
import os
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import fx, nn

from mpiconv.errors import ModelError
from mpiconv.graph.noted import CannotRecordError
from mpiconv.graph.outputs import tensors_in
from mpiconv.graph.recorder import Recorder


@dataclass(frozen=True)
class Captured:
    """A module's operations on pictures of one shape.

    Attributes
    ----------
    graph
        The operations that depend on the picture; the last is ``output``, whose arguments are the tensors returned.
    tensors
        The constants that they read, by key.
    returned
        What the module returned, with tensors without values in it.
    leaves
        Those of its tensors that are the arguments of ``output``, in their order.
    tracer
        ``run`` or ``export``.
    """

    graph: fx.Graph
    tensors: dict[str, torch.Tensor]
    returned: Any
    leaves: tuple[torch.Tensor, ...]
    tracer: str = "run"

    @property
    def nodes(self) -> list[fx.Node]:
        """All operations in order."""
        return list(self.graph.nodes)

    def packed(self, values: Sequence[torch.Tensor]) -> Any:
        """The module's output with these tensors in it."""
        if isinstance(self.returned, torch.Tensor):
            return values[0]
        memo: dict[int, Any] = {id(leaf): value for leaf, value in zip(self.leaves, values, strict=True)}
        return copy.deepcopy(self.returned, memo)


def captured_once(model: nn.Module, shape: Sequence[int], name: str, tracer: str = "run") -> Captured:
    """``capture``, or what it found the last time if the module's tensors are the same, unchanged, since."""
    tensors = [*model.parameters(), *model.buffers()]
    state = (
        (tuple(shape), tracer),
        tuple((id(m), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()),  # noqa: SLF001
        tuple((id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors),  # noqa: SLF001
    )
    known = _FOUND.get(model)
    if known is None or known[0] != state:
        known = _FOUND[model] = state, capture(model, shape, name, tracer), tensors
    return known[1]


_FOUND: WeakKeyDictionary[nn.Module, tuple[Any, Captured, list[torch.Tensor]]] = WeakKeyDictionary()
"""Of every module its state, what was captured, and its tensors, so that no other one gets the id of one of them."""


def capture(model: nn.Module, shape: Sequence[int], name: str, tracer: str = "run") -> Captured:
    """The operations of a module in evaluation mode on pictures of shape (N, C, H, W).

    Parameters
    ----------
    model
        The module; a DataParallel, DistributedDataParallel or compiled one is unwrapped.
    tracer
        ``run``: by running it; where that fails, or by ``export``, what torch.export makes of it is run.

    Raises
    ------
    ModelError
        What it computes depends on the content of the pictures, or cannot be found out; the line of the model's source
        is named.
    """
    model = unwrapped(model, name)
    _check_inputs(model, name)
    first: Exception | None = None
    if tracer == "run":
        try:
            return _recorded(model, model, shape, "run")
        except ModelError:
            raise
        except Exception as error:
            first = error
    try:
        return _recorded(_exported(model, shape), model, shape, "export")
    except Exception as error:
        raise _refusal(name, first if first is not None else error) from None


def unwrapped(model: nn.Module, name: str) -> nn.Module:
    """The module itself, out of a DataParallel, DistributedDataParallel or torch.compile.

    Raises ModelError for a ScriptModule, whose operations torch does not tell, and for one inside.
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            break
        model = inner
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            where = f"its {path} is" if path else "it is"
            raise ModelError(
                f"model {name} cannot be split: {where} a ScriptModule (torch.jit); pass the module that it was made of"
            )
    return model


def _check_inputs(model: nn.Module, name: str) -> None:
    """Raise ModelError unless the module can be called with one argument, the pictures."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    if len(needed) > 1 or not places or any(p.kind is p.KEYWORD_ONLY for p in needed):
        raise ModelError(f"model {name} takes {len(needed)} inputs: one is wanted, the pictures")


def _recorded(module: nn.Module, model: nn.Module, shape: Sequence[int], tracer: str) -> Captured:
    """What running a module notes; constants have the keys that ``model`` has for them."""
    recorder = Recorder(model)
    stance = getattr(torch.compiler, "set_stance", None)
    with stance("force_eager") if stance is not None and _compiles(module) else nullcontext():
        returned = recorder.run(module, shape)
    leaves = tuple(leaf for leaf in tensors_in(returned) if recorder.noted.depends(leaf))
    if isinstance(returned, torch.Tensor) and not leaves:
        leaves = (returned,)
    recorder.noted.graph.output(tuple(recorder.noted.node_of(leaf) for leaf in leaves))
    return Captured(recorder.noted.graph, recorder.noted.tensors, returned, leaves, tracer)


def _compiles(module: nn.Module) -> bool:
    return any(hasattr(each, "_orig_mod") for each in module.modules())


def _exported(model: nn.Module, shape: Sequence[int]) -> nn.Module:
    """What torch.export makes of a module: the same operations, none of them in place."""
    device = next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))
    with quiet(), torch.no_grad():
        program = torch.export.export(model, (torch.zeros(tuple(shape), device=device),), strict=False)
        unguarded = {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
        module: nn.Module = program.run_decompositions({}).module(**unguarded)
        return module


def _refusal(name: str, error: Exception) -> ModelError:
    where = line_of(error)
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, CannotRecordError):
        return ModelError(
            f"model {name} cannot be traced{where}: {reason}; what it computes must not depend on the pictures' content"
        )
    return ModelError(f"model {name} cannot be run{where}: {type(error).__name__}: {reason}")


def line_of(error: BaseException) -> str:
    """`` at FILE:LINE``: the innermost line of a traceback that is neither torch's nor this package's; else empty."""
    own = os.path.dirname(os.path.dirname(__file__)) + os.sep
    inside = (os.sep + "torch" + os.sep, own, "<")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not any(part in f.filename for part in inside)]
    return f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch.export and fake tensors tell on stderr: an error of this program is one line."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
