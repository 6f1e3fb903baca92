"""Pictures of every depth, mode and format, odd metadata, and which files of a folder are pictures."""

from __future__ import annotations

import io
import os
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from mpiconv.data.datasets import open_data
from mpiconv.data.picture_files import FORMATS, list_pictures, open_picture, to_mode
from mpiconv.data.pictures import folder_pictures, read_picture, to_tensor
from mpiconv.errors import MpiconvError
from mpiconv.models import Info

RAMP = np.arange(240, dtype=np.uint8).reshape(12, 20)
GREY = Info("x", (1, 12, 20), (0.0,), (1.0,))


def saved(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


DEPTHS = [
    pytest.param("png", RAMP.astype(np.uint16) * 257, id="16-bit-png"),
    pytest.param("tif", RAMP.astype(np.uint16) * 257, id="16-bit-tiff"),
    pytest.param("tif", RAMP.astype(">u2") * 257, id="16-bit-big-endian-tiff"),
    pytest.param("pgm", RAMP.astype(np.int32) * 257, id="16-bit-pgm"),
    pytest.param("tif", RAMP.astype(np.int32) * 257, id="32-bit-tiff"),
    pytest.param("tif", np.float32(RAMP / 255), id="floats-to-1"),
    pytest.param("tif", np.float32(RAMP), id="floats-to-255"),
    pytest.param("tif", np.float32(RAMP) * 257, id="floats-to-65535"),
]


@pytest.mark.parametrize(("ending", "pixels"), DEPTHS)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_deep_pictures_are_the_8_bit_ones(ending, pixels, mode, tmp_path):
    picture = open_picture(saved(tmp_path / f"a.{ending}", pixels), mode)
    assert np.array_equal(np.asarray(picture), np.asarray(Image.fromarray(RAMP).convert(mode)))
    in_memory = to_tensor(Image.fromarray(pixels), GREY)
    assert torch.equal(in_memory, torch.from_numpy(RAMP / np.float32(255))[None])


def test_bands_of_a_large_picture_lie_where_they_were(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (1500, 1400), np.uint16)
    found = np.asarray(open_picture(saved(tmp_path / "a.png", pixels), "L"))
    assert np.array_equal(found, np.rint(pixels / 257).astype(np.uint8))


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        pytest.param(np.full((2, 2), -1, np.int32), "from -1 to -1", id="negative"),
        pytest.param(np.full((2, 2), 65536, np.int32), "to 65536", id="too-bright"),
        pytest.param(np.full((2, 2), 1e6, np.float32), "to 1e[+]06", id="float-too-bright"),
        pytest.param(np.array([[0, np.nan], [3, 4]], np.float32), "nan", id="nan"),
        pytest.param(np.array([[0, np.inf], [3, 4]], np.float32), "inf", id="infinite"),
    ],
)
def test_pixels_without_a_meaning_are_refused(pixels, words, tmp_path):
    with pytest.raises(MpiconvError, match=rf"a\.tif: its pixels go .*{words}.* from 0 to 65535 are wanted"):
        open_picture(saved(tmp_path / "a.tif", pixels), "L")


def test_what_is_transparent_is_white():
    clear = np.zeros((2, 2, 4), np.uint8)  # black that nobody sees
    clear[0, 0], clear[0, 1] = (10, 20, 30, 255), (0, 0, 0, 128)
    colour = np.asarray(to_mode(Image.fromarray(clear), "RGB"))
    assert colour.tolist() == [[[10, 20, 30], [127] * 3], [[255] * 3] * 2]
    grey = np.asarray(to_mode(Image.fromarray(clear[..., 2:].copy(), "LA"), "L"))
    assert grey.tolist() == [[30, 127], [255, 255]]
    one = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    one.putpalette([9, 9, 9, 200, 200, 200])
    one.info["transparency"] = 0
    assert np.asarray(to_mode(one, "L")).tolist() == [[255, 200]]


def test_modes_of_few_bits_and_of_print():
    bits = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert np.asarray(to_mode(bits, "L")).tolist() == [[0, 255]]
    ink = Image.new("CMYK", (1, 1), (0, 255, 255, 0))
    assert np.asarray(to_mode(ink, "RGB")).tolist() == [[[255, 0, 0]]]
    assert np.asarray(to_mode(ink, "L")).tolist() == [[76]]


def with_exif(data: bytes, entries: list[bytes], rest: bytes) -> bytes:
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4) + rest
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


SIDEWAYS = struct.pack("<HHII", 0x0112, 3, 1, 6)
BROKEN = [
    pytest.param([SIDEWAYS, struct.pack("<HHII", 0x011A, 10, 1, 38)], struct.pack("<ii", -1, 0), True, id="1-by-0"),
    pytest.param([SIDEWAYS, struct.pack("<HHII", 0x0110, 2, 500, 0xFFFFFF)], b"", True, id="beyond-the-end"),
    pytest.param([struct.pack("<HHII", 0x0112, 2, 9, 26)], b"sideways\0", False, id="text-for-a-number"),
    pytest.param([struct.pack("<HHII", 0x0112, 3, 1, 99)], b"", False, id="orientation-99"),
]


