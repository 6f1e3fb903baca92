"""The ``mpiconv`` command: one file per sub-command, each imported only when it is used."""

from __future__ import annotations

import argparse
import itertools
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import Any, NoReturn

import mpiconv
import mpiconv.cli.startup
from mpiconv.errors import MpiconvError, RootLost, reason
from mpiconv.signals import Ended
from mpiconv.words import did_you_mean

LAUNCHER_S = 0.9
"""What mpirun may take to kill the ranks that it sent SIGTERM, since another one failed and has said why."""

COMMANDS = {
    "run": "infer over pictures, a folder or random input, split over the ranks (under mpirun)",
    "model": "the paper's equations per layer: computation, memory, communication; its figures",
    "report": "one page of figures and tables from result files, with CSV, SVG and a trace beside it",
    "sweep": "run a grid of runs from a TOML file, each its own job; resumable",
    "doctor": "do the ranks agree: versions, hosts, threads, clocks, links (under mpirun)",
    "probe": "measure the devices and links of this job, write cluster.toml (under mpirun)",
    "train": "teach a model on CIFAR-10, a folder of pictures per class or the digits (also under mpirun)",
    "simulate": "estimate a model on 1 to 384 devices at any link rate, by every scheme; no MPI, no device needed",
    "plan": "show or save who computes what for a model, a scheme and a number of ranks",
}


UNREAD = 128 + signal.SIGPIPE
"""The exit status of a command whose output nobody reads any more, as of those that the signal ends."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, printed once for all ranks, with the right word that is nearest."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse all of the words: the first that is not known is an error of the command that it is given to."""
        words = list(sys.argv[1:] if args is None else args)
        dashed = (word.startswith("-") for word in words)
        own = list(itertools.takewhile(lambda _: next(dashed), words)) if self._subparsers else words
        for word in itertools.takewhile(lambda word: word != "--", own):
            name = word.partition("=")[0]
            if re.match(r"--?[A-Za-z]", name) and not any(known.startswith(name) for known in self._known):
                before = "; options of a command follow it" if self._subparsers else ""
                self.error(f"unknown option {name}{did_you_mean(name, self._known) or before}")
        found, unknown = super().parse_known_args(words, namespace)
        if unknown:
            self.error(f"unexpected {unknown[0]!r}: a value with spaces in it wants quotes")
        return found, []

    @property
    def _known(self) -> list[str]:
        return list(self._option_string_actions)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        hint = f"choose from {', '.join(known)}{did_you_mean(str(value), known)}"
        if action.dest == "command":
            self.error(f"unknown command {value!r}: {hint}")
        raise argparse.ArgumentError(action, f"unknown value {str(value)!r}: {hint}")

    def error(self, message: str) -> NoReturn:
        """End with exit status 2."""
        from mpiconv.job.world import fail

        fail(f"{message} (see {self.prog} --help)", 2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; on an error every rank of the job is ended."""
    words = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    try:
        try:
            arguments = _parsed(words)
        except SystemExit as stop:  # --help and --version; wrong words are the parser's error
            sys.stdout.flush()
            return int(stop.code or 0)
        status = int(arguments.run(arguments))
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        _fail("", UNREAD)
    except MpiconvError as error:
        _fail(str(error), error.exit_status, at_once=isinstance(error, RootLost))
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Ended as ended:
        _fail(str(ended), 143, LAUNCHER_S)
    except BaseException as error:
        if os.environ.get("MPICONV_DEBUG"):
            traceback.print_exc()
        from mpiconv.job.world import launcher_rank

        _fail(reason(error, launcher_rank()), 1)


def _open_streams() -> None:
    """See that stdout and stderr are there and take any text, whatever the locale and whatever was closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # noqa: PERF203 - thrice
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for the rest of the process
        stream = getattr(sys, name)
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _parsed(words: list[str]) -> argparse.Namespace:
    parser = Parser(prog="mpiconv", description=mpiconv.__doc__, epilog="mpiconv COMMAND --help tells more.")
    parser.add_argument("--version", action="version", version=f"mpiconv {mpiconv.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    chosen = next((word for word in words if not word.startswith("-")), None)
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == chosen:
            command = import_module(f"mpiconv.cli.{name}")
            command.add_arguments(sub)
            sub.set_defaults(run=command.run)
    found = parser.parse_args(words)
    found.words = words[words.index(found.command) + 1 :]
    return found


def _fail(message: str, status: int, after_s: float = 0.0, *, at_once: bool = False) -> NoReturn:
    from mpiconv.job.world import fail

    fail(message, status, after_s, at_once=at_once)
