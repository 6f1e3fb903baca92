"""Weights in and out of files: PyTorch's .pth (tensors only, no pickled objects) and safetensors."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from mpiconv.errors import ModelError
from mpiconv.models.names import Names, fit_names
from mpiconv.models.slices import WeightsFile
from mpiconv.pickles import MOST_BYTES, globals_of

HINT = "a .safetensors file or a state_dict saved by torch.save is wanted"
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MOST_DEEP = 8
MOST_LETTERS = 500
NAMED = 3
LEGACY_PICKLES = 5
"""What ``torch.save`` wrote before it wrote zip archives: a magic number, a version, the system, the object, keys."""

TENSORS = re.compile(
    r"collections\.(OrderedDict|Counter)|(builtins|__builtin__)\.(set|complex)|_codecs\.encode"
    r"|torch\.(\w+Storage|storage\.\w+Storage|Size|device|serialization\._get_layout|nn\.parameter\.Parameter)"
    r"|torch\.(q?u?int\d+\w*|float\w+|bfloat16|complex\d+|bool|half|double|long|per_(tensor|channel)_\w+)"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state|qtensor|sparse_tensor)"
    r"|torch\._utils\._rebuild_(meta_tensor_no_storage|nested_tensor)"
)
"""What a file of tensors, and of numbers beside them, names."""


def read_weights(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of a weights file, read into memory, by name, and its metadata, which only safetensors have.

    What a .pth file has in entries of entries is called ``state_dict.conv.weight``.

    Raises
    ------
    ModelError
        The file is missing, broken, or holds something else than tensors.
    """
    path = Path(path)
    try:
        regular = stat.S_ISREG(path.stat().st_mode)  # a pipe would be waited for
        with path.open("rb") if regular or path.is_dir() else open(os.devnull, "rb"):
            pass
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read the weights {path}: {getattr(error, 'strerror', None) or error}") from None
    if not regular:
        raise ModelError(f"cannot read the weights {path}: it is no regular file")
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        stored = WeightsFile(path)
        state, metadata = {name: stored.read(name) for name in stored.names}, stored.metadata
    else:
        try:
            state = dict(_tensors(load_saved(path), ""))
        except ValueError as error:
            raise ModelError(f"{path} holds no weights: {error}") from None
    if not state:
        raise ModelError(f"{path} holds no weights: {HINT}")
    if not all(name.isprintable() and len(name) < MOST_LETTERS for name in state):
        raise ModelError(f"{path} holds no weights: a tensor in it has a name that cannot be printed")
    return state, metadata


