"""Builders of what changes a map's size or order alone: upsampling, padding, shuffling, picking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mpiconv.errors import ModelError
from mpiconv.graph.calls import CannotSplitError
from mpiconv.graph.form import Layer
from mpiconv.graph.layers.base import (
    BUILDERS,
    Add,
    Map,
    builder,
    check_channels,
    need_map,
    pair_of,
    simple,
)
from mpiconv.graph.resample import interpolated, picked


@builder("interpolate")
def _interpolate(
    add: Add,
    name: str,
    input: Any,  # noqa: A002
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: Any = None,
    recompute_scale_factor: Any = None,
    antialias: bool = False,
) -> Map:
    source = need_map(input)
    settings = {
        "mode": mode,
        "align_corners": align_corners,
        "recompute_scale_factor": recompute_scale_factor,
        "antialias": antialias,
    }
    both = (list(pair_of(size)) if size is not None else None, _scales(scale_factor))
    rows, columns = (
        interpolated(length, settings | {"size": both[0] and both[0][axis], "scale_factor": both[1] and both[1][axis]})
        for axis, length in enumerate(source.shape[1:])
    )
    whole = settings | {"size": both[0], "scale_factor": both[1]}
    if antialias and min(source.shape[2], len(columns["index"])) == 1:
        raise CannotSplitError("an antialiased interpolation of one column, which torch computes by its strides")
    return _resampled(add, name, source, None, rows, columns, whole)


def _upsample(mode: str) -> Callable[..., Map]:
    def build_it(
        add: Add,
        name: str,
        input: Any,  # noqa: A002
        output_size: Any = None,
        align_corners: bool | None = None,
        scale_factors: Any = None,
    ) -> Map:
        return _interpolate(add, name, input, output_size, scale_factors, mode, align_corners)

    return build_it


BUILDERS |= {f"upsample_{mode}2d": _upsample(mode) for mode in ("nearest", "bilinear", "bicubic")}


def _scales(value: Any) -> list[float] | None:
    if value is None:
        return None
    values = list(value) if isinstance(value, tuple | list) else [value, value]
    return [float(values[0]), float(values[-1])]


@builder("pad")
def _pad(add: Add, name: str, input: Any, pad: Any, mode: str = "constant", value: Any = 0) -> Map:  # noqa: A002
    source = need_map(input)
    around = [int(n) for n in (pad if isinstance(pad, list | tuple) else [pad] * 4)]
    if len(around) % 2 or len(around) > 6 or (mode != "constant" and len(around) > 4):
        raise CannotSplitError(f"pad by {around}")
    around += [0] * (6 - len(around))
    sizes = [length + around[4 - 2 * i] + around[5 - 2 * i] for i, length in enumerate(source.shape)]
    if min(sizes) < 1:
        raise ModelError(f"layer {name} leaves nothing of a map of shape {source.shape}")
    if any(around[4:]):
        if value not in (0, None) or any(around[:4]):
            raise CannotSplitError("pad along channels and rows at once, or by more than zeros")
        rows = [i - around[4] if 0 <= i - around[4] < source.shape[0] else -1 for i in range(sizes[0])]
        return _resampled(add, name, source, picked(rows), None, None)
    if mode != "constant":
        tables = [
            picked(_mirrored(length, before, after, mode, name)) if before or after else None
            for length, before, after in zip(source.shape[1:], around[2::-2], around[3::-2], strict=False)
        ]
        return _resampled(add, name, source, None, tables[0], tables[1])
    padding = ((around[2], around[3]), (around[0], around[1]))
    out = (source.shape[0], sizes[1], sizes[2])
    if not any(around):
        return source
    return add(simple("pad", name, source.shape, out, padding=padding, options={"value": float(value or 0)}), source)


@builder("constant_pad_nd")
def _constant_pad(add: Add, name: str, input: Any, pad: Any, value: Any = 0) -> Map:  # noqa: A002
    return _pad(add, name, input, pad, "constant", value)


def _mirrored(length: int, before: int, after: int, mode: str, name: str) -> list[int]:
    """Which row each row of a map padded by its own rows is."""
    rows = range(-before, length + after)
    limit = {"reflect": length - 1, "circular": length}.get(mode, before + after)
    if max(before, after) > limit:
        raise ModelError(f"layer {name}: {mode} padding by more than the map has")
    if mode == "replicate":
        return [min(max(row, 0), length - 1) for row in rows]
    if mode == "circular":
        return [row % length for row in rows]
    if mode == "reflect":
        return [abs(row) if row < length else 2 * (length - 1) - row for row in rows]
    raise CannotSplitError(f"padding by {mode}")


def resample(add: Add, name: str, source: Map, tables: Sequence[Any]) -> Map:
    """A layer that picks channels, rows and columns of a map by tables."""
    return _resampled(add, name, source, *tables)


def _resampled(
    add: Add, name: str, source: Map, channels: Any, rows: Any, columns: Any, interpolate: dict[str, Any] | None = None
) -> Map:
    tables = (channels, rows, columns)
    out = tuple(len(t["index"]) if t else length for t, length in zip(tables, source.shape, strict=True))
    options = {"channels": channels, "rows": rows, "columns": columns, "interpolate": interpolate}
    groups = 1 if channels else source.shape[0]
    return add(Layer(name, "resample", (source.shape,), out, groups=groups, options=options), source)  # type: ignore[arg-type]


@builder("pixel_shuffle")
def _pixel_shuffle(add: Add, name: str, input: Any, upscale_factor: int) -> Map:  # noqa: A002
    source, r = need_map(input), int(upscale_factor)
    channels, rows, columns = source.shape
    check_channels(name, channels // r**2 * r**2, source.shape)
    out = (channels // r**2, rows * r, columns * r)
    return add(Layer(name, "pixelshuffle", (source.shape,), out, stride=(r, r), groups=out[0]), source)


@builder("pixel_unshuffle")
def _pixel_unshuffle(add: Add, name: str, input: Any, downscale_factor: int) -> Map:  # noqa: A002
    source, r = need_map(input), int(downscale_factor)
    channels, rows, columns = source.shape
    if rows % r or columns % r:
        raise ModelError(f"layer {name} wants rows and columns that are multiples of {r}, gets {source.shape}")
    out = (channels * r**2, rows // r, columns // r)
    layer = Layer(name, "pixelunshuffle", (source.shape,), out, (r, r), (r, r), groups=channels)
    return add(layer, source)
