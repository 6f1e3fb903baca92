"""The ``mpiconv`` command: one file per sub-command, each imported only when it is used."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import mpiconv
import mpiconv.cli.startup
from mpiconv.errors import MpiconvError, reason
from mpiconv.runtime import openmpi
from mpiconv.signals import Ended

openmpi.configure()

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
    "plan": "show or save who computes what for a model, a scheme and a number of ranks",
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, printed once for all ranks."""

    def error(self, message: str) -> NoReturn:
        """End with exit status 2."""
        from mpiconv.runtime.world import fail

        fail(f"{message} (see {self.prog} --help)", 2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; on an error every rank of the job is ended."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            arguments = _parsed(words)
        except SystemExit as stop:  # --help and --version; wrong words are the parser's error
            return int(stop.code or 0)
        return int(arguments.run(arguments))
    except MpiconvError as error:
        _fail(str(error), error.exit_status)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Ended as ended:
        _fail(str(ended), 143, LAUNCHER_S)
    except BaseException as error:
        if os.environ.get("MPICONV_DEBUG"):
            traceback.print_exc()
        from mpiconv.runtime.world import launcher_rank

        _fail(reason(error, launcher_rank()), 1)


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
    return parser.parse_args(words)


def _fail(message: str, status: int, after_s: float = 0.0) -> NoReturn:
    from mpiconv.runtime.world import fail

    fail(message, status, after_s)
