"""What one rank computes: the layers of a unit on its box."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from statistics import median
from time import perf_counter, sleep, thread_time
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from mpiconv.graph.form import Layer, Unit
from mpiconv.partition import Box
from mpiconv.partition.plan import FLOAT_BYTES
from mpiconv.partition.receptive import layer_boxes, needed
from mpiconv.runtime.compute import fuser, onednn, operations
from mpiconv.runtime.compute.operations import Operation, Weights
from mpiconv.runtime.compute.windows import convolution, eager_conv, pooling

Make = Callable[..., Operation]
Form = Callable[[Layer | None], tuple[Make, bool]]
"""What makes convolutions with a certain activation after them, and whether they include that."""

FUSED = {"conv", "norm", "activation", "maxpool", "avgpool", "add"}
"""The kinds of layers that torch's fuser knows."""


class LocalUnit:
    """A unit on a box: called with a tensor per input, each (N, *needed box), it returns (N, *box).

    Parameters
    ----------
    unit, box
        What to compute; the box is not empty.
    weights
        The tensors of every layer by role, sliced to the channels that the layer computes, one mapping per layer.
    batch
        N, the number of pictures that travel together.
    compute
        ``eager``: torch's operations one by one. ``auto``: a unit of convolutions, norms, activations, poolings and
        additions is compiled by torch's fuser for oneDNN, when it is called first; where this torch lacks that, a
        convolution and the activation after it are one call of oneDNN with reordered weights, where it has that.
    padded
        Whether the first layer's input comes with its ``margin`` around it.
    sliced
        Whether the unit is split by channels. Of a large map oneDNN computes a pointwise convolution and the depthwise
        one after it in one go, adding in another order, but slices one after the other: then all are computed so.
    packed
        Reordered weights that several pieces of a box share; the unit is not compiled then.
    """

    def __init__(
        self,
        unit: Unit,
        box: Box,
        weights: Sequence[Weights],
        batch: int = 1,
        compute: str = "eager",
        *,
        padded: bool = False,
        sliced: bool = False,
        packed: onednn.Packed | None = None,
    ) -> None:
        layers = list(operations.folded(unit.layers, layer_boxes(unit, box), weights))
        compiled = compute == "auto" and packed is None and _compiles(unit) and fuser.available()
        form: Form | None = None
        if compiled:
            form = _to_be_fused
        elif compute == "auto" and onednn.available():
            form = partial(_reordered, batch, {} if packed is None else packed)
        self.operations: list[Operation] = []
        self._together = wide = 0
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
                self._together = len(self.operations)
        self._run: Operation = self._compiled if compiled else _chain(self.operations)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Run the layers."""
        return self._run(*inputs)

    def _compiled(self, *inputs: torch.Tensor) -> torch.Tensor:
        fused = fuser.fused(_chain(self.operations[: self._together]), inputs)
        rest = self.operations[self._together :]
        self._run = _chain([fused, *rest])
        return self._run(*inputs)


def _first(count: int) -> Operation:
    """Keep the first channels; that also stops the fuser from joining the operations before it with those after."""
    return lambda x: x[:, :count]


def _to_last_pooling(layers: Sequence[tuple[Layer, Box, Weights]]) -> int:
    """How many layers behind a convolution run on the zeros that make up its slice of kernels; 0: it has none.

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
    """The form with kernels of zeros that make up a slice, whose maps stay in the output."""
    make, both = form(after)

    def wide(weight: torch.Tensor, bias: torch.Tensor | None, *rest: Any, key: tuple[object, ...]) -> Operation:
        more = sum(onednn.widths(len(weight), weight[0].numel())) - len(weight)
        shift = None if bias is None else F.pad(bias, (0, more))
        return make(F.pad(weight, (0, 0) * 3 + (0, more)), shift, *rest, key=key)

    return wide, both


def _chain(operations: Sequence[Operation]) -> Operation:
    """The function that runs one after the other."""
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


class Paced:
    """A computation on a slower device: it takes ``pace`` times as long, the rest of it asleep.

    How long it takes on this core undisturbed is the median CPU time of second runs on the same input during the first
    calls: later ones find the caches cold from sleeping, which a slower device would not. ``overrun`` counts the calls
    after those that took longer than ``pace`` times that anyway, because others wanted the core too.
    """

    TRIED = 3

    def __init__(self, compute: Callable[..., Any], pace: float) -> None:
        self.compute, self.pace = compute, pace
        self.tried: list[float] = []
        self.calls = self.overrun = 0

    def __call__(self, *inputs: Any) -> Any:
        """Compute, then sleep."""
        begin = perf_counter()
        output = self.compute(*inputs)
        if len(self.tried) < self.TRIED:
            busy = thread_time()
            output = self.compute(*inputs)
            self.tried.append(thread_time() - busy)
        else:
            self.calls += 1
        rest = begin + self.pace * median(self.tried) - perf_counter()
        if rest > 0:
            sleep(rest)
        elif len(self.tried) == self.TRIED and self.calls:
            self.overrun += 1
        return output


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
        module = _activation(layer)
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


def _compiles(unit: Unit) -> bool:
    """Whether the fuser gains something for a unit: it knows all kinds of layers in it, and it is more than a sum.

    That is the same for all slices of a unit, so that they have the bits of the whole.
    """
    kinds = {layer.kind for layer in unit.layers}
    if onednn.slow_at_edges() and "conv" not in kinds:
        return False
    approximate = any(layer.options.get("arguments", {}).get("approximate") == "tanh" for layer in unit.layers)
    if not kinds <= FUSED or kinds == {"add"} or approximate:  # it takes any GELU for the exact one
        return False
    return FLOAT_BYTES * sum(param.size for param in unit.params) <= fuser.MOST_BYTES


def _with_activation(layers: Sequence[tuple[Layer, Box, Weights]], form: Form, *, bare: bool) -> tuple[Operation, int]:
    """A convolution with the activation right after it, if it fits, as one operation; how many layers that were."""
    layer, box, weights = layers[0]
    after = layers[1][0] if len(layers) > 1 and layers[1][0].kind == "activation" else None
    make, both = form(after)
    held = needed(layer, box)[0]
    return convolution(layer, box, held, weights["weight"], weights.get("bias"), make, bare=bare), 1 + both


def _reordered(batch: int, packed: onednn.Packed, after: Layer | None) -> tuple[Make, bool]:
    activation = onednn.activation_of(after.options["module"], after.options["arguments"]) if after else None

    def make(weight: Any, bias: Any, shape: Any, *geometry: Any, key: tuple[object, ...]) -> Operation:
        stride, padding, dilation, groups = geometry
        return onednn.convolution(
            weight, bias, (batch, *shape), stride, padding, dilation, groups, activation or onednn.NONE, packed, key
        )

    return make, activation is not None


def _to_be_fused(after: Layer | None) -> tuple[Make, bool]:
    activation = _activation(after) if after else None

    def make(weight: Any, bias: Any, _shape: Any, *geometry: Any, key: tuple[object, ...]) -> Operation:  # noqa: ARG001
        stride, padding, dilation, groups = geometry
        return fuser.convolution(weight, bias, stride, padding, dilation, groups, activation)

    return make, after is not None


def _activation(layer: Layer) -> nn.Module:
    module: nn.Module = getattr(nn, layer.options["module"])(**layer.options["arguments"])
    return module.eval()


def _sum(*maps: torch.Tensor) -> torch.Tensor:
    total = maps[0] + maps[1]
    for more in maps[2:]:
        total += more
    return total
