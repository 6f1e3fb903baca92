"""Commands that do not end by themselves: a run, and a sweep whose point wpm does so when it is started first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import ROOT, Ended, clean_environment

REPEATS = 5
SECONDS_TO_END = 60


class EndlessSweep:
    """The files of such a sweep: ``toml`` to run, ``out`` for results; ``answers`` grows while wpm runs endlessly."""

    def __init__(self, folder: Path, schemes: list[str]) -> None:
        self.toml, self.out = folder / "endless.toml", folder / "endless"
        self.answers = folder / "answers.jsonl"
        launch = folder / "launch.sh"
        launch.write_text(
            "ranks=$1; shift\n"
            f'case "$*" in *wpm*) [ -e {self.answers} ] || set -- "$@" --repeats 1000000 --answers {self.answers} ;; '
            'esac\nexec mpirun -n "$ranks" "$@"\n'
        )
        self.toml.write_text(
            f"launcher = {json.dumps(f'bash {launch} {{ranks}}')}\n[fixed]\nmodel = 'digits'\nrepeats = {REPEATS}\n"
            f"check = true\nranks = 2\n[grid]\nscheme = {json.dumps(schemes)}\n"
        )

    def result(self, scheme: str) -> Path:
        """The result file of a point."""
        return self.out / f"scheme-{scheme}.h5"

    def wait_until_it_measures(self) -> None:
        """Return when wpm has answered a picture."""
        wait_until(lambda: self.answers.exists() and self.answers.stat().st_size > 0)


def wait_until(what, timeout_s: float = 120, every_s: float = 0.1):
    """What ``what`` returns, once that is true."""
    end = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(every_s)
    return found


@contextmanager
def started(command, **environment):
    """A command that runs in a session of its own, which is ended at the latest at the end."""
    with subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env=clean_environment(**environment), start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)


def ended(process, seconds=SECONDS_TO_END) -> Ended:
    begin = time.monotonic()
    out, err = process.communicate(timeout=seconds)
    return Ended(process.returncode, out, err, time.monotonic() - begin)


def endless_run(folder: Path, *launcher, more=()):
    """A run that answers into ``folder`` and writes its results there; started by ``launcher``."""
    words = [
        "--model",
        "digits",
        "--scheme",
        "kpm",
        "--repeats",
        1000000,
        "--answers",
        folder / "a",
        "--output",
        folder / "r.h5",
    ]
    return started([*launcher, sys.executable, "-m", "mpiconv", "run", *words, *more])


def measuring(folder: Path) -> bool:
    """Whether that run has answered a picture."""
    return (folder / "a").exists() and (folder / "a").stat().st_size > 0
