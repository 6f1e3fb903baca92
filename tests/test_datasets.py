"""Data sets: CIFAR-10 in both formats, folders, the digits; what is cut, wrong or malicious is refused by name."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from mpiconv.data.cifar import read_batches
from mpiconv.data.datasets import LabelledPictures, Some, open_data, prepare
from mpiconv.errors import MpiconvError, UsageError
from mpiconv.models import Info
from tests import cifar
from tests.conftest import PICTURES


def everything(data):
    return [(data.load(i)[0].tolist(), data.load(i)[1]) for i in range(len(data))]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("old", [True, False], ids=["bytes-keys", "text-keys"])
def test_both_distributions_hold_the_same(tmp_path, old, protocol):
    cifar.write_binary(tmp_path / "a", 3)
    cifar.write_python(tmp_path / "b", 3, old=old, protocol=protocol)
    for part, count in (("train", 15), ("held-out", 3)):
        binary, python = (open_data(f"cifar10:{tmp_path / name}", part) for name in "ab")
        assert len(binary) == len(python) == count
        assert binary.about.classes == python.about.classes == tuple(cifar.NAMES)
        assert everything(binary) == everything(python)
    labels, pixels = cifar.pictures(3, 6)
    picture, label = binary.load(2)
    assert label == labels[2]
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, pixels[2].reshape(3, 32, 32))


def test_as_python_2_wrote_it(tmp_path):
    """The official files: read, and mapped rather than held in memory."""
    labels, pixels = cifar.pictures(7, 1)
    (tmp_path / "test_batch").write_bytes(cifar.python_2_batch(labels, pixels))
    (batch,), classes = read_batches(tmp_path, "held-out")
    assert classes == tuple(cifar.NAMES)
    assert np.array_equal(batch.labels, labels)
    assert np.array_equal(batch.pixels, pixels)
    assert isinstance(batch.pixels, np.memmap)


def cut(path, by):
    path.write_bytes(path.read_bytes()[:-by])


BINARY = [
    pytest.param(lambda d: cut(d / "data_batch_3.bin", 100), r"data_batch_3\.bin has 12192 bytes", id="cut"),
    pytest.param(
        lambda d: cut(d / "data_batch_3.bin", 3073), r"data_batch_3\.bin holds 3 pictures", id="a-record-less"
    ),
    pytest.param(lambda d: (d / "data_batch_5.bin").write_bytes(b""), r"data_batch_5\.bin has 0 bytes", id="empty"),
    pytest.param(
        lambda d: (d / "data_batch_1.bin").write_bytes(bytes(3074 * 4)), r"data_batch_1\.bin has", id="cifar-100"
    ),
    pytest.param(lambda d: (d / "data_batch_2.bin").unlink(), r"cannot read .*data_batch_2\.bin: No such", id="a-gap"),
    pytest.param(lambda d: (d / "batches.meta.txt").write_text("cat\ndog"), r"meta\.txt names 2 classes", id="classes"),
]


@pytest.mark.parametrize(("spoil", "message"), BINARY)
def test_binary_files_that_are_refused(tmp_path, spoil, message):
    spoil(cifar.write_binary(tmp_path, 4))
    with pytest.raises(MpiconvError, match=message):
        open_data(f"cifar10:{tmp_path}", "train")


def test_a_label_that_is_none(tmp_path):
    folder = cifar.write_binary(tmp_path, 4)
    (folder / "test_batch.bin").write_bytes(bytes(3073) + b"\x0a" + bytes(3072))
    with pytest.raises(MpiconvError, match=r"test_batch\.bin: picture 1 has the label 10"):
        open_data(f"cifar10:{tmp_path}", "held-out").load(1)


def test_official_sizes_are_known(tmp_path):
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        with (tmp_path / f"{name}.bin").open("wb") as file:
            file.truncate(3073 * (10000 if name != "test_batch" else 9999))  # sparse: no disk
    with pytest.raises(MpiconvError, match=r"2 of the five data batches: data_batch_3 is gone"):
        open_data(f"cifar10:{tmp_path}", "train")
    with pytest.raises(MpiconvError, match=r"test_batch\.bin holds 9999 pictures, the data batches 10000"):
        open_data(f"cifar10:{tmp_path}", "held-out")


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


GOOD = {"data": np.zeros((2, 3072), np.uint8), "labels": [1, 2]}
PICKLES = [
    pytest.param(Evil, r"test_batch wants posix\.mkdir.*refused", id="alone"),
    pytest.param(lambda path: GOOD | {"more": Evil(path)}, r"wants posix\.mkdir", id="beside-good-data"),
    pytest.param(lambda path: GOOD | {"labels": [1, Evil(path)]}, r"wants posix\.mkdir", id="as-a-label"),
    pytest.param(lambda path: GOOD | {"data": np.array([Evil(path)], object)}, r"wants arrays of O8", id="in-an-array"),
    pytest.param(lambda path: GOOD | {"f": print}, r"wants \w+\.print", id="a-function"),
    pytest.param(lambda path: GOOD | {"data": np.zeros((2, 3071), np.uint8)}, r"data is uint8 \(2, 3071\)", id="wide"),
    pytest.param(lambda path: GOOD | {"data": np.zeros((2, 3072))}, r"wants arrays of f8", id="floats"),
    pytest.param(lambda path: GOOD | {"data": "x"}, r"data is str", id="text"),
    pytest.param(lambda path: GOOD | {"labels": [1]}, r"2 pictures and 1 labels", id="labels-missing"),
    pytest.param(lambda path: GOOD | {"labels": [1, 10]}, r"no list of numbers from 0 to 9", id="label-10"),
    pytest.param(lambda path: [1, 2], r"data is NoneType", id="a-list"),
]


@pytest.mark.parametrize(("make", "message"), PICKLES)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickles_that_are_refused_unexecuted(tmp_path, make, message, protocol):
    trap = tmp_path / "trap"
    content = pickle.dumps(make(trap), protocol)
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(MpiconvError, match=message):
        open_data(f"cifar10:{tmp_path}", "held-out")
    assert not trap.exists(), "it was executed"
    if "mkdir" in message:
        pickle.loads(content)
        assert trap.exists(), "the trap would not have worked"


def test_a_cut_pickle_and_no_pickle(tmp_path):
    folder = cifar.write_python(tmp_path, 4)
    cut(folder / "data_batch_2", 4000)
    with pytest.raises(MpiconvError, match="data_batch_2 is cut short or no pickle of CIFAR-10"):
        open_data(f"cifar10:{tmp_path}", "train")
    (folder / "data_batch_2").write_bytes(b"hello")
    with pytest.raises(MpiconvError, match="data_batch_2 is cut short or no pickle of CIFAR-10"):
        open_data(f"cifar10:{tmp_path}", "train")
    labels = cifar.pictures(3, 2)
    (folder / "data_batch_2").write_bytes(cifar.as_pickled(*labels, old=True, protocol=2))
    with pytest.raises(MpiconvError, match="data_batch_2 holds 3 pictures, another batch 4"):
        open_data(f"cifar10:{tmp_path}", "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cifar10:/nowhere", "/nowhere is not there: a folder with data_batch_1.bin or data_batch_1"),
        (f"cifar10:{PICTURES}", "has no CIFAR-10 in it"),
        (f"cifar10:{PICTURES / 'digit-0.png'}", "is a file: unpack it"),
        ("folder:/nowhere", "/nowhere is not a folder with a folder of pictures per class"),
        (str(PICTURES), "has 0 folders with pictures in it: one per class is wanted"),
    ],
)
def test_no_such_data(text, message):
    with pytest.raises(UsageError, match=message.replace(".", r"\.")):
        open_data(text, "train")


def folder_of(root, counts):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (5 + i, 4), (i, 0, 0)).save(root / name / f"{i}.png")
    return root


def names(data):
    return {data.name(i) for i in range(len(data))}


def test_a_folder_per_class(tmp_path):
    root = folder_of(tmp_path, {"cat": 10, "ant": 4, "bee": 1, ".hidden": 2})
    (root / "note.txt").write_text("no class")
    learned, held_out = (open_data(f"folder:{root}", part) for part in ("train", "held-out"))
    assert learned.about.classes == ("ant", "bee", "cat")
    assert (len(learned), len(held_out)) == (3 + 1 + 8, 1 + 0 + 2)
    assert not names(learned) & names(held_out)
    assert names(held_out) == names(open_data(str(root), "held-out"))
    assert len(open_data(f"folder:{root}", "held-out", 1)) == 15
    picture, label = learned.load(0)
    assert picture.shape[:2] == (3, 4)
    assert label == 0
    (root / "cat" / "0.png").write_bytes(b"broken")
    with pytest.raises(MpiconvError, match=r"0\.png is no picture"):
        everything(open_data(f"folder:{root}", "held-out", 1))


def test_a_folder_with_train_and_val(tmp_path):
    folder_of(tmp_path / "train", {"b": 3, "a": 2})
    with pytest.raises(UsageError, match="has a folder train, but none of val, valid"):
        open_data(str(tmp_path), "held-out")
    folder_of(tmp_path / "val", {"b": 1, "a": 1})
    assert [len(open_data(str(tmp_path), part)) for part in ("train", "held-out")] == [5, 2]
    folder_of(tmp_path / "val", {"c": 1})
    with pytest.raises(UsageError, match=r"val/c is a class that .*train has not"):
        open_data(str(tmp_path), "held-out")


def test_the_pictures_of_the_demo_are_held_out_digits():
    data = open_data("digits", "held-out")
    first = {}
    for index in range(len(data)):
        picture, label = data.load(index)
        first.setdefault(label, picture[0])
    for digit in range(10):
        assert np.array_equal(np.asarray(Image.open(PICTURES / f"digit-{digit}.png")), first[digit])


def test_prepare():
    info = Info("x", (3, 8, 6), (0.5, 0.5, 0.5), (0.25, 0.25, 0.5))
    dark, light = np.zeros((3, 4, 3), np.uint8), np.full((1, 2, 2), 255, np.uint8)
    images = prepare([dark, light], info)
    assert images.shape == (2, 3, 8, 6)
    assert torch.equal(images[:, :, 3, 3], torch.tensor([[-2.0, -2, -1], [2, 2, 1]]))
    assert torch.equal(prepare([dark, dark], info), prepare([dark], info).expand(2, -1, -1, -1))
    grey = prepare([np.full((3, 4, 4), 255, np.uint8)], Info("x", (1, 4, 4), (0.0,), (1.0,)))
    assert torch.allclose(grey, torch.ones(1, 1, 4, 4))
    ramp = np.arange(0, 256, 8, dtype=np.uint8).reshape(1, 4, 8).repeat(3, 0)
    wanted = np.asarray(Image.fromarray(ramp[0]).resize((24, 12), Image.Resampling.BILINEAR), np.float32)
    mine = prepare([ramp], Info("x", (3, 12, 24), (0.0,) * 3, (1.0,) * 3))[0, 0] * 255
    assert np.abs(mine.numpy() - wanted).max() <= 1, "not Pillow's bilinear, which rounds twice"
    with pytest.raises(UsageError, match="reads 4 channels"):
        prepare([dark], Info("x", (4, 2, 2)))


def test_some_pictures_and_answers_in_the_models_order(tmp_path):
    folder_of(tmp_path, {"a": 30, "b": 30})
    some = Some(open_data(str(tmp_path), "held-out", 1), 8)
    labels = {some.load(i)[1] for i in range(len(some))}
    assert labels == {0, 1}, "the first ones only"
    labelled = LabelledPictures(some, Info("x", (3, 4, 4)), ("b", "a"))
    assert [labelled.answer(i) for i in range(8)] == [1 - some.load(i)[1] for i in range(8)]
