"""mpirun as a child process: what it says, how it ends, and that nothing of it is left. Standard library only."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import IO

from mpiconv.errors import MpiconvError
from mpiconv.job.processes import DONE
from mpiconv.job.processes import SUPERVISED as VARIABLE

ERROR, NOISE = "mpiconv: error: ", "NBC_Progress: an error 7"
"""How the line begins that says why a run fails; and what Open MPI says of its own where a rank is lost."""

BANNER = re.compile(r"-{20,}")
DEATH = re.compile(
    r"process rank (?P<rank>\d+)\D.*? on node (?P<host>\S+) (?:exited on signal (?P<signal>\d+)|was killed)", re.DOTALL
)
LOST = re.compile(r"rank \d+ \(host (?P<host>\S+)\)")
LINGER_S, THROUGH_S = 5.0, 2.0
"""How long mpirun may go on once a rank has said why the job fails, and once rank 0 is through."""
SOFTLY_S = 1.5
LOOK_S = 0.02
KEPT_BANNERS = 20


class Child:
    """A job started by mpirun in a session of its own.

    What it prints is kept in ``out``; lines of its stderr are passed on at once, but for its errors and the long
    banners with which mpirun tells of a rank's death: ``said`` has the first error, ``death`` what such a banner tells,
    ``lost`` the hosts of the ranks that the job went on without, and ``lost_s`` when it did so last, 0 for never.

    Parameters
    ----------
    command
        The command line.
    passed_on
        Lines of stderr that were passed on before, which are not again; those of this child are added.

    Raises
    ------
    MpiconvError
        It cannot be started.
    """

    def __init__(self, command: Sequence[str], passed_on: set[str]) -> None:
        self.said, self.lost, self.lost_s = "", set[str](), 0.0
        self._through: tuple[int, float] | None = None
        self._passed_on = passed_on
        self.out = b""
        self._banner, self._banners = False, list[str]()
        self._mark = secrets.token_hex(8)
        self._failed_s = 0.0
        try:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                start_new_session=True, env={**os.environ, VARIABLE: self._mark},
            )  # fmt: skip
        except OSError as error:
            raise MpiconvError(f"cannot start {command[0]}: {error.strerror}") from None
        streams = ((self._process.stdout, self._read_out), (self._process.stderr, self._read_err))
        self._readers = [threading.Thread(target=read, args=(stream,), daemon=True) for stream, read in streams]
        for reader in self._readers:
            reader.start()

    def _read_out(self, stream: IO[bytes]) -> None:
        while block := stream.read(2**16):
            self.out += block

    def _read_err(self, stream: IO[bytes]) -> None:
        for raw in stream:
            line = raw.decode("utf-8", "replace").rstrip("\n")
            if BANNER.fullmatch(line.strip()):
                self._banner = not self._banner
            elif line.startswith(DONE):
                self._through = int(line.removeprefix(DONE)), monotonic()
            elif NOISE in line:
                continue
            elif line.startswith(ERROR):
                self.said = self.said or line.removeprefix(ERROR)
                self._failed_s = self._failed_s or monotonic()
            elif self._banner:
                self._banners = [*self._banners[1 - KEPT_BANNERS :], line]
            elif line and line not in self._passed_on:
                if "lost rank" in line:
                    self.lost |= {found["host"] for found in LOST.finditer(line)}
                    self.lost_s = monotonic()
                self._passed_on.add(line)
                print(line, file=sys.stderr, flush=True)

    @property
    def death(self) -> str:
        """Which rank died, where and of what, as mpirun told; empty if it did not."""
        found = DEATH.search(" ".join(self._banners))
        if found is None:
            return ""
        number = int(found["signal"] or 0)
        of = f" of {signal.Signals(number).name}" if number in {int(each) for each in signal.Signals} else ""
        return f"rank {found['rank']} on {found['host']} died{of}"

    @property
    def last_words(self) -> str:
        """What mpirun said at length, in one line; empty if nothing."""
        return " ".join(" ".join(self._banners).split())

    def ended(self) -> int | None:
        """Its exit status once it has ended and nothing of it is left on this host; None before.

        A job that said why it fails, or whose rank 0 is through, and that does not end for it, is ended.
        """
        if self._process.poll() is None:
            now = monotonic()
            failed = self._failed_s and now - self._failed_s > LINGER_S
            if not failed and not (self._through and now - self._through[1] > THROUGH_S):
                return None
            self.end()
        self._end_rest()
        for reader in self._readers:
            reader.join(SOFTLY_S)
        return self._process.returncode if self._through is None else self._through[0]

    def signal(self, number: int) -> None:
        """Send mpirun a signal; it hands SIGUSR1 to all ranks."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    def end(self) -> None:
        """End all of it, within some seconds."""
        self.signal(signal.SIGTERM)
        end = monotonic() + SOFTLY_S
        while self._process.poll() is None and monotonic() < end:
            sleep(LOOK_S)
        self._end_rest()
        self._process.wait()

    def _end_rest(self) -> None:
        """Kill what is left of its session, and whatever else on this host was started by it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        mark = f"{VARIABLE}={self._mark}".encode()
        end = monotonic() + SOFTLY_S
        while monotonic() < end and (found := [pid for pid in _processes() if mark in _environment(pid)]):
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            sleep(LOOK_S)


def _processes() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    except OSError:  # no Linux
        return []


def _environment(pid: int) -> list[bytes]:
    """The environment that a process was started with; nothing of one that is over or another user's."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
