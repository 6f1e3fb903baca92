"""A sweep whose point wpm runs without end the first time that it is started, and normally the second time."""

from __future__ import annotations

import json
import time
from pathlib import Path

REPEATS = 5


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
