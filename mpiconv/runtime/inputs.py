"""Pictures that a network was called with, and what has to be done to those that do not fit."""

from __future__ import annotations

from typing import Any

import torch

from mpiconv.runtime.guard import is_finite

NOT_FINITE = (
    "a picture has NaN or infinite pixels, of which compiled units make numbers: mend it, or compute with torch's own "
    "operations (--compute eager), which hand them on"
)


def why_unfit(images: Any, wanted: tuple[int, ...], *, finite: bool) -> str:
    """Why ``images`` are not the float32 tensor of the shape ``wanted``, and what makes them so; empty if they are.

    With ``finite`` they must not have NaN or infinity in them.
    """
    found = _found(images)
    if found is None:
        if images.dtype == torch.float32 and tuple(images.shape) == wanted and images.device.type == "cpu":
            return NOT_FINITE if finite and not is_finite(images) else ""
        found = f"{images.dtype} {tuple(images.shape)}" + (
            f" on {images.device}" if images.device.type != "cpu" else ""
        )
    return f"the plan is for float32 pictures of shape {wanted}, rank 0 was given {found}{_advice(images, wanted)}"


def _found(images: Any) -> str | None:
    """What was passed instead of a tensor, in words; None for a tensor."""
    if images is None:
        return "nothing"
    if isinstance(images, torch.Tensor):
        return None
    kind = "NumPy array" if type(images).__module__ == "numpy" else type(images).__name__
    about = f" of {images.dtype} {tuple(images.shape)}" if kind == "NumPy array" and hasattr(images, "dtype") else ""
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}{about}"


def _advice(images: Any, wanted: tuple[int, ...]) -> str:
    """The calls that turn what was passed into what is wanted; empty if only another picture helps."""
    array = type(images).__module__ == "numpy"
    if not array and not isinstance(images, torch.Tensor | list | tuple):
        return ""
    steps = []
    if not isinstance(images, torch.Tensor):
        steps.append("torch.from_numpy(picture)" if array else "torch.as_tensor(picture)")
    shape, dtype = tuple(getattr(images, "shape", wanted)), str(getattr(images, "dtype", "float32"))
    if not dtype.endswith("float32"):
        steps.append(".float()")
    if getattr(getattr(images, "device", None), "type", "cpu") != "cpu":
        steps.append(".cpu()")
    last = wanted[2:] + wanted[1:2]
    if shape in (last, (wanted[0], *last)):
        steps.append(".movedim(-1, -3)")
        shape = (*shape[:-3], *wanted[1:])
    if shape == wanted[1:] and wanted[0] == 1:
        steps.append("[None]")
    elif shape != wanted:
        steps = []
    if not steps:
        return ""
    return ": pass " + ("" if steps[0].startswith("torch") else "picture") + "".join(steps)
