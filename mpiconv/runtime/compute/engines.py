"""The local engines by name: what computes a unit on a box. ``auto`` is the last registered that suits the unit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch

from mpiconv.graph.form import Layer, Unit
from mpiconv.partition import Box
from mpiconv.partition.plan import FLOAT_BYTES
from mpiconv.runtime.compute import fuser, onednn
from mpiconv.runtime.compute.local import Form, LocalUnit, Make, activation_of, chain
from mpiconv.runtime.compute.operations import Operation, Weights

ENGINES: dict[str, type[LocalUnit]] = {}
E = TypeVar("E", bound=type[LocalUnit])

FUSED = {"conv", "norm", "activation", "maxpool", "avgpool", "add"}
"""The kinds of layers that torch's fuser knows."""


def engine(made: E) -> E:
    """Register a local engine.

    Examples
    --------
    >>> @engine
    ... class Mine(LocalUnit):
    ...     name = "mine"
    ...     def __call__(self, *inputs): ...
    """
    ENGINES[made.name] = made
    return made


def computes() -> tuple[str, ...]:
    """The names that ``--compute`` takes: ``auto`` and all registered engines."""
    return ("auto", *ENGINES)


def channels_last(compute: str) -> bool:
    """Whether an engine wants maps in the memory format channels_last."""
    return compute == "auto" or ENGINES[compute].channels_last


def keeps_nan(compute: str) -> bool:
    """Whether NaN in a picture or in weights comes out of an engine."""
    return compute != "auto" and ENGINES[compute].keeps_nan


def local_unit(
    unit: Unit,
    box: Box,
    weights: Sequence[Weights],
    batch: int = 1,
    compute: str = "eager",
    *,
    padded: bool = False,
    sliced: bool = False,
    packed: onednn.Packed | None = None,
) -> LocalUnit:
    """A unit on a box, computed by the engine ``compute``, or eagerly if that does not suit it; see ``LocalUnit``."""
    wanted: Iterable[type[LocalUnit]] = (
        [ENGINES[compute], LocalUnit] if compute in ENGINES else reversed(ENGINES.values())
    )
    chosen = next(made for made in wanted if made.suits(unit, packed))
    return chosen(unit, box, weights, batch, padded=padded, sliced=sliced, packed=packed)


engine(LocalUnit)


@engine
class Reordered(LocalUnit):
    """A convolution and the activation after it are one call of oneDNN with weights that were reordered once."""

    name = "onednn"
    channels_last = True
    keeps_nan = False

    @classmethod
    def suits(cls, unit: Unit, packed: onednn.Packed | None) -> bool:  # noqa: ARG003
        """If this torch has oneDNN's prepacked convolutions."""
        return onednn.available()

    def _form(self, batch: int, packed: onednn.Packed | None) -> Form:
        return partial(_reordered, batch, {} if packed is None else packed)


@engine
class Fused(LocalUnit):
    """A unit of convolutions, norms, activations, poolings and additions, compiled when it is called first."""

    name = "fused"
    channels_last = True
    keeps_nan = False
    compiled = True

    @classmethod
    def suits(cls, unit: Unit, packed: onednn.Packed | None) -> bool:
        """If this torch has the fuser, and ``_compiles`` says that it gains something."""
        return packed is None and _compiles(unit) and fuser.available()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._run = self._compiled

    def _form(self, batch: int, packed: onednn.Packed | None) -> Form:  # noqa: ARG002
        return _to_be_fused

    def _compiled(self, *inputs: torch.Tensor) -> torch.Tensor:
        fused = fuser.fused(chain(self.operations[: self.together]), inputs)
        rest = self.operations[self.together :]
        self._run = chain([fused, *rest])
        return self._run(*inputs)


def _compiles(unit: Unit) -> bool:
    """Whether compiling a unit gains something: the fuser knows all its layers, and it is more than one addition.

    That is the same for all slices of a unit, so that they have the bits of the whole.
    """
    kinds = {layer.kind for layer in unit.layers}
    if onednn.slow_at_edges() and "conv" not in kinds:
        return False
    approximate = any(layer.options.get("arguments", {}).get("approximate") == "tanh" for layer in unit.layers)
    if not kinds <= FUSED or kinds == {"add"} or approximate:  # it takes any GELU for the exact one
        return False
    return FLOAT_BYTES * sum(param.size for param in unit.params) <= fuser.MOST_BYTES


def _reordered(batch: int, packed: onednn.Packed, after: Layer | None) -> tuple[Make, bool]:
    activation = onednn.activation_of(after.options["module"], after.options["arguments"]) if after else None

    def make(weight: Any, bias: Any, shape: Any, *geometry: Any, key: tuple[object, ...]) -> Operation:
        stride, padding, dilation, groups = geometry
        return onednn.convolution(
            weight, bias, (batch, *shape), stride, padding, dilation, groups, activation or onednn.NONE, packed, key
        )

    return make, activation is not None


def _to_be_fused(after: Layer | None) -> tuple[Make, bool]:
    activation = activation_of(after) if after else None

    def make(weight: Any, bias: Any, _shape: Any, *geometry: Any, key: tuple[object, ...]) -> Operation:  # noqa: ARG001
        stride, padding, dilation, groups = geometry
        return fuser.convolution(weight, bias, stride, padding, dilation, groups, activation)

    return make, after is not None
