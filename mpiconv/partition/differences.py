"""The first difference between two networks, in words."""

from __future__ import annotations

from dataclasses import fields
from itertools import zip_longest
from typing import Any

from mpiconv.graph.form import Graph, Layer, Unit

WORDS = {"in_shapes": "inputs", "out_shape": "output"}


def other_network(planned: Graph, model: Graph) -> str:
    """The sentence for a plan that was made for another network than the one at hand."""
    return (
        f"the plan was made for another network ({planned.model}) than this one ({model.model}): "
        f"{first_difference(planned, model)}; make a new plan"
    )


def first_difference(planned: Graph, model: Graph) -> str:
    """What differs first between the network of a plan and another one; empty where nothing does."""
    if planned.input_shape != model.input_shape:
        return f"the pictures are {_text(planned.input_shape)} in the plan, {_text(model.input_shape)} in the model"
    for mine, other in zip_longest(planned.units, model.units):
        if mine is None or other is None:
            unit, where = (other, "model") if mine is None else (mine, "plan")
            return f"unit {unit.name} is in the {where} alone"
        if mine != other:
            return f"unit {mine.name}{_in_units(mine, other)}"
    return ""


def _in_units(mine: Unit, other: Unit) -> str:
    if mine.name != other.name:
        return f" of the plan is {other.name} in the model"
    for layer, another in zip_longest(mine.layers, other.layers):
        if layer is None or another is None:
            more, where = (another, "model") if layer is None else (layer, "plan")
            return f" has the layer {more.name} ({more.kind}) in the {where} alone"
        if layer != another:
            return f", layer {layer.name}: {_in_layers(layer, another)}"
    return f" reads other maps: {_text(mine.inputs)} in the plan, {_text(other.inputs)} in the model"


def _in_layers(mine: Layer, other: Layer) -> str:
    for name in sorted((field.name for field in fields(Layer)), key=lambda name: name != "kind"):
        planned, found = getattr(mine, name), getattr(other, name)
        if planned != found:
            if name == "params":
                planned, found = ({param.key: param.shape for param in params} for params in (planned, found))
            return f"{WORDS.get(name, name)} {_text(planned)} in the plan, {_text(found)} in the model"
    return "it differs"


def _text(value: Any) -> str:
    """Sizes as 3x8x8, other things as they are."""
    if isinstance(value, tuple | list) and value and all(isinstance(n, int) for n in value):
        return "x".join(map(str, value))
    if isinstance(value, tuple | list):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items()) or "none"
    return str(value)
