"""Weights as people have them: below entries and prefixes, of odd formats, not finite, of a file that changes."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from mpi4py import MPI
from safetensors.torch import save_file
from torch import nn

import mpiconv
from mpiconv.errors import ModelError, UsageError
from mpiconv.graph.trace import trace
from mpiconv.models.names import fit_names
from mpiconv.models.slices import WeightsFile, fingerprint, rows_of
from mpiconv.models.weights import assign_weights, read_weights, take_names
from tests.conftest import mpiconv as run


@pytest.fixture(scope="module")
def state():
    return mpiconv.load_model("digits").state_dict()


def below(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def other(state):
    return {name: tensor + 1 for name, tensor in state.items()}


KEPT = [
    pytest.param(lambda s: below("_orig_mod.", s), "below _orig_mod.", id="compiled"),
    pytest.param(lambda s: below("module._orig_mod.module.", s), "below module._orig_mod.module.", id="nest"),
    pytest.param(lambda s: {"model_state_dict": s, "epoch": 3}, "below model_state_dict.", id="entry"),
    pytest.param(lambda s: {"state_dict": below("model.", s), "lr": 0.1}, "below state_dict.model.", id="lightning"),
    pytest.param(lambda s: {"net": {"ema": below("module.", s)}}, "below net.ema.module.", id="entries-of-entries"),
    pytest.param(
        lambda s: {"ema": other(s), "model": s, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
        "below model., not those below ema.",
        id="average-beside",
    ),
    pytest.param(lambda s: {"state_dict_ema": s, "model": {}}, "below state_dict_ema.", id="average-alone"),
    pytest.param(lambda s: below("learner.", s), "below learner.", id="a-prefix-that-all-have"),
    pytest.param(
        lambda s: {n.replace("features.", "features.module."): t for n, t in s.items()},
        "took features.module.0.weight",
        id="parallel-features",
    ),
    pytest.param(
        lambda s: {"state_dict": below("model.", s) | {"state_dict.loss.weight": torch.ones(2)}}, "", id="loss"
    ),
]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(("keep", "note"), KEPT)
def test_weights_load_from_where_they_are(keep, note, legacy, state, tmp_path):
    torch.save(keep(state), tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    model = mpiconv.load_model("digits", tmp_path / "w.pth")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert note in model.info.note
    assert str(tmp_path / "w.pth") in model.info.note


def test_the_models_own_prefix_is_not_taken_from_it():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
            self.module = nn.Conv2d(4, 4, 1)

    outer = Outer()
    for prefix in ("", "module.", "model."):
        found, names = take_names(below(prefix, outer.state_dict()), outer.state_dict())
        assert found.keys() == outer.state_dict().keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in outer.state_dict().items())
        assert bool(names.note) == bool(prefix)


def test_layers_that_look_alike_are_not_taken_for_the_model():
    """A model of one convolution, and a file of a network with several."""
    stored = ["features.0.weight", "features.0.bias", "features.3.weight"]
    assert fit_names(stored, ["weight", "bias"]).stored == {name: name for name in stored}


def test_old_files_have_no_counters_of_batches(tmp_path):
    model = mpiconv.load_model("vgg11_bn", seed=3)
    old = {name: tensor for name, tensor in model.state_dict().items() if "num_batches" not in name}
    with torch.device("meta"):
        empty = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assign_weights(
        empty,
        {f"{n[9:]}": old[n][:4] for n in ("features.0.weight", "features.0.bias")}
        | {n[9:]: old[n][:4] for n in old if n.startswith("features.1.")},
        "old",
    )
    assert int(empty[1].num_batches_tracked) == 0
    assert torch.equal(empty[1].running_var, old["features.1.running_var"][:4])


def changed(state, **tensors):
    return {**state, "features.3.weight": tensors.get("to", state["features.3.weight"])}


FORMATS = [
    pytest.param(lambda t: t.to(torch.int16), "is int16", id="int16"),
    pytest.param(lambda t: t > 0, "is bool", id="bool"),
    pytest.param(lambda t: t.to(torch.complex64), "is complex", id="complex"),
    pytest.param(lambda t: t.to(torch.float8_e5m2fnuz), "is float8_e5m2fnuz", id="float8"),
    pytest.param(lambda t: t.to_sparse_csr() if t.dim() == 2 else t.to_sparse(), "is sparse", id="sparse"),
    pytest.param(lambda t: t.to("meta"), "is without numbers", id="meta"),
]


@pytest.mark.parametrize(("make", "words"), FORMATS)
def test_formats_that_are_no_weights(make, words, state, tmp_path):
    torch.save(changed(state, to=make(state["features.3.weight"])), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=rf"features\.3\.weight {words}.* in .*w\.pth: float32, float16, bfloat16 or"):
        mpiconv.load_model("digits", tmp_path / "w.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_weights_that_are_not_finite(value, ending, state, tmp_path):
    weight = state["features.3.weight"].clone()
    weight.view(-1)[[7, 9]] = value
    path = tmp_path / f"w.{ending}"
    (torch.save if ending == "pth" else save_file)(changed(state, to=weight), path)
    with pytest.raises(ModelError, match=r"features\.3\.weight has 2 of 4608 values .* --allow-nonfinite"):
        mpiconv.load_model("digits", path)
    model = mpiconv.load_model("digits", path, allow_nonfinite=True)
    x = torch.randn(1, 1, 32, 32)
    net = mpiconv.distribute(model, mpiconv.make_plan(model, tuple(x.shape), "kpm"), MPI.COMM_SELF)
    torch.testing.assert_close(net(x), model(x), equal_nan=True)
    assert not torch.isfinite(model(x)).all()


def test_large_weights_are_finite(state):
    """Their sum is not, each of them is."""
    model = nn.Sequential(nn.Conv2d(1, 64, 3))
    assign_weights(model, {"0.weight": torch.full((64, 1, 3, 3), 3e38), "0.bias": torch.zeros(64)}, "w")
    double = {"0.weight": torch.full((64, 1, 3, 3), 1e39, dtype=torch.float64), "0.bias": torch.zeros(64)}
    with pytest.raises(ModelError, match=r"0\.weight has 576 of 576 values"):  # beyond float32
        assign_weights(model, double, "w")


def test_the_command_goes_on_where_it_is_told_to(state, tmp_path):
    weight = state["features.3.weight"].clone()
    weight[0] = torch.nan
    torch.save({"state_dict": changed(state, to=weight)}, tmp_path / "w.pth")
    words = ["run", "--model", "digits", "--repeats", 1, "--weights", tmp_path / "w.pth"]
    ended = run(0, *words)
    assert (ended.status, len(ended.errors)) == (1, 1)
    assert "features.3.weight has 144 of 4608 values" in ended.errors[0]
    for command in (words, ["plan", "--model", "digits", "--weights", tmp_path / "w.pth"]):
        ended = run(0, *command, "--allow-nonfinite")
        assert ended.status == 0, ended.err
        assert "w.pth: took the tensors below state_dict." in ended.err


def test_other_classes_are_named(state, tmp_path, capfd):
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=0.1)}, tmp_path / "w.pth")
    torch.save(nn.Conv2d(3, 4, 3), tmp_path / "module.pth")
    torch.save({"model": state, "when": Path("x")}, tmp_path / "path.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "proto4.pth").write_bytes(pickle.dumps(argparse.Namespace(), 4))
    for name, words in (
        ("w.pth", "there is argparse.Namespace in it"),
        ("module.pth", "torch.nn.modules.conv.Conv2d"),
        ("path.pth", "pathlib"),
        ("proto4.pth", "a global of protocol 4"),
    ):
        with pytest.raises(ModelError, match=words.replace(".", r"\.")) as caught:
            mpiconv.load_model("digits", tmp_path / name)
        said = str(caught.value)
        assert "save the state_dict by itself" in said
        assert "\x1b" not in said
        assert "weights_only" not in said


def repacked(data: bytes, compression: int, size: int) -> bytes:
    """The archive with its entries packed anew, and ``size`` zeros more in one of them."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(made, "w", compression) as new:
        for entry in archive.infolist():
            new.writestr(entry.filename, archive.read(entry) + bytes(size if "data/0" in entry.filename else 0))
    return made.getvalue()


