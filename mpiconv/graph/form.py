"""A network as pure data: layers, the units they form, and the edges between units. No torch in here."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any

from mpiconv.errors import PlanError

Shape = tuple[int, int, int]
Pair = tuple[int, int]

PICTURE = -1
"""The index that stands for the picture among a unit's inputs."""

KINDS = (
    *("conv", "convtranspose", "norm", "activation", "elementwise", "prelu", "scale", "maxpool", "avgpool", "adaptive"),
    *("reduce", "add", "binary", "concat", "pad", "resample", "pixelshuffle", "pixelunshuffle"),
    *("groupnorm", "layernorm", "lrn", "softmax", "linear", "whole", "head"),
)
"""What a layer can be; the last two are opaque: the root computes them with the model's own modules."""

MOVERS = ("concat", "pad", "resample", "pixelshuffle", "pixelunshuffle")
"""Kinds that compute nothing: what follows reads their inputs directly."""


@dataclass(frozen=True)
class Param:
    """One tensor of a layer: its role there, its key in the model's state_dict, its shape with output channels first.

    ``groups`` is 0, or that of a transposed convolution: its tensor is stored as (in, out / groups, rows, columns).
    """

    role: str
    key: str
    shape: tuple[int, ...]
    groups: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for length in self.shape:
            size *= length
        return size


