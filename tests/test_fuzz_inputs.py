"""Files with bytes changed at random: a sentence or a right answer, no other exception, and no memory without end.

``MPICONV_FUZZ=N`` tries N files in each test.
"""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from mpiconv.data.datasets import open_data
from mpiconv.data.picture_files import open_picture
from mpiconv.errors import ModelError, MpiconvError
from mpiconv.models import load_model
from mpiconv.models.registry import REGISTRY
from mpiconv.models.slices import WeightsFile
from mpiconv.probe.preflight import read_hosts
from tests import cifar

MOST_KB = 2**20
EXAMPLES = int(os.environ.get("MPICONV_FUZZ", "40"))
fuzzed = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)

NUMBERS = [struct.pack(f"{order}{kind}", value) for order in "<>" for kind, value in (
    ("B", 0), ("B", 255), ("H", 65535), ("I", 2**32 - 1), ("I", 2**31 - 1), ("Q", 2**63 - 1), ("I", 10**5), ("H", 4096),
)]  # fmt: skip
PLACES = st.one_of(st.integers(0, 200), st.integers(-200, -1), st.integers(0, 10**6))
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("write"), PLACES, st.one_of(st.sampled_from(NUMBERS), st.binary(min_size=1, max_size=6))),
        st.tuples(st.just("insert"), PLACES, st.binary(min_size=1, max_size=20)),
        st.tuples(st.just("drop"), PLACES, st.integers(1, 100)),
        st.tuples(st.just("cut"), PLACES, st.just(0)),
        st.tuples(st.just("again"), PLACES, st.integers(1, 300)),
    ),
    min_size=1,
    max_size=4,
)


def changed(data: bytes, changes) -> bytes:
    for kind, place, what in changes:
        at = place % (len(data) + 1)
        rest = {
            "write": lambda: what + data[at + len(what) :],  # noqa: B023 - called at once
            "insert": lambda: what + data[at:],  # noqa: B023
            "drop": lambda: data[at + what :],  # noqa: B023
            "cut": lambda: b"",
            "again": lambda: data[at : at + what] + data[at:],  # noqa: B023
        }[kind]()
        data = data[:at] + rest
    return data


def said(error: MpiconvError, name: str) -> None:
    """One line that names the file, and none of torch's own."""
    text = str(error)
    assert name in text
    assert len(text) < 2000
    assert not {"\x1b", "\n"} & set(text)
    assert "weights_only" not in text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for the files; at the end no test here may have taken more than 1 GiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield tmp_path_factory.mktemp("fuzz")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_KB