def nested(levels: int, *, key: bool) -> bytes:
    """A pickle of tuples of tuples, of which the last would have 2^levels members; ``key``: in a dictionary."""
    body = b"".join(b"q%ch%ch%c\x86" % (i, i, i) for i in range(levels))
    return b"\x80\x02}" + b")" + body + (b"K\x01s." if key else b"0.")


BOMBS = [
    pytest.param(nested(60, key=True), "tuples of tuples without end", id="tuples"),
    pytest.param(b"\x80\x02}r\xff\xff\xff\x7f.", "numbers its objects at random", id="memo"),
    pytest.param(b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x10\x85R.", "builtins.bytearray", id="bytes"),
    pytest.param(b"\x80\x02" + b"]" * 1100000 + b".", "more than 1048576 objects", id="lists"),
    pytest.param(b"\x80\x02)" + b"\x85" * 500000 + b".", "tuples of tuples without end", id="deep"),
]


@pytest.mark.parametrize(("data", "words"), BOMBS)
@pytest.mark.parametrize("archive", [False, True], ids=["bare", "zip"])
def test_pickle_bombs(data, words, archive, tmp_path):
    if archive:
        with zipfile.ZipFile(tmp_path / "w.pth", "w") as file:
            file.writestr("w/data.pkl", data)
            file.writestr("w/version", "3")
    else:
        (tmp_path / "w.pth").write_bytes(data)
    with pytest.raises(ModelError, match=rf"w\.pth holds no weights.*{words}"):
        read_weights(tmp_path / "w.pth")


def test_keys_and_names_that_are_no_names(state, tmp_path):
    torch.save({torch.ones(3): state, (1, 2): state, "state_dict": state}, tmp_path / "w.pth")
    assert mpiconv.load_model("digits", tmp_path / "w.pth").info.note.endswith("below state_dict.")
    for name in ("\x1b[31mred", "a\nb", "a" * 1000):
        torch.save({**state, name: torch.ones(1)}, tmp_path / "w.pth")
        with pytest.raises(
            ModelError, match=r"w\.pth holds no weights: a tensor in it has a name that cannot be printed"
        ):
            mpiconv.load_model("digits", tmp_path / "w.pth")
    torch.save(
        {name: tensor[:0] if "classifier.3" in name else tensor for name, tensor in state.items()}, tmp_path / "w.pth"
    )
    with pytest.raises(ModelError, match=r"classifier\.3\.weight has shape \(0, 64\)"):
        mpiconv.load_model("digits", tmp_path / "w.pth")


def test_archives_that_unpack_to_more(state, tmp_path):
    torch.save(state, tmp_path / "w.pth")
    data = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "bomb.pth").write_bytes(repacked(data, zipfile.ZIP_DEFLATED, 10**8))
    with pytest.raises(ModelError, match=r"bomb\.pth holds no weights: it unpacks to more bytes than it has"):
        read_weights(tmp_path / "bomb.pth")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as file:
        file.writestr("script/data.pkl", pickle.dumps({}, 2))
        file.writestr("script/constants.pkl", pickle.dumps((), 2))
    with pytest.raises(ModelError, match=r"script\.pt holds no weights: it is a TorchScript archive"):
        read_weights(tmp_path / "script.pt")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "model.module.", "ema."])
