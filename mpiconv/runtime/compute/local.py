"""What one rank computes: the layers of a unit on its box."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from mpiconv.graph.form import Layer, Unit
from mpiconv.partition import Box
from mpiconv.partition.receptive import layer_boxes, needed
from mpiconv.runtime.compute import onednn, operations
from mpiconv.runtime.compute.operations import Operation, Weights
from mpiconv.runtime.compute.windows import convolution, eager_conv, pooling

Make = Callable[..., Operation]
Form = Callable[[Layer | None], tuple[Make, bool]]
"""What makes convolutions with a certain activation after them, and whether they include that."""


class LocalUnit:
    """A unit on a box: called with a tensor per input, each (N, *needed box), it returns (N, *box).

    This one computes eagerly, by torch's operations one by one; subclasses are faster. One that is decorated with
    ``engine`` can be chosen by its ``name``; ``channels_last`` is the order of memory that it wants maps in,
    ``keeps_nan`` whether NaN comes out where NaN goes in, ``compiled`` whether torch's fuser compiles it.

    Parameters
    ----------
    unit, box
        What to compute; the box is not empty.
    weights
        The tensors of every layer by role, sliced to the channels that the layer computes, one mapping per layer.
    batch
        N, the number of pictures that travel together.
    padded
        Whether the first layer's input comes with its ``margin`` around it.
    sliced
        Whether the unit is split by channels. Of a large map oneDNN computes a pointwise convolution and the depthwise
        one after it in one go, adding in another order, but slices one after the other: then all are computed so.
    packed
        Reordered weights that several pieces of a box share; the unit is not compiled then.
    """

    name: ClassVar[str] = "eager"
    channels_last: ClassVar[bool] = False
    keeps_nan: ClassVar[bool] = True
    compiled: ClassVar[bool] = False

    def __init__(
        self,
        unit: Unit,
        box: Box,
        weights: Sequence[Weights],
        batch: int = 1,
        *,
        padded: bool = False,
        sliced: bool = False,
        packed: onednn.Packed | None = None,
    ) -> None:
        layers = list(operations.folded(unit.layers, layer_boxes(unit, box), weights))
        form, compiled = self._form(batch, packed), self.compiled
        self.operations: list[Operation] = []
        self.together = wide = 0
        while layers:
            first = not self.operations
            bare = padded and first
            layer, out, mine = layers[0]
            if form and layer.kind == "conv":
                if compiled and sliced and self.operations and layer.groups > 1:
                    self.operations.append(_first(len(needed(layer, out)[0].channels)))
                wide = 0 if compiled and onednn.slow_at_edges() else _to_last_pooling(layers)
                operation, used = _with_activation(layers, partial(_widened, form) if wide else form, bare=bare)
            else:
                operation, used = build(layer, out, mine, first=first or compiled, bare=bare), 1
            self.operations.append(operation)
            if 0 < wide <= used:
                self.operations.append(_first(len(out.channels)))
            wide = max(wide - used, 0)
            layers = layers[used:]
            if layer.kind == "conv" or not onednn.slow_at_edges():
                self.together = len(self.operations)
        self._run: Operation = chain(self.operations)

    @classmethod
    def suits(cls, unit: Unit, packed: onednn.Packed | None) -> bool:  # noqa: ARG003
        """Whether it can compute the unit here; with ``packed`` several pieces share one copy of the kernels."""
        return True

    def _form(self, batch: int, packed: onednn.Packed | None) -> Form | None:  # noqa: ARG002
        """What makes the convolutions; None for torch's own."""
        return None

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Run the layers."""
        return self._run(*inputs)


def _first(count: int) -> Operation:
    """Keep the first channels; that also stops the fuser from joining the operations before it with those after."""
    return lambda x: x[:, :count]


def _to_last_pooling(layers: Sequence[tuple[Layer, Box, Weights]]) -> int:
    """How many layers from a convolution on also run on the kernels of zeros that fill up its slice; 0 if it has none.

    Those are the layers up to the last pooling. Torch pools a few channels in steps of one: of 40 digits the first
    unit with 8 of its 16 kernels took 8.9 ms, with all of them 0.5 ms.
    """
    layer, out, mine = layers[0]
    count = len(out.channels)
    if layer.groups > 1 or sum(onednn.widths(count, mine["weight"][0].numel())) == count:
        return 0
    kinds = [layer.kind for layer, _, _ in layers[1:]]
    alone = list(takewhile(lambda kind: kind in ("activation", "maxpool", "avgpool"), kinds))
    return max((i for i, kind in enumerate(alone, 2) if kind != "activation"), default=0)


def _widened(form: Form, after: Layer | None) -> tuple[Make, bool]:
    """The form with kernels of zeros appended to fill up a slice; their maps stay in the output."""
    make, both = form(after)

    def wide(weight: torch.Tensor, bias: torch.Tensor | None, *rest: Any, key: tuple[object, ...]) -> Operation:
        more = sum(onednn.widths(len(weight), weight[0].numel())) - len(weight)
        shift = None if bias is None else F.pad(bias, (0, more))
        return make(F.pad(weight, (0, 0) * 3 + (0, more)), shift, *rest, key=key)

    return wide, both


def chain(operations: Sequence[Operation]) -> Operation:
    """One function that calls these operations one after the other."""
    first, *rest = operations
    if not rest:
        return first

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        tensor = first(*inputs)
        for operation in rest:
            tensor = operation(tensor)
        return tensor

    return run


def weights_of(unit: Unit, box: Box, weights: Sequence[Weights], piece: Box) -> list[dict[str, torch.Tensor]]:
    """The weights for a piece of a box, as views of those for the box."""
    found = []
    for whole, part, mine in zip(layer_boxes(unit, box), layer_boxes(unit, piece), weights, strict=True):
        rows = slice(part.channels.lo - whole.channels.lo, part.channels.hi - whole.channels.lo)
        found.append({role: tensor[rows] for role, tensor in mine.items()})
    return found


def build(layer: Layer, box: Box, weights: Weights, *, first: bool, bare: bool = False) -> Operation:
    """The function that computes ``box`` of a layer's output from the boxes of its inputs that it needs.

    ``first`` says that the inputs are not this unit's own, so that nothing may be written over them; ``bare`` that
    the ``margin`` is around them already.
    """
    inputs = needed(layer, box)
    if layer.kind == "conv":
        return convolution(layer, box, inputs[0], weights["weight"], weights.get("bias"), eager_conv, bare=bare)
    if layer.kind == "norm":
        mean, var = weights["running_mean"], weights["running_var"]
        scale, shift, eps = weights.get("weight"), weights.get("bias"), layer.options["eps"]
        return lambda x: F.batch_norm(x, mean, var, scale, shift, False, 0.0, eps)
    if layer.kind == "activation":
        module = activation_of(layer)
        if not first and "inplace" in getattr(module, "__constants__", ()):
            module.inplace = True  # type: ignore[assignment]
        return module
    if layer.kind in ("maxpool", "avgpool"):
        return pooling(layer, box, inputs[0], bare=bare)
    if layer.kind == "add":
        return _sum
    if layer.kind == "concat":
        kept = [i for i, part in enumerate(inputs) if part]
        return lambda *maps: torch.cat([maps[i] for i in kept], 1)
    return operations.build(layer, box, inputs, weights)


def _with_activation(layers: Sequence[tuple[Layer, Box, Weights]], form: Form, *, bare: bool) -> tuple[Operation, int]:
    """A convolution with the activation right after it, if it fits, as one operation; how many layers that were."""
    layer, box, weights = layers[0]
    after = layers[1][0] if len(layers) > 1 and layers[1][0].kind == "activation" else None
    make, both = form(after)
    held = needed(layer, box)[0]
    return convolution(layer, box, held, weights["weight"], weights.get("bias"), make, bare=bare), 1 + both


def activation_of(layer: Layer) -> nn.Module:
    """Torch's module for an activation."""
    module: nn.Module = getattr(nn, layer.options["module"])(**layer.options["arguments"])
    return module.eval()


def _sum(*maps: torch.Tensor) -> torch.Tensor:
    total = maps[0] + maps[1]
    for more in maps[2:]:
        total += more
    return total
