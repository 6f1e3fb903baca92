"""The errors a user can mend: each is one sentence that names what is wrong and what would be right."""

from __future__ import annotations

import json
import os
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mpiconv.signals import Ended


class MpiconvError(Exception):
    """Something in the input or the surroundings is wrong; the command ends with exit status 1."""

    exit_status = 1
    everywhere = False
    """Whether all ranks raise it, so that none needs to be told."""


class UsageError(MpiconvError):
    """The command line or the arguments of a call are wrong; the command ends with exit status 2."""

    exit_status = 2


class ModelError(MpiconvError):
    """A network cannot be built, read or split; the message names the model, layer or parameter."""


class PlanError(MpiconvError):
    """A plan does not fit its network, its ranks or itself; the message names the unit and the rank."""


class Lost(MpiconvError):  # noqa: N818 - no failure, where the others go on
    """Another rank is lost that this one counts on; those who are left may go on together."""

    everywhere = True


class Refused(Lost):
    """This rank counts as lost, and the others have gone on without it."""


class RootLost(MpiconvError):  # noqa: N818 - as Lost
    """Rank 0 is lost, so that all others end, as soon as they know."""

    everywhere = True


class PeerError(MpiconvError):
    """Another rank failed, and this one cannot go on without it; the message is the other's."""

    everywhere = True


def reason(error: BaseException, rank: int) -> str:
    """One line that says what an exception on a rank was: its own sentence if it is meant for users, else all of it."""
    if isinstance(error, MpiconvError | Ended):
        return str(error)
    text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    return f"rank {rank}: {text} (MPICONV_DEBUG=1 shows where)"


def need(module: str, extra: str) -> Any:
    """Import a module that comes with one of the package's extras.

    Raises MpiconvError that says which pip install brings it.
    """
    try:
        return import_module(module)
    except ImportError:
        raise MpiconvError(f"this needs {module}: {pip_install(extra)}") from None


def pip_install(extra: str) -> str:
    """The command that adds an extra to this installation: from the checkout that it came from, where that is known."""
    folder, editable = _checkout()
    if folder is None:
        return f"pip install '.[{extra}]' in a checkout of mpiconv"
    place = "." if folder.resolve() == Path.cwd() else str(folder)
    return f"pip install {'-e ' if editable else ''}'{place}[{extra}]'"


def _checkout() -> tuple[Path | None, bool]:
    """The folder with the sources that pip installed, or that this runs from, and whether they are used in place."""
    above = Path(__file__).parent.parent
    if (above / "setup.cfg").exists():
        return above, True
    try:
        origin = json.loads(distribution("mpiconv").read_text("direct_url.json") or "{}")
        url = urlsplit(origin.get("url", ""))
    except (PackageNotFoundError, ValueError, OSError):
        return None, False
    folder = Path(unquote(url.path))
    return (folder if url.scheme == "file" and os.path.isdir(folder) else None), False