def pictures() -> list[bytes]:
    colour = np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)
    few = Image.fromarray(colour).quantize(7)
    deep = Image.fromarray(colour[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0
    made = []
    for picture, kind, options in (
        (Image.fromarray(colour), "JPEG", {"exif": exif}),
        (Image.fromarray(colour), "JPEG", {"progressive": True}),
        (Image.fromarray(colour).convert("CMYK"), "JPEG", {}),
        (Image.fromarray(colour), "PNG", {"exif": exif}),
        (Image.fromarray(colour).convert("RGBA"), "PNG", {}),
        (few, "PNG", {"transparency": 1}),
        (deep, "PNG", {}),
        (few, "GIF", {}),
        (few, "GIF", {"save_all": True, "append_images": [few.transpose(Image.Transpose.ROTATE_180)]}),
        (Image.fromarray(colour), "TIFF", {"exif": exif}),
        (Image.fromarray(colour), "TIFF", {"compression": "tiff_lzw"}),
        (Image.fromarray(colour), "TIFF", {"compression": "tiff_adobe_deflate"}),
        (Image.fromarray(colour), "TIFF", {"compression": "jpeg"}),
        (deep, "TIFF", {}),
        (Image.fromarray(np.float32(colour[..., 0])), "TIFF", {}),
        (Image.fromarray(colour), "BMP", {}),
        (few, "BMP", {}),
        (Image.fromarray(colour), "PPM", {}),
        (deep, "PPM", {}),
        (Image.fromarray(colour), "WEBP", {"exif": exif}),
        (Image.fromarray(colour).convert("RGBA"), "WEBP", {"lossless": True}),
        (few, "WEBP", {"save_all": True, "append_images": [few.transpose(Image.Transpose.ROTATE_180)]}),
    ):
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        made.append(stream.getvalue())
    return [*made, b"P2 3 2 255 1 2 3 4 5 6\n", b"Pf\n2 2\n-1.0\n" + np.ones(4, "<f4").tobytes()]


PICTURES = pictures()


@given(st.integers(0, len(PICTURES) - 1), CHANGES, st.sampled_from(["L", "RGB"]))
@fuzzed
def test_pictures(folder, picture, changes, mode):
    (folder / "a.img").write_bytes(changed(PICTURES[picture], changes))
    try:
        found = open_picture(folder / "a.img", mode)
    except MpiconvError as error:
        said(error, "a.img")
        return
    assert (found.mode, np.asarray(found).dtype) == (mode, np.uint8)


STATE = load_model("digits").state_dict()


def saved(content, **options) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


WEIGHTS = [
    saved(STATE),
    saved({"state_dict": {f"module.{name}": tensor for name, tensor in STATE.items()}, "epoch": 3}),
    saved({name: tensor.half() for name, tensor in STATE.items()}, _use_new_zipfile_serialization=False),
    saved(STATE, _use_new_zipfile_serialization=False),
]


def check_weights(path):
    """A ModelError that names the file, or the network with finite weights of its shapes."""
    try:
        model = load_model("digits", path)
    except ModelError as error:
        said(error, path.name)
        return
    found = model.state_dict()
    assert found.keys() == STATE.keys()
    classes = next(reversed(found.values())).shape[0]
    with torch.device("meta"):
        wanted = REGISTRY["digits"].build(classes).state_dict()
    assert all(found[name].shape == wanted[name].shape and torch.isfinite(found[name]).all() for name in found)


@given(st.integers(0, len(WEIGHTS) - 1), CHANGES)
@fuzzed
def test_pth_files(folder, which, changes):
    (folder / "w.pth").write_bytes(changed(WEIGHTS[which], changes))
    check_weights(folder / "w.pth")


def pickled(data: bytes) -> tuple[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        return name, archive.read(name)


@given(st.integers(0, 1), CHANGES)
@fuzzed
def test_pickles_in_archives(folder, which, changes):
    """With the archive around the pickle whole, so that what reads it is reached."""
    data = WEIGHTS[which]
    name, pickle = pickled(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(folder / "p.pth", "w") as new:
        for entry in archive.infolist():
            new.writestr(entry.filename, changed(pickle, changes) if entry.filename == name else archive.read(entry))
    check_weights(folder / "p.pth")


TENSORS = save(STATE, {"classes": json.dumps(list("abcdefghij")), "mean": "[0.3]"})
JSONS = st.one_of(
    st.none(), st.integers(-(2**70), 2**70), st.text(max_size=5), st.sampled_from(["F32", "F8_E4M3", "I64"]),
    st.lists(st.one_of(st.integers(-3, 2**65), st.text(max_size=2)), max_size=4), st.just({"dtype": "F32"}),
)  # fmt: skip


@given(CHANGES)
@fuzzed
def test_safetensors(folder, changes):
    (folder / "w.safetensors").write_bytes(changed(TENSORS, changes))
    check_weights(folder / "w.safetensors")


@given(
    st.sampled_from(sorted(STATE)), st.sampled_from(["dtype", "shape", "data_offsets", "all", "__metadata__"]), JSONS
)
@fuzzed
def test_safetensors_whose_header_lies(folder, name, key, value):
    length = int.from_bytes(TENSORS[:8], "little")
    header = json.loads(TENSORS[8 : 8 + length])
    if key in ("all", "__metadata__"):
        header[name if key == "all" else key] = value
    else:
        header[name][key] = value
    text = json.dumps(header).encode()
    path = folder / "lie.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + TENSORS[8 + length :])
    check_weights(path)
    try:
        file = WeightsFile(path, STATE)
        for own in STATE:
            file.read(own, 0, 1)
    except (ModelError, KeyError):
        return


@given(
    st.sampled_from(["classes", "mean", "std", "input_shape", "model", "trained"]),
    st.one_of(
        st.text(max_size=8),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=2), inner, max_size=2)
            ),
        ).map(json.dumps),
    ),
)
@fuzzed
def test_metadata(folder, key, value):
    (folder / "m.safetensors").write_bytes(save(STATE, {key: value}))
    check_weights(folder / "m.safetensors")


@given(st.booleans(), st.sampled_from([0, 2, 4]), st.booleans(), CHANGES)
@fuzzed
def test_cifar_files(folder, binary, protocol, meta, changes):
    labels, pixels = cifar.pictures(2, 6)
    data = cifar.as_pickled(labels, pixels, old=protocol == 0, protocol=protocol)
    if binary:
        data = np.concatenate([labels[:, None], pixels], 1).tobytes()
    root = folder / f"{binary}-{meta}"
    root.mkdir(exist_ok=True)
    names = b"\n".join(name.encode() for name in cifar.NAMES)
    (root / f"test_batch{'.bin' * binary}").write_bytes(data if meta else changed(data, changes))
    if meta and not binary:
        import pickle

        names = pickle.dumps({"label_names": cifar.NAMES}, protocol)
    if meta:
        (root / f"batches.meta{'.txt' * binary}").write_bytes(changed(names, changes))
    try:
        found = open_data(f"cifar10:{root}", "held-out")
        loaded = [found.load(i) for i in range(len(found))]
    except MpiconvError:
        return
    assert all(picture.shape == (3, 32, 32) and 0 <= label < 10 for picture, label in loaded)
    assert len(found.about.classes) == 10


HOSTS = b"# a lab\nlocalhost slots=2\n\n pi4:2 # no\nxavier max_slots=4\nroot@c\n"


@given(CHANGES)
@fuzzed
def test_hostfiles(folder, changes):
    (folder / "hosts").write_bytes(changed(HOSTS, changes))
    try:
        hosts = read_hosts(folder / "hosts")
    except MpiconvError as error:
        said(error, "hosts")
        return
    assert hosts
    assert all(host.isascii() and host.isprintable() for host in hosts)
