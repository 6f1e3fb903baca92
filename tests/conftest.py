"""Helpers for tests that start ``mpiconv`` the way a user does."""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "scripts" / "pictures"


@dataclass
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.strip().startswith("mpiconv: error:")]

    @property
    def json(self) -> dict:
        return json.loads(self.out)


@cache
def script(name: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def own_folder() -> Path:
    """For the session files of this process's mpiruns: of two in one folder, one may end as the other begins there."""
    folder = Path(tempfile.mkdtemp(prefix="mpi"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def own_cache() -> Path:
    """In place of the user's cache folder, for all that this process starts."""
    return own_folder()


def clean_environment(**extra: str) -> dict[str, str]:
    """This environment without what an outer mpirun or SLURM put there."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "PMI_", "PRTE_", "SLURM_"))}
    keep |= {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe", "OMP_NUM_THREADS": "1"}
    keep["PRTE_MCA_prte_tmpdir_base"] = str(own_folder())
    if "XDG_CACHE_HOME" not in keep:
        keep.setdefault("MPICONV_CACHE", str(own_cache()))
    if os.geteuid() == 0:
        keep |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return keep | extra


def execute(command: list[str], *, timeout: float = 120, cwd: Path | None = None, **environment: str) -> Ended:
    """Run a command to its end."""
    begin = time.monotonic()
    done = subprocess.run(
        command,
        capture_output=True,
        check=False,
        text=True,
        timeout=timeout,
        env=clean_environment(**environment),
        cwd=cwd,
    )
    return Ended(done.returncode, done.stdout, done.stderr, time.monotonic() - begin)


def mpiconv(ranks: int, *words: object, timeout: float = 120, cwd: Path | None = None, **environment: str) -> Ended:
    """``mpiconv WORDS`` over so many ranks; without mpirun for 0."""
    launcher = ["mpirun", "-n", str(ranks)] if ranks else []
    command = [*launcher, sys.executable, "-m", "mpiconv", *map(str, words)]
    return execute(command, timeout=timeout, cwd=cwd, **environment)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def file_of(tmp_path_factory):
    """Cluster files of fast devices with links between them."""
    from tests.test_simulation import cluster

    folder = tmp_path_factory.mktemp("clusters")

    def file(devices: int, rate: float = 1e8) -> str:
        path = folder / f"{devices}-{rate:g}.toml"
        cluster(*[1.0] * devices, rate=rate).save(path)
        return str(path)

    return file