@pytest.mark.parametrize(("entries", "rest", "turned"), BROKEN)
def test_broken_exif(entries, rest, turned, tmp_path):
    """The orientation counts where it can be read; nothing else in EXIF does."""
    stream = io.BytesIO()
    Image.fromarray(RAMP).save(stream, "JPEG")
    plain = Image.open(stream)
    plain.load()
    (tmp_path / "a.jpg").write_bytes(with_exif(stream.getvalue(), entries, rest))
    found = open_picture(tmp_path / "a.jpg", "L")
    wanted = plain.transpose(Image.Transpose.ROTATE_270) if turned else plain
    assert np.array_equal(np.asarray(found), np.asarray(wanted))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(kind, orientation, tmp_path):
    """Every orientation in every format that has one, turned once."""
    from PIL import ImageOps

    picture, exif = Image.new("L", (24, 16), 0).convert("RGB"), Image.Exif()
    picture.paste("white", (0, 0, 12, 4))
    exif[0x0112] = orientation
    picture.save(tmp_path / "a", kind, exif=exif)
    with Image.open(tmp_path / "a") as again:
        wanted = np.asarray(ImageOps.exif_transpose(again))
    assert np.array_equal(np.asarray(open_picture(tmp_path / "a", "RGB")), wanted)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF"])
def test_the_first_frame_counts(kind, tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a", kind, save_all=True, append_images=frames[1:])
    assert open_picture(tmp_path / "a", "RGB").getpixel((3, 3))[2] < 10


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "TGA", "PCX"])
def test_no_other_formats_are_opened(kind, tmp_path, monkeypatch):
    """Under whatever name: Pillow has Ghostscript interpret EPS, which is a program."""
    Image.fromarray(RAMP).convert("RGB").save(tmp_path / "x", kind)
    (tmp_path / "x").rename(tmp_path / "a.png")
    with pytest.raises(MpiconvError, match=rf"a\.png is no picture or a broken one: one of {FORMATS[0]}, "):
        open_picture(tmp_path / "a.png", "RGB")


def test_files_that_are_too_large_or_none(tmp_path):
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    data = saved(tmp_path / "a.png", RAMP).read_bytes()
    import zlib

    lie = data[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + data[33:]
    (tmp_path / "bomb.png").write_bytes(lie)
    with pytest.raises(MpiconvError, match=r"bomb\.png: more than 50000000 pixels are not unpacked"):
        open_picture(tmp_path / "bomb.png", "L")
    with (tmp_path / "zeros.bmp").open("wb") as file:
        file.truncate(2**29 + 1)
    with pytest.raises(MpiconvError, match=r"zeros\.bmp: it has 536870913 bytes, 536870912 at most"):
        open_picture(tmp_path / "zeros.bmp", "L")
    os.mkfifo(tmp_path / "pipe.png")
    for path, words in (("pipe.png", "no regular file"), ("", "a folder, whose pictures --data reads")):
        with pytest.raises(MpiconvError, match=words):
            open_picture(tmp_path / path, "L")
    with pytest.raises(MpiconvError, match="null"):
        open_picture("a\0b.png", "L")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP"])
def test_cut_pictures_are_named(kind, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a", kind)
    data = (tmp_path / "a").read_bytes()
    for length in (0, 3, len(data) // 3, len(data) // 2):
        (tmp_path / "cut.img").write_bytes(data[:length])
        with pytest.raises(MpiconvError, match=r"cut\.img is no picture or a broken one: "):
            open_picture(tmp_path / "cut.img", "RGB")


def test_what_a_folder_has(tmp_path):
    """No hidden files or folders, links followed, every folder once, by its shortest path, links last."""
    for name in ("b.png", "._b.png", ".hidden.png", "z/c.PNG", "z/.ipynb_checkpoints/c.png", "elsewhere/day/d.png"):
        path = tmp_path / "all" / name if "elsewhere" not in name else tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        saved(path, RAMP, format="PNG")
    root = tmp_path / "all"
    (root / "folder.png").mkdir()
    for link, target in (
        ("a", root / "z"),
        ("z/up", root),
        ("z/day", tmp_path / "elsewhere/day"),
        ("linked", tmp_path / "elsewhere"),
        ("self.png", root / "self.png"),
    ):
        os.symlink(target, root / link)
    names = [str(path.relative_to(root)) for path in list_pictures(root)]
    assert names == ["b.png", "linked/day/d.png", "self.png", "z/c.PNG"]
    (root / "self.png").unlink()
    pictures = folder_pictures(root, GREY)
    assert len(pictures) == 3
    assert torch.equal(pictures.load(2), read_picture(tmp_path / "elsewhere/day/d.png", GREY))


def test_classes_are_listed_by_the_same_rules(tmp_path):
    for name in ("cat/1.png", "cat/._1.png", "cat/.ipynb_checkpoints/1-copy.png", ".trash/2.png", "far/3.png", "4.png"):
        path = tmp_path / ("data/" + name if name != "far/3.png" else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        saved(path, RAMP)
    os.symlink(tmp_path / "far", tmp_path / "data/dog")
    os.symlink(tmp_path / "data", tmp_path / "data/cat/back")
    data = open_data(f"folder:{tmp_path / 'data'}", "held-out", 1.0)
    assert data.about.classes == ("cat", "dog")
    assert [data.name(i) for i in range(len(data))] == [str(tmp_path / "data" / n) for n in ("cat/1.png", "dog/3.png")]
