"""Models, weights files, tracing, pictures."""

from __future__ import annotations

import json
import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import mpiconv
from mpiconv.data.pictures import RandomPictures, folder_pictures, read_picture, to_tensor
from mpiconv.errors import ModelError, MpiconvError, UsageError
from mpiconv.graph.trace import trace
from mpiconv.models import REGISTRY, Info, info_of
from tests.conftest import PICTURES

# parameters of torchvision's models with 1000 classes
TORCHVISION_PARAMETERS = {
    "alexnet-torchvision": 61100840,
    "vgg11": 132863336,
    "vgg13": 133047848,
    "vgg16": 138357544,
    "vgg19": 143667240,
}


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_flops_and_parameters_agree_with_torch(name):
    entry = REGISTRY[name]
    with torch.device("meta"):
        model = entry.build(10).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, *entry.info.input_shape))
    graph = trace(model, entry.info.input_shape).graph
    assert sum(unit.flops for unit in graph.units) == counter.get_total_flops()
    named = dict(model.named_parameters())
    parameters = sum(param.size for unit in graph.units for param in unit.params if param.key in named)
    assert parameters == sum(p.numel() for p in named.values())


@pytest.mark.parametrize(("name", "count"), TORCHVISION_PARAMETERS.items())
def test_torchvision_names_and_sizes(name, count):
    with torch.device("meta"):
        model = REGISTRY[name].build(1000)
    assert sum(p.numel() for p in model.parameters()) == count
    names = set(model.state_dict())
    assert {"features.0.weight", "features.0.bias", "classifier.6.weight"} <= names or "classifier.4.weight" in names
    kinds = {key.split(".")[0] for key in names}
    assert kinds == {"features", "classifier"}


def test_random_weights_depend_on_the_seed_alone():
    a, b, c = (mpiconv.load_model("alexnet", num_classes=3, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert not torch.equal(a.features[0].weight, c.features[0].weight)


@pytest.mark.parametrize("ending", [".pth", ".safetensors", "-legacy.pth", "-module.pth", "-wrapped.pth", "-half.pth"])
def test_weights_files(ending, tmp_path):
    model = mpiconv.load_model("digits")
    state, path = model.state_dict(), tmp_path / f"w{ending}"
    if ending == ".safetensors":
        save_file(state, path, {"classes": json.dumps(list("abcdefghij"))})
    elif ending == "-legacy.pth":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif ending == "-module.pth":
        torch.save({f"module.{k}": v for k, v in state.items()}, path)
    elif ending == "-wrapped.pth":
        torch.save({"state_dict": state, "epoch": 3}, path)
    elif ending == "-half.pth":
        torch.save({k: v.half() for k, v in state.items()}, path)
    else:
        torch.save(state, path)
    loaded = mpiconv.load_model("digits", path)
    tolerance = 1e-3 if "half" in ending else 0
    for key, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.allclose(tensor, state[key], atol=tolerance, rtol=tolerance)
    assert loaded.info.label(1) == ("b" if ending == ".safetensors" else "class 1")


def test_classes_come_from_the_weights(tmp_path):
    torch.save(mpiconv.load_model("digits", num_classes=7).state_dict(), tmp_path / "w.pth")
    model = mpiconv.load_model("digits", tmp_path / "w.pth")
    assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 7)
    with pytest.raises(ModelError, match=r"classifier\.3\.weight has shape \(7, 64\).*wants \(4, 64\).*--classes 7"):
        mpiconv.load_model("digits", tmp_path / "w.pth", num_classes=4)


class Bomb:
    def __reduce__(self):
        return (print, ("a pickle was executed",))


def test_bad_weights_are_refused(tmp_path, capsys):
    (tmp_path / "garbage.pth").write_bytes(b"garbage")
    (tmp_path / "garbage.safetensors").write_bytes(b"garbage")
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps(Bomb()))
    torch.save([1, 2], tmp_path / "list.pth")
    state = mpiconv.load_model("digits").state_dict()
    torch.save({k: v for k, v in state.items() if k != "features.3.bias"}, tmp_path / "less.pth")
    torch.save({**state, "surplus": torch.zeros(1)}, tmp_path / "more.pth")
    torch.save({**state, "features.3.bias": torch.zeros(5)}, tmp_path / "other.pth")
    for name, word in [
        ("garbage.pth", "holds no weights"),
        ("garbage.safetensors", "no safetensors"),
        ("bomb.pth", "holds no weights"),
        ("list.pth", "holds no weights"),
        ("missing.pth", "No such file"),
        ("less.pth", r"has no features\.3\.bias"),
        ("more.pth", "has surplus"),
        ("other.pth", r"features\.3\.bias has shape \(5,\).*wants \(32,\)"),
    ]:
        with pytest.raises(ModelError, match=word) as caught:
            mpiconv.load_model("digits", tmp_path / name)
        assert name in str(caught.value)
    assert "executed" not in capsys.readouterr().out


def test_unknown_models():
    with pytest.raises(UsageError, match=r"'alexnt'.*did you mean 'alexnet'"):
        mpiconv.load_model("alexnt")
    with pytest.raises(UsageError, match=r"no model 'nowhere:net'"):
        mpiconv.load_model("nowhere:net")
    with pytest.raises(UsageError, match=r"OrderedDict, a torch\.nn\.Module is wanted"):
        mpiconv.load_model("collections:OrderedDict")


