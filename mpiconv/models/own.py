"""A model of the user's own, from ``package.module:callable``; what is wrong in it comes with its file and line."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from operator import attrgetter
from pathlib import Path

from torch import nn

from mpiconv.errors import ModelError, MpiconvError, UsageError

WANTED = "package.module:callable is wanted, like mynet:make for the function make in mynet.py in the current folder"


def build_own(name: str) -> nn.Module:
    """Import a module and call what the name says of it, without arguments; or take it, if it is a network already.

    Raises
    ------
    UsageError
        There is no such module or callable, or it returns something else than a module.
    ModelError
        Its own code raised something; what, and in which line of which file.
    """
    package, _, attribute = name.partition(":")
    _check_name(name, package, attribute)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(package)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{package}.".startswith(f"{error.name}."):
            raise UsageError(f"no model {name!r}: there is no module {error.name}; {WANTED}") from None
        raise _told(name, error) from None
    try:
        make = attrgetter(attribute)(module)
    except AttributeError:
        make = None
    if not callable(make):
        what = "has none of that name" if make is None else f"has a {type(make).__name__} of that name"
        file = getattr(module, "__file__", None) or package
        raise UsageError(f"no model {name!r}: {file} {what}, a callable that returns a torch.nn.Module is wanted")
    try:
        model = make if isinstance(make, nn.Module) else make()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _told(name, error) from None
    if not isinstance(model, nn.Module):
        hint = " (does it end without return?)" if model is None else ""
        raise UsageError(f"{name} gave a {type(model).__name__}, a torch.nn.Module is wanted{hint}")
    return model


def _check_name(name: str, package: str, attribute: str) -> None:
    """Raise UsageError, with the name that was meant where that can be told, for one that cannot be imported."""
    path = Path(package)
    if package.endswith(".py") or "/" in package or "\\" in package:
        stem = path.with_suffix("") if package.endswith(".py") else path
        folder, meant = stem.parent, f"{stem.name}:{attribute or 'make'}"
        if str(folder) == ".":
            raise UsageError(f"no model {name!r}: a module is named, not its file: --model {meant}")
        parts = stem.parts
        dotted = "" if stem.is_absolute() or ".." in parts else f"--model {'.'.join(parts)}:{attribute or 'make'}, or "
        raise UsageError(
            f"no model {name!r}: a module is named, not its file: {dotted}in the folder {folder} --model {meant}"
        )
    if not all(part.isidentifier() for part in (*package.split("."), *attribute.split("."))):
        raise UsageError(f"no model {name!r}: {WANTED}")


def _told(name: str, error: BaseException) -> MpiconvError:
    """What the user's code raised, as one sentence with the line of it that is nearest to the cause."""
    if isinstance(error, MpiconvError):
        return error
    if isinstance(error, SyntaxError):
        where = f" at {error.filename}:{error.lineno}"
    else:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
        where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    reason = " ".join(f"{type(error).__name__}: {getattr(error, 'msg', '') or error}".split()).rstrip(": ")
    return ModelError(f"the model {name} cannot be built{where}: {reason}")


def _is_users(filename: str) -> bool:
    """Whether a frame is neither of Python, of an installed package, nor of this one."""
    inside = (os.path.dirname(importlib.__file__), os.path.dirname(os.path.dirname(__file__)))
    return not filename.startswith(("<frozen", *inside)) and "site-packages" not in filename
