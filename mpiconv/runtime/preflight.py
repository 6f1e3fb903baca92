"""Can mpirun reach the hosts of a hostfile? Asked before it is started, by ssh, as mpirun will do. Needs no MPI."""

from __future__ import annotations

import re
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mpiconv.errors import MpiconvError

CONNECT_S = 5
ANSWER_S = 15
SSH = ("ssh", "-n", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}")
LOCAL = ("localhost", "127.0.0.1", "::1")


def read_hosts(path: str | Path) -> list[str]:
    """The hosts in a hostfile of Open MPI (``host slots=N``) or MPICH (``host:N``), each once.

    Raises MpiconvError where the file cannot be read or names no host.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise MpiconvError(f"cannot read the hostfile {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise MpiconvError(f"{path} is no hostfile: a text with a host on each line is wanted") from None
    words = [line.partition("#")[0].split() for line in lines]
    hosts = [re.sub(r":\d+$", "", found[0]) if found[0].count(":") == 1 else found[0] for found in words if found]
    if not hosts:
        raise MpiconvError(f"the hostfile {path} names no host")
    return list(dict.fromkeys(hosts))


def ask_hosts(hosts: list[str]) -> dict[str, str]:
    """For each host, why a command cannot be started there by ssh; empty if it can. All at once, within 20 s.

    Raises MpiconvError where there is no ssh.
    """
    with ThreadPoolExecutor(len(hosts)) as pool:
        return dict(zip(hosts, pool.map(_ask, hosts), strict=True))


def _ask(host: str) -> str:
    if host in LOCAL or host.partition(".")[0] == socket.gethostname().partition(".")[0]:
        return ""
    try:
        done = subprocess.run([*SSH, "--", host, "true"], capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except FileNotFoundError:
        raise MpiconvError("there is no ssh here, by which mpirun starts ranks on other hosts: install it") from None
    except subprocess.TimeoutExpired:
        return f"no answer within {ANSWER_S} s"
    said = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else said[-1] if said else f"ssh ended with status {done.returncode}"