def load_saved(path: Path) -> object:
    """What ``torch.save`` wrote of tensors, numbers and text in plain containers; read into memory.

    Raises ValueError where the file is broken, or loading it would do more than to make these of its bytes.
    """
    named: set[str] = set()
    try:
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    named = _globals_in_archive(archive, path.stat().st_size)
            else:
                file.seek(0)
                head = io.BytesIO(file.read(MOST_BYTES))
                for _ in range(LEGACY_PICKLES):
                    named |= globals_of(head)
                    if not all(map(TENSORS.fullmatch, named)):
                        break
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{reason}; or it is cut short: {HINT}") from None
    foreign = sorted(name for name in named if not TENSORS.fullmatch(name))
    if foreign:
        shown = ", ".join(ascii(name)[1:-1][:MOST_LETTERS] for name in foreign[:NAMED])
        more = f" and {len(foreign) - NAMED} more" if len(foreign) > NAMED else ""
        raise ValueError(
            f"there is {shown}{more} in it, and only tensors are read: where it was made, save the state_dict by "
            f"itself, as torch.save(model.state_dict(), 'weights.pth') does"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:  # of nearly any kind, with advice that would not help
        raise ValueError(f"it is cut short or damaged ({type(error).__name__}): {HINT}") from None


def _globals_in_archive(archive: zipfile.ZipFile, size: int) -> set[str]:
    entries = archive.infolist()
    names = {entry.filename.rpartition("/")[2]: entry for entry in entries}
    if sum(entry.file_size for entry in entries) > size:
        raise ValueError("it unpacks to more bytes than it has, which no file of torch.save does")
    if "constants.pkl" in names:
        raise ValueError("it is a TorchScript archive; save the state_dict() of the module instead")
    if "data.pkl" not in names:
        raise ValueError("it is an archive of something else")
    if names["data.pkl"].file_size > MOST_BYTES:
        raise ValueError(f"what it says of its tensors has more than {MOST_BYTES} bytes")
    return globals_of(io.BytesIO(archive.read(names["data.pkl"])))


def _tensors(found: object, prefix: str, depth: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in mappings of mappings, by the keys on the way to each."""
    if not isinstance(found, Mapping) or depth > MOST_DEEP:
        return
    for key, value in found.items():
        if not isinstance(key, str | int):
            continue  # as text some would be as long as all their numbers
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{key}", value
        else:
            yield from _tensors(value, f"{prefix}{key}.", depth + 1)


def take_names(state: Mapping[str, torch.Tensor], own: Iterable[str]) -> tuple[dict[str, torch.Tensor], Names]:
    """The tensors of a file that are a model's, by the names that it has for its own, and how they were found."""
    names = fit_names(state, own)
    return {own: state[stored] for own, stored in names.stored.items()}, names


def assign_weights(
    model: nn.Module, state: Mapping[str, torch.Tensor], source: str, *, allow_nonfinite: bool = False
) -> None:
    """Make the tensors of ``state`` the model's own, without copying those that are float32.

    Raises
    ------
    ModelError
        A tensor is missing, superfluous, of another shape, of a number format that is not split, or not finite; it is
        named, with what the model wants.
    """
    own, fitting = model.state_dict(), dict[str, torch.Tensor]()
    for name, tensor in own.items():
        if name not in state and name.endswith("num_batches_tracked"):  # which files before torch 0.4.1 lack
            fitting[name] = torch.zeros((), dtype=tensor.dtype)
        elif name not in state:
            raise ModelError(f"{source} has no {name}, which the model has with shape {tuple(tensor.shape)}")
        else:
            fitting[name] = _fitting(name, state[name], tensor, source)
    extra = sorted(set(state) - set(own))
    if extra:
        raise ModelError(f"{source} has {extra[0]}, which the model has not (and {len(extra) - 1} more)")
    if not allow_nonfinite:
        check_finite(fitting, source)
    model.load_state_dict(fitting, assign=True)


def _fitting(name: str, tensor: torch.Tensor, own: torch.Tensor, source: str) -> torch.Tensor:
    """A tensor from a file as the model wants it: dense, of its shape, and float32 where the model's own is a float."""
    kind = _unusual(tensor)
    if kind:
        raise ModelError(f"{name} is {kind} in {source}: {_listed(FLOATS)} on the CPU is wanted")
    if tensor.shape != own.shape:
        shape, wanted = tuple(tensor.shape), tuple(own.shape)
        raise ModelError(f"{name} has shape {shape} in {source}, the model wants {wanted}{_classes_hint(name, shape)}")
    if own.is_floating_point():
        if tensor.dtype not in FLOATS:
            raise ModelError(f"{name} is {_listed([tensor.dtype])} in {source}: {_listed(FLOATS)} is wanted")
        return tensor.detach().float().contiguous()
    made = tensor.detach().to(own.dtype).contiguous()
    if not torch.equal(made.to(tensor.dtype), tensor):
        raise ModelError(f"{name} is {_listed([tensor.dtype])} in {source}: {_listed([own.dtype])} is wanted")
    return made


def _unusual(tensor: torch.Tensor) -> str:
    """In which way a tensor is more than numbers in memory; empty if it is not."""
    kinds = {
        "quantised": tensor.is_quantized,
        "a nested tensor": tensor.is_nested,
        f"sparse ({str(tensor.layout).removeprefix('torch.')})": tensor.layout != torch.strided,
        "without numbers (on the meta device)": tensor.is_meta,
        "complex": tensor.is_complex(),
    }
    return next((kind for kind, found in kinds.items() if found), "")


def _listed(dtypes: tuple[torch.dtype, ...] | list[torch.dtype]) -> str:
    *names, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
    return f"{', '.join(names)} or {last}" if names else last


def check_finite(state: Mapping[str, torch.Tensor], source: str) -> None:
    """Raise ModelError, naming the first tensor with one and how many, where a number is infinite or not a number."""
    for name, tensor in state.items():
        if is_finite(tensor):
            continue
        count = int((~torch.isfinite(tensor)).sum())
        raise ModelError(
            f"{name} has {count} of {tensor.numel()} values that are infinite or not a number in {source}: mend it, or "
            f"go on with --allow-nonfinite"
        )


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all numbers of a tensor are finite; each is looked at only where their sum is not."""
    if not tensor.is_floating_point() or tensor.is_meta:
        return True
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _classes_hint(name: str, shape: tuple[int, ...]) -> str:
    return f" (is it --classes {shape[0]}?)" if shape and ("classifier" in name or name.startswith("fc.")) else ""


def labels_of(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The class names in a weights file's metadata (a JSON list under ``classes``); none if it has no such list."""
    try:
        names = json.loads(metadata.get("classes", "[]"))
    except (ValueError, RecursionError):
        return ()
    return tuple(str(name) for name in names) if isinstance(names, list) else ()