def test_slices_are_found_below_a_prefix_too(prefix, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3)).eval()
    save_file(below(prefix, model.state_dict()), tmp_path / "w.safetensors")
    params = [param for unit in trace(model, (3, 9, 9)).graph.units for param in unit.params]
    file = WeightsFile(tmp_path / "w.safetensors", [param.key for param in params])
    for param in params:
        assert torch.equal(file.rows(param, 1, 4), rows_of(param, model.state_dict()[param.key])[1:4])


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_pipes_are_not_waited_for(ending, tmp_path):
    os.mkfifo(tmp_path / f"w.{ending}")
    with pytest.raises(ModelError, match=rf"cannot read the weights .*w\.{ending}: it is no regular file"):
        read_weights(tmp_path / f"w.{ending}")


def test_slices_of_a_file_with_several_models_are_refused(state, tmp_path):
    save_file(below("model.", state) | below("ema.", other(state)), tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"several times, below model\. and below ema\.: --weights-on root"):
        WeightsFile(tmp_path / "w.safetensors", state)
    assert torch.equal(
        mpiconv.load_model("digits", tmp_path / "w.safetensors").features[3].weight, state["features.3.weight"]
    )


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_file_that_changes_later_changes_nothing(ending, state, tmp_path):
    path = tmp_path / f"w.{ending}"
    (torch.save if ending == "pth" else save_file)(state, path)
    model = mpiconv.load_model("digits", path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.truncate(5)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_file_that_changes_while_it_is_read_is_named(state, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    file = WeightsFile(path)
    save_file(other(state), path)
    with pytest.raises(ModelError, match=r"w\.safetensors was changed while its weights were read"):
        file.read("features.3.weight")


def test_fingerprints_are_of_all_bytes_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "w"
    path.write_bytes(bytes(3 << 20))
    first = fingerprint(path)
    assert not list((tmp_path / "cache").rglob("*")), "its times do not tell it from one written right after"
    times = path.stat()
    with path.open("r+b") as file:
        file.seek((1 << 20) + 70000)
        file.write(b"1")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprint(path) != first, "between all samples, and under the same size and time"
    monkeypatch.setattr("mpiconv.models.slices.SETTLED_NS", 0)
    wanted = fingerprint(path)
    (kept,) = (entry for entry in (tmp_path / "cache").rglob("*") if entry.is_file())
    kept.write_text(kept.read_text()[:-3] + "abc")
    assert fingerprint(path) == wanted[:-3] + "abc", "read anew although nothing has changed"
    path.write_bytes(path.read_bytes())
    assert fingerprint(path) == wanted
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert fingerprint(path) == wanted


OWN = [
    pytest.param("cancelled", ModelError, r"broken_models\.py:\d+: Cancelled: stopped", id="base-exception"),
    pytest.param("divides", ModelError, r"broken_models\.py:18: ZeroDivisionError", id="its-own-line"),
    pytest.param(
        "within_torch", ModelError, r"broken_models\.py:22: ValueError: in_channels", id="called-from-its-line"
    ),
    pytest.param("leaves", ModelError, r"broken_models\.py:26: SystemExit: 3", id="exit"),
    pytest.param("nothing", UsageError, r"gave a NoneType, .* wanted \(does it end without return\?\)", id="none"),
    pytest.param("number", UsageError, r"has a int of that name, a callable", id="no-callable"),
    pytest.param("missing", UsageError, r"broken_models\.py has none of that name", id="no-such-name"),
    pytest.param("unset", ModelError, r"1\.running_var has 2 of 4 values .* in the model tests", id="nan"),
]


@pytest.mark.parametrize(("name", "kind", "words"), OWN)
def test_mistakes_in_a_model_of_ones_own(name, kind, words):
    with pytest.raises(kind, match=words):
        mpiconv.load_model(f"tests.broken_models:{name}")


def test_interrupts_are_no_mistakes():
    with pytest.raises(KeyboardInterrupt):
        mpiconv.load_model("tests.broken_models:interrupted")
    assert len(mpiconv.load_model("tests.broken_models:made").state_dict()) == 2


@pytest.mark.parametrize(
    ("source", "words"),
    [
        pytest.param(
            "import torch\nimport nosuchlibrary\n", r"bad\.py:2: ModuleNotFoundError: .*nosuchlibrary", id="import"
        ),
        pytest.param("from torch import nosuchname\n", r"bad\.py:1: ImportError: cannot import name", id="name"),
        pytest.param("def make(:\n", r"bad\.py:1: SyntaxError", id="syntax"),
        pytest.param("\n\nx = 1\n  y = 2\n", r"bad\.py:4: IndentationError", id="indentation"),
        pytest.param("x = b'\0'\n", r"bad.*: (SyntaxError|ValueError)", id="nul"),
        pytest.param("class Stop(BaseException): pass\nraise Stop\n", r"bad\.py:2: Stop$", id="base-exception"),
    ],
)
def test_mistakes_in_the_file_of_a_model(source, words, tmp_path, monkeypatch):
    (tmp_path / "bad.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bad", raising=False)
    with pytest.raises(ModelError, match=words):
        mpiconv.load_model("bad:make")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mymodel.py:make", "not its file: --model mymodel:make"),
        ("nets/mymodel:make", "not its file: --model nets.mymodel:make, or in the folder nets --model mymodel:make"),
        ("../nets/mymodel.py:", "not its file: in the folder ../nets --model mymodel:make"),
        ("mymodel:", "package.module:callable is wanted"),
        ("my-model:make", "package.module:callable is wanted"),
        ("nowhere.net:make", "there is no module nowhere"),
    ],
)
def test_names_of_models_that_are_none(name, words):
    with pytest.raises(UsageError, match=words.replace(".", r"\.")):
        mpiconv.load_model(name)
