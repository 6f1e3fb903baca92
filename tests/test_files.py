"""Files are written whole or not at all, never in place of a device; what died half written goes at the next run."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import signal
import socket
import stat
import subprocess
import sys

import pytest

from mpiconv import files
from mpiconv.errors import MpiconvError
from mpiconv.files import ENDING, check_writable, replaced, write_csv, write_text
from mpiconv.text import encodable, safe_text, to_json
from tests.conftest import ROOT, clean_environment

ODD_NAME = os.fsdecode(b"caf\xe9")


def write(path, content=b"new"):
    with replaced(path) as file:
        file.write(content)


def other_process(*words, wait="ready"):
    """A Python process that has said that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", *map(str, words)],
        cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, env=clean_environment(),
    )  # fmt: skip
    assert process.stdout.readline() == f"{wait}\n"
    return process


HALF = (
    "import sys; from mpiconv.files import replaced\n"
    "with replaced(sys.argv[1]) as file:\n"
    "    file.write(b'half'); file.flush(); print('ready', flush=True); input()\n"
)


@pytest.mark.parametrize("name", ["a.h5", ODD_NAME, "x" * 255, "a b", ".hidden", "[a]*?.csv"])
def test_a_file_replaces_the_one_before(tmp_path, name):
    path = tmp_path / "new folder" / name
    for content in (b"one", b"two"):
        write(path, content)
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == [name]


def fail_half_way(path, error):
    """Write, and run into an error."""
    with replaced(path) as file:
        file.write(b"half")
        raise error


@pytest.mark.parametrize(
    ("error", "kind", "word"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), MpiconvError, "cannot write .*f: No space left on device"),
        (RuntimeError("short write"), MpiconvError, "cannot write .*f: short write"),
        (KeyError("x"), KeyError, "x"),
    ],
)
def test_at_an_error_nothing_changes(tmp_path, error, kind, word):
    path = tmp_path / "f"
    path.write_text("before")
    with pytest.raises(kind, match=word):
        fail_half_way(path, error)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_at_the_last_moment(tmp_path, monkeypatch, call):
    path = tmp_path / "f"
    path.write_text("before")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(MpiconvError, match=f"cannot write {path}: No space left on device"):
        write(path)
    monkeypatch.undo()
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["f"]


def test_file_and_folder_are_synced_before_and_after_the_renaming(tmp_path, monkeypatch):
    done = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda h: (done.append(stat.S_ISDIR(os.fstat(h).st_mode)), sync(h)))
    monkeypatch.setattr(files.os, "replace", lambda a, b: (done.append("renamed"), rename(a, b)))
    write(tmp_path / "f")
    assert done == [False, "renamed", True]


@pytest.mark.parametrize(
    ("make", "word"),
    [
        pytest.param(os.mkdir, "a folder, name a file in it", id="folder"),
        pytest.param(os.mkfifo, "a pipe", id="fifo"),
        pytest.param(lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "a socket", id="socket"),
        pytest.param(lambda path: os.symlink("/dev/null", path), "a device", id="link-to-device"),
        pytest.param(lambda path: os.symlink("/dev/full", path), "a device", id="link-to-full"),
        pytest.param(lambda path: os.symlink(path.parent, path), "a folder", id="link-to-folder"),
        pytest.param(lambda path: os.symlink(path, path), "symbolic links", id="link-to-itself"),
        pytest.param(lambda path: os.symlink("nowhere", path), "a link to .*, which is not there", id="dangling"),
    ],
)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_what_is_no_file_is_refused(tmp_path, make, word, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x"
    make(path) if "socket" not in word else make("x")
    before = os.lstat(path)
    for attempt in (check_writable, write):
        with pytest.raises(MpiconvError, match=f"cannot write .*x: .*{word}"):
            attempt(path)
    assert os.lstat(path)[:3] == before[:3]
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "a\0b", "x" * 300, f"{__file__}/below"])
def test_no_file_can_be_there(path):
    with pytest.raises(MpiconvError, match="cannot write"):
        check_writable(path)
    with pytest.raises(MpiconvError, match="cannot write"):
        write(path)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "real.h5", tmp_path / "latest.h5"
    target.write_text("before")
    link.symlink_to(target)
    write(link)
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path / "there") == ["real.h5"]