@dataclass(frozen=True)
class Layer:
    """One operation on feature maps, with all that box arithmetic needs to know of it.

    Rows and columns: output row ``y`` reads input rows ``y*stride - padding[0]`` up to, in steps of ``dilation``,
    ``kernel`` of them. Channels: ``groups`` says how output channels depend on input channels: a dense conv has 1, a
    per-channel layer as many as it has channels. Shapes are (C, H, W); pairs are (rows, columns).
    """

    name: str
    kind: str
    in_shapes: tuple[Shape, ...]
    out_shape: Shape
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1
    params: tuple[Param, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_kernels(self) -> bool:
        """Whether this is a layer whose kernels can be shared out (what a unit is named after)."""
        return self.kind in ("conv", "convtranspose", "linear")

    @property
    def opaque(self) -> bool:
        """Whether only the root can compute it, with the model's own modules."""
        return self.kind in ("whole", "head")

    @property
    def spans_map(self) -> bool:
        """Whether an element of the output depends on all rows and columns, or on a window that tiles the map."""
        return self.opaque or self.kind in ("groupnorm", "adaptive", "reduce")

    @property
    def flops(self) -> int:
        """FLOPs for the whole map and one picture, 2 x multiply-adds, [KPM22] eq. (5) with d = 1."""
        if self.opaque:
            return int(self.options["flops"])
        if not self.has_kernels:
            return 0
        if self.kind == "linear":
            channels, rows, columns = self.in_shapes[0]
            return 2 * channels * rows * columns * self.out_shape[0]
        made = self.out_shape if self.kind == "conv" else self.in_shapes[0]
        read = self.in_shapes[0] if self.kind == "conv" else self.out_shape
        return 2 * (read[0] // self.groups) * self.kernel[0] * self.kernel[1] * made[0] * made[1] * made[2]

    def flops_of(self, elements: int) -> int:
        """FLOPs to compute this number of output elements; of a transposed convolution their share of the whole."""
        channels, rows, columns = self.out_shape
        return self.flops * elements // (channels * rows * columns)


@dataclass(frozen=True)
class Unit:
    """A chain of layers that one rank runs without talking to another.

    ``mpiconv.graph.grouping`` forms them: outside the head at most one layer has kernels, or a pointwise convolution
    and the depthwise one after it.
    ``inputs`` are the units whose outputs the first layer reads (``PICTURE`` for the picture itself).
    """

    name: str
    layers: tuple[Layer, ...]
    inputs: tuple[int, ...]

    @property
    def in_shapes(self) -> tuple[Shape, ...]:
        """Shapes (C, H, W) of the maps it reads, one per input."""
        return self.layers[0].in_shapes

    @property
    def out_shape(self) -> Shape:
        """Shape (C, H, W) of the map it makes."""
        return self.layers[-1].out_shape

    @property
    def opaque(self) -> bool:
        """Whether only the root can compute it."""
        return self.layers[-1].opaque

    @property
    def fully_connected(self) -> bool:
        """Whether it has a fully connected layer: it reads whole maps and makes one of a single row and column."""
        return any(layer.kind == "linear" for layer in self.layers)

    @property
    def flops(self) -> int:
        """FLOPs of the whole unit for one picture."""
        return sum(layer.flops for layer in self.layers)

    @cached_property
    def memo(self) -> dict[Hashable, Any]:
        """What was worked out of this unit before, for who asks the same again and again."""
        return {}

    @cached_property
    def shape_key(self) -> str:
        """A short text that units have in common which compute the same, whatever their names, weights and inputs are.

        Of letters, digits, ``-`` and ``_``: its kinds and shapes for a reader, and a hash of all that its layers are.
        """
        about = [
            [
                *(layer.kind, layer.in_shapes, layer.out_shape, layer.kernel, layer.stride, layer.padding),
                *(layer.dilation, layer.groups, dict(layer.options)),
                [(param.role, param.shape, param.groups) for param in layer.params],
            ]
            for layer in self.layers
        ]
        text = json.dumps(["float32", about], separators=(",", ":"), sort_keys=True)
        kinds = "-".join(layer.kind for layer in self.layers if layer.kind not in ("norm", "activation"))
        shapes = ("x".join(map(str, shape)) for shape in (self.in_shapes[0], self.out_shape))
        return "_".join([kinds or self.layers[0].kind, *shapes, blake2b(text.encode(), digest_size=6).hexdigest()])

    @property
    def params(self) -> tuple[Param, ...]:
        """Every tensor of its layers."""
        return tuple(param for layer in self.layers for param in layer.params)


@dataclass(frozen=True)
class Graph:
    """A network: units in an order in which they can run; the last one is the head, which only the root runs."""

    model: str
    input_shape: Shape
    units: tuple[Unit, ...]

    @property
    def body(self) -> tuple[Unit, ...]:
        """The units that can be split: all but the head."""
        return self.units[:-1]

    @property
    def unit_names(self) -> tuple[str, ...]:
        """The label of every unit in order, ending with the head."""
        return tuple(unit.name for unit in self.units)

    def shape_of(self, index: int) -> Shape:
        """Shape (C, H, W) of the map that unit ``index`` makes, or of the picture."""
        return self.input_shape if index == PICTURE else self.units[index].out_shape

    @cached_property
    def memo(self) -> dict[Hashable, Any]:
        """What was worked out of this network before, for who asks the same again and again."""
        return {}

    def consumers(self, index: int) -> list[int]:
        """Indices of the units that read the map made by unit ``index``, in order."""
        return list(self._readers.get(index, ()))

    @cached_property
    def _readers(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for reader, unit in enumerate(self.units):
            for source in dict.fromkeys(unit.inputs):
                found.setdefault(source, []).append(reader)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Graph:
        """Rebuild a graph from what ``to_dict`` gave.

        Raises PlanError where the data is no graph.
        """
        try:
            units = tuple(
                Unit(str(u["name"]), tuple(_layer(layer) for layer in u["layers"]), tuple(int(i) for i in u["inputs"]))
                for u in data["units"]
            )
            graph = cls(str(data["model"]), _ints(data["input_shape"]), units)
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"not a network description: {error!r}") from None
        graph.validate()
        return graph

    def validate(self) -> None:
        """Raise PlanError unless every edge leads from an earlier unit and the shapes on both ends agree."""
        if not self.units:
            raise PlanError("a network description needs at least a head")
        for i, unit in enumerate(self.units):
            if not unit.layers or len(unit.inputs) != len(unit.in_shapes):
                raise PlanError(f"unit {unit.name} has {len(unit.layers)} layers and {len(unit.inputs)} inputs")
            for source, shape in zip(unit.inputs, unit.in_shapes, strict=True):
                if not PICTURE <= source < i or self.shape_of(source) != shape:
                    raise PlanError(
                        f"unit {unit.name} reads a map of shape {shape} from unit {source}, which makes none"
                    )
            for layer in unit.layers:
                if layer.kind not in KINDS:
                    raise PlanError(f"layer {layer.name} is of the unknown kind {layer.kind!r}")

    def to_json(self) -> str:
        """The graph as one line of JSON."""
        return json.dumps(self.to_dict(), separators=(",", ":"))


def _ints(values: Any) -> Any:
    """Nested lists from JSON as nested tuples of int."""
    if isinstance(values, list | tuple):
        return tuple(_ints(value) for value in values)
    return int(values)


def _layer(data: Mapping[str, Any]) -> Layer:
    return Layer(
        name=str(data["name"]),
        kind=str(data["kind"]),
        in_shapes=_ints(data["in_shapes"]),
        out_shape=_ints(data["out_shape"]),
        kernel=_ints(data["kernel"]),
        stride=_ints(data["stride"]),
        padding=_ints(data["padding"]),
        dilation=_ints(data["dilation"]),
        groups=int(data["groups"]),
        params=tuple(
            Param(str(p["role"]), str(p["key"]), _ints(p["shape"]), int(p.get("groups", 0))) for p in data["params"]
        ),
        options=dict(data["options"]),
    )
