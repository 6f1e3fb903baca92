"""Finding a module's operations: torch.fx first, torch.export for control flow that does not depend on data."""

from __future__ import annotations

import inspect
import io
import logging
import os
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from mpiconv.errors import ModelError
from mpiconv.nets.calls import MOVES, PASSED_ON, is_inplace, kind_of

NO_VIEWS = ("size", "sym_size", "dim", "numel", "clone")
DISJOINT = ("chunk", "split", "split_with_sizes", "tensor_split", "unbind")


@dataclass(frozen=True)
class Captured:
    """A module's operations, none of which a later one overwrites the input of; how its flat outputs are packed."""

    module: fx.GraphModule
    packed: Any = None

    @property
    def nodes(self) -> list[fx.Node]:
        """All operations in order."""
        return list(self.module.graph.nodes)


def capture(model: nn.Module, picture: Sequence[int], name: str) -> Captured:
    """The operations of a module in evaluation mode on pictures of shape (C, H, W).

    Raises ModelError, naming the line of the model's source, where its control flow depends on data.
    """
    try:
        captured = Captured(fx.symbolic_trace(model))
    except Exception as error:
        captured = _exported(model, picture, name, error)
    inputs = [node for node in captured.nodes if node.op == "placeholder"]
    if not inputs or any(not node.args for node in inputs[1:]):
        raise ModelError(f"model {name} takes {len(inputs)} inputs: one is wanted, the pictures")
    _read_what_was_written(captured.module, name)
    return captured


def _exported(model: nn.Module, picture: Sequence[int], name: str, first: Exception) -> Captured:
    """By torch.export, for any number of pictures."""
    device = next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))
    example = torch.zeros(2, *picture, device=device)
    try:
        with quiet():
            batch = ({0: torch.export.Dim.DYNAMIC},)
            program = torch.export.export(model, (example,), dynamic_shapes=batch, strict=False)
            unguarded = (
                {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
            )
            return Captured(program.module(**unguarded), program.call_spec.out_spec)
    except Exception as error:
        where = _line(error) or _line(first)
        cause = first if _line(first) else error
        reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        raise ModelError(
            f"model {name} cannot be traced{where}: {reason}; what it computes must not depend on the pictures' content"
        ) from None


def _line(error: Exception) -> str:
    """The innermost line of the traceback that is neither torch's nor this file's."""
    library, here = os.sep + "torch" + os.sep, __file__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if library not in f.filename and f.filename != here]
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


def _read_what_was_written(module: fx.GraphModule, name: str) -> None:
    """Make every operation behind one that works in place read its result, so that all can be run out of place.

    Raises ModelError where a part of a map is overwritten and the whole is read later.
    """
    nodes = list(module.graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    same: dict[fx.Node, list[fx.Node]] = {}
    parts: dict[fx.Node, list[fx.Node]] = {}
    cut_apart: set[fx.Node] = set()
    for node in nodes:
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        kind = kind_of(module, node) if node.op.startswith("call") else ""
        written = source is not None and is_inplace(module, node)
        passed = kind in (*PASSED_ON, "contiguous")
        if source is not None and (written or passed):
            same[node] = same.get(source, [source])
            same[node].append(node)
            same.setdefault(source, same[node])
            parts[node] = parts.setdefault(source, [])
        elif source is not None and kind in MOVES and kind not in NO_VIEWS:
            parts[node] = [] if source in cut_apart else parts.setdefault(source, [])
            parts[node].append(node)
            if kind in DISJOINT:
                cut_apart.add(node)
        if not written:
            continue
        later = {user for user, at in place.items() if at > place[node]}
        for old in same[node]:
            if old is not node:
                old.replace_all_uses_with(node, later.__contains__)
        others = [part for part in parts[node] if later.intersection(part.users)]
        if others or (source in parts[node] and _owner_is_read(source, later)):
            raise ModelError(f"model {name}: {node.name} writes in place over a part of a map that is read later")
    module.recompile()


def _owner_is_read(view: fx.Node | None, later: set[fx.Node]) -> bool:
    """Whether what a view is a part of is read later."""
    while view is not None and view.args and isinstance(view.args[0], fx.Node):
        view = view.args[0]
        if later.intersection(view.users):
            return True
    return False


def packed_output(captured: Captured, output: Any) -> Any:
    """The model's output as it returns it."""
    return output if captured.packed is None else pytree.tree_unflatten(list(output), captured.packed)
