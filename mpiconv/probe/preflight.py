"""Can mpirun reach the hosts of a hostfile? Asked before it is started, by ssh, as mpirun will do. Needs no MPI."""

from __future__ import annotations

import codecs
import re
import socket
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from pathlib import Path

from mpiconv.errors import MpiconvError

CONNECT_S = 5
ANSWER_S = 15
SSH = ("ssh", "-n", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}", "--")
SRUN = ("srun", "--overlap", "--nodes=1", "--ntasks=1", "--quiet", "--nodelist")
"""Before a host and a command: how it is run there, by ssh or as a step of the SLURM job around."""

MOST_BYTES = 2**20
SLOTS = ("slots", "max_slots", "max-slots")
LOCAL = ("localhost", "127.0.0.1", "::1")


def read_hosts(path: str | Path) -> list[str]:
    """The hosts in a hostfile of Open MPI (``host slots=N``) or MPICH (``host:N``), each once.

    Raises MpiconvError where the file cannot be read, names no host, or has a line that mpirun refuses; the line is
    named, and how to mend it.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise MpiconvError(f"cannot read the hostfile {path}: {getattr(error, 'strerror', None) or error}") from None
    if content.startswith(codecs.BOM_UTF8):
        raise MpiconvError(
            f"{path} begins with a byte order mark, which mpirun refuses: save it as plain UTF-8 without one"
        )
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text or len(content) > MOST_BYTES:
        raise MpiconvError(f"{path} is no hostfile: a text with a host on each line is wanted")
    hosts, counted = [], set[str]()
    for number, line in enumerate(text.split("\n"), 1):
        words = re.sub(r"[ \t]*=[ \t]*", "=", line.partition("#")[0].strip(" \t")).split()
        fault = _fault(line.partition("#")[0], words, counted)
        if fault:
            raise MpiconvError(f"{path}, line {number}: {fault}")
        if words:
            hosts.append(re.sub(r":\d+$", "", words[0]) if words[0].count(":") == 1 else words[0])
    if not hosts:
        raise MpiconvError(f"the hostfile {path} names no host")
    return list(dict.fromkeys(hosts))


def _fault(line: str, words: list[str], counted: set[str]) -> str:
    """What mpirun would refuse in a line, and how to mend it; empty if nothing. ``counted`` are hosts with slots."""
    if "\r" in line:
        return "it ends as on Windows (CR LF), which mpirun refuses: dos2unix, or sed -i 's/\\r//' the file"
    strange = next(
        (letter for letter in line if not (letter.isascii() and (letter.isprintable() or letter == "\t"))), ""
    )
    if strange:
        return f"it has the letter {strange!r}, which mpirun refuses: names are plain ASCII, between them spaces"
    for word in words[1:]:
        key, given, value = word.partition("=")
        close = get_close_matches(key.lower(), SLOTS, 1)
        if key in SLOTS:
            if not value.isdigit() or not int(value):
                return f"{word} gives no number of slots: slots=N with N from 1 up is wanted"
        elif close:
            return f"mpirun refuses {word}: did you mean {close[0]}=N?"
        elif not given:
            return f"mpirun refuses {word} behind {words[0]}: one host a line is wanted, like {words[0]} slots=2"
    if any(word.startswith("slots=") for word in words[1:]):
        if words[0] in counted:
            return f"{words[0]} has slots= for the second time, which mpirun refuses: one line with the sum is wanted"
        counted.add(words[0])
    return (
        f"{words[0]} is no name of a host: like {words[0].partition('=')[0]} slots=2"
        if "=" in "".join(words[:1])
        else ""
    )


def ask_hosts(hosts: list[str], by: Sequence[str] = SSH) -> dict[str, str]:
    """For each host, why a command cannot be started there by ssh; empty if it can. All at once, within 20 s.

    ``by`` may be ``SRUN`` instead. Raises MpiconvError where there is no such program.
    """
    with ThreadPoolExecutor(len(hosts)) as pool:
        return dict(zip(hosts, pool.map(lambda host: _ask(host, by), hosts), strict=True))


def _ask(host: str, by: Sequence[str]) -> str:
    if host in LOCAL or host.partition(".")[0] == socket.gethostname().partition(".")[0]:
        return ""
    try:
        done = subprocess.run([*by, host, "true"], capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except FileNotFoundError:
        raise MpiconvError(
            f"there is no {by[0]} here, by which mpirun starts ranks on other hosts: install it"
        ) from None
    except subprocess.TimeoutExpired:
        return f"no answer within {ANSWER_S} s"
    said = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else said[-1] if said else f"{by[0]} ended with status {done.returncode}"