def test_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "new")
    finally:
        os.umask(before)
    (tmp_path / "old").write_text("")
    (tmp_path / "old").chmod(0o604)
    write(tmp_path / "old")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"new": 0o640, "old": 0o604}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_may_not_be_written_stays(tmp_path):
    path = tmp_path / "f"
    path.write_text("before")
    path.chmod(0o444)
    with pytest.raises(MpiconvError, match=r"cannot write .*f: Permission denied"):
        check_writable(path)


def test_a_killed_runs_file_goes_at_the_next_one_and_a_living_ones_stays(tmp_path):
    path = tmp_path / "r.h5"
    dead, alive, other = (other_process(HALF, target) for target in (path, path, tmp_path / "other.h5"))
    try:
        for process in (dead, other):
            process.kill()
            process.wait()
        assert len(os.listdir(tmp_path)) == 3
        check_writable(path)
        left = os.listdir(tmp_path)
        assert sorted(name.split(".")[1] for name in left) == ["other", "r"], "of its own target, the dead one's alone"
        write(path)
        alive.stdin.write("\n")
        alive.stdin.close()
        assert alive.wait(20) == 0
        assert path.read_bytes() == b"half", "the last one wins"
        assert [name for name in os.listdir(tmp_path) if name.startswith(".r")] == []
    finally:
        for process in (dead, alive, other):
            process.kill()
            process.wait()
            process.stdout.close()
            process.stdin.close()


def test_what_only_looks_like_a_temporary_file_stays(tmp_path):
    names = [f".f.{'0' * 15}{ENDING}", ".f.tmp", f".g.{'0' * 16}{ENDING}", "f.bak"]
    for name in names:
        (tmp_path / name).write_text("")
    (tmp_path / f".f.{'1' * 16}{ENDING}").symlink_to(tmp_path / "f.bak")
    write(tmp_path / "f")
    assert {*names, "f"} <= set(os.listdir(tmp_path))


def test_names_cannot_be_guessed(tmp_path):
    with replaced(tmp_path / "f") as one, replaced(tmp_path / "f") as other:
        assert one.name != other.name
        for file in (one, other):
            assert re.fullmatch(rf"\.f\.[0-9a-f]{{16}}{ENDING}", os.path.basename(file.name))
            assert str(os.getpid()) not in os.path.basename(file.name).split(".")


def test_sigterm_while_it_is_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "f"
    path.write_text("before")
    process = other_process(HALF, path)
    process.send_signal(signal.SIGTERM)
    process.wait()
    process.stdout.close()
    process.stdin.close()
    assert path.read_text() == "before"
    write(path)
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        (ODD_NAME, r"caf\xe9"),
        ("a\0b", r"a\x00b"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\ud800", r"\ud800"),
        ("two\nlines\t\N{SNOWMAN}", "two\nlines\t\N{SNOWMAN}"),
        ("\x85\x7f", r"\x85\x7f"),
    ],
)
def test_safe_text(text, safe):
    assert safe_text(text) == safe
    encodable(text).encode()
    assert json.loads(to_json({text: [text]})) == {safe: [safe]}


def test_json_has_null_for_what_is_no_number():
    found = to_json({"a": [math.nan, math.inf, -math.inf, 1.5], "b": (None, True, 2)})
    assert found == '{"a": [null, null, null, 1.5], "b": [null, true, 2]}'


def test_odd_text_is_written(tmp_path):
    write_text(tmp_path / "t", f"{ODD_NAME}\n")
    write_csv(tmp_path / "c", [{"a": ODD_NAME, "b": 1}])
    assert (tmp_path / "t").read_text() == "caf\\xe9\n"
    assert (tmp_path / "c").read_bytes() == b"a,b\r\ncaf\\xe9,1\r\n"