def test_the_own_model_of_the_readme_is_split():
    text = (PICTURES.parent.parent / "README.md").read_text()
    source = re.search(r"cat > mynet\.py <<'END'\n(.*?)\nEND\n", text, re.S)[1]
    names: dict[str, object] = {}
    exec(source, names)
    graph = trace(names["make"](), (3, 64, 64)).graph
    assert graph.unit_names == ("conv1", "conv2", "adaptive1", "head")


def test_lazy_parameters_are_named():
    with pytest.raises(ModelError, match=r"0\.weight has no shape yet \(a Lazy module\)"):
        mpiconv.load_model("tests.own_model:lazy")


def test_own_model():
    model = mpiconv.load_model("tests.own_model:make", seed=5)
    again = mpiconv.load_model("tests.own_model:make", seed=5)
    assert model.info.name == "make"
    assert model.info.input_shape == (4, 224, 224)
    assert torch.equal(model[0].weight, again[0].weight)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x


class TwoInputs(nn.Module):
    def forward(self, x, y):
        return x + y


@pytest.mark.parametrize(
    ("model", "word"),
    [
        pytest.param(Branching(), r"Branching cannot be traced at test_nets\.py:\d+", id="control-flow"),
        pytest.param(TwoInputs(), "takes 2 inputs", id="two-inputs"),
        pytest.param(nn.Sequential(nn.Conv2d(3, 1, 1)), "layer 0 wants 3 channels", id="channels"),
        pytest.param(nn.Sequential(nn.Conv2d(1, 1, 20)), "layer 0: its kernel does not fit", id="too-small"),
    ],
)
def test_what_cannot_be_split_is_named(model, word):
    with pytest.raises(ModelError, match=word):
        trace(model, (1, 8, 8))


def test_what_nothing_spatial_follows_becomes_the_head():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.LogSoftmax(2), nn.ReLU(), nn.Flatten(), nn.Softmax(1)).eval()
    traced = trace(model, (1, 8, 8))
    assert traced.graph.unit_names == ("conv1", "head")
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(traced.modules["head"](model[0](x)), model(x))


def test_unit_names_are_unique_and_tell_the_layer():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(1, 4, 3, padding=1)
            self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))

        def forward(self, x):
            x = self.stem(x)
            x = x + self.body(x)
            return self.body(x)

    names = trace(Net(), (1, 8, 8)).graph.unit_names
    assert names == ("stem", "conv2", "conv3", "add", "conv4", "conv5", "head")


def test_digits_read_the_held_out_scans():
    """The shipped weights are as good on held-out scans as their metadata says."""
    from sklearn.model_selection import train_test_split

    from mpiconv.models.weights import read_weights

    path = next((PICTURES.parent.parent / "mpiconv/models/pretrained").glob("digits.*"))
    _, metadata = read_weights(path)
    images, digits = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    _, held_out, _, answers = train_test_split(pixels, digits, test_size=0.2, random_state=0, stratify=digits)
    model = mpiconv.load_model("digits")
    x = torch.stack([to_tensor(Image.fromarray(picture), model.info) for picture in held_out])
    right = (model(x).argmax(1).numpy() == answers).mean()
    assert int(metadata["held_out_pictures"]) == len(held_out) == 360
    assert right == pytest.approx(float(metadata["held_out_accuracy"]), abs=5e-5)
    assert right > 0.98


def test_pictures(tmp_path):
    info = Info("x", (3, 20, 30), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 30:, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "b.png")
    Image.fromarray(pixels).convert("L").save(tmp_path / "a.jpg")
    (tmp_path / "note.txt").write_text("no picture")
    tensor = read_picture(tmp_path / "b.png", info)
    assert tensor.shape == (3, 20, 30)
    assert tensor[0, 5, 2] == -2
    assert tensor[0, 5, 28] == 2
    assert tensor[1].max() == -2
    found = folder_pictures(tmp_path, info)
    assert [re.split(r"[\\/]", found.name(i))[-1] for i in range(len(found))] == ["a.jpg", "b.png"]
    broken = tmp_path / "cut.png"
    broken.write_bytes((tmp_path / "b.png").read_bytes()[:60])
    with pytest.raises(MpiconvError, match=r"cut\.png is no picture or a broken one"):
        read_picture(broken, info)
    with pytest.raises(MpiconvError, match=r"none\.png: No such file"):
        read_picture(tmp_path / "none.png", info)
    with pytest.raises(UsageError, match="reads 4 channels"):
        read_picture(tmp_path / "b.png", Info("x", (4, 2, 2)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no pictures in"):
        folder_pictures(tmp_path / "empty", info)


def test_random_pictures_depend_on_seed_and_index():
    info = Info("x", (3, 4, 4))
    a, b = RandomPictures(5, 0, info), RandomPictures(9, 0, info)
    assert torch.equal(a.load(3), b.load(3))
    assert not torch.equal(a.load(3), a.load(4))
    assert not torch.equal(a.load(3), RandomPictures(5, 1, info).load(3))


def test_a_timm_model_says_itself_how_it_wants_its_pictures():
    model = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 4, 3))
    assert info_of(model).input_shape == (48, 224, 224)
    model.default_cfg = {"input_size": (3, 160, 128), "mean": (0.5, 0.4, 0.3), "std": (1, 1, 1)}
    info = info_of(model)
    assert info.input_shape == (3, 160, 128)
    assert info.mean == (0.5, 0.4, 0.3)
    assert info.std == (1, 1, 1)
    model.default_cfg = {"input_size": "large", "mean": (0.5,), "std": None}
    assert info_of(model).input_shape == (48, 224, 224)
    assert len(info_of(model).mean) == 48
