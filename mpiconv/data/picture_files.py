"""Picture files: which of a folder's files are pictures, and one of them as 8-bit grey or colour, whatever it holds."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from mpiconv.errors import MpiconvError, UsageError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the formats that are read; of a file in any other not even the header is interpreted."""

MOST_PIXELS = 50_000_000
MOST_BYTES = 2**29
BAND_PIXELS = 2**20
WHITE_16_BITS = 65535
FLOAT_WHITES = (1, 255, WHITE_16_BITS)

ORIENTATION_TAG = 0x0112
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How a picture is turned upright, by the value of EXIF's orientation."""


def list_pictures(folder: str | Path) -> list[Path]:
    """The picture files in a folder and below it, in the order of their paths.

    Links to folders are followed. A folder that several paths lead to counts once: under the shortest of them, of two
    as short under the one that does not end in a link. Files and folders whose name begins with a dot are skipped.

    Raises MpiconvError, naming the folder, where one cannot be read.
    """
    found, level, seen = [], [os.fspath(folder)], {_identity(folder)}
    while level:
        entries = [entry for each in level for entry in _entries(each) if not entry.name.startswith(".")]
        level = []
        for entry in sorted(entries, key=lambda entry: (entry.is_symlink(), entry.path)):
            if not os.path.isdir(entry.path):
                if Path(entry.name).suffix.lower() in SUFFIXES:
                    found.append(Path(entry.path))
            elif (identity := _identity(entry.path)) not in seen:
                seen.add(identity)
                level.append(entry.path)
    return sorted(found)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise MpiconvError(f"cannot read the folder {folder}: {error.strerror}") from None


def _identity(folder: str | Path) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError as error:
        raise MpiconvError(f"cannot read the folder {folder}: {error.strerror}") from None
    return status.st_dev, status.st_ino


def open_picture(path: str | Path, mode: str) -> Image.Image:
    """One picture file, upright, of an animation the first frame, in a mode of Pillow (``L`` or ``RGB``).

    Raises MpiconvError, naming the file, where it is missing, broken, or too large to be unpacked.
    """
    _check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata, which do not matter here
            with Image.open(path, formats=FORMATS) as file:
                if file.width * file.height > MOST_PIXELS:
                    raise MpiconvError(
                        f"it has {file.width} x {file.height} pixels, {MOST_PIXELS} at most are unpacked"
                    )
                file.load()
                picture, method = to_mode(file, mode), _turn(file)
        return picture if method is None else picture.transpose(method)
    except MpiconvError as error:
        raise MpiconvError(f"cannot use the picture {path}: {error}") from None
    except Image.DecompressionBombError:
        raise MpiconvError(f"cannot use the picture {path}: more than {MOST_PIXELS} pixels are not unpacked") from None
    except UnidentifiedImageError:
        raise MpiconvError(f"{path} is no picture or a broken one: one of {', '.join(FORMATS)} is wanted") from None
    except Exception as error:  # Pillow's decoders raise nearly any kind
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MpiconvError(f"{path} is no picture or a broken one: {reason}") from None


def _check_file(path: str | Path) -> None:
    """Raise MpiconvError unless the path is a file of a sane size; a pipe would be waited for."""
    try:
        status = os.stat(path)
        with open(path, "rb") if stat.S_ISREG(status.st_mode) else open(os.devnull, "rb"):
            pass
    except (OSError, ValueError) as error:
        raise MpiconvError(f"cannot read the picture {path}: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISDIR(status.st_mode):
        raise MpiconvError(f"cannot read the picture {path}: it is a folder, whose pictures --data reads")
    if not stat.S_ISREG(status.st_mode):
        raise MpiconvError(f"cannot read the picture {path}: it is no regular file")
    if status.st_size > MOST_BYTES:
        raise MpiconvError(
            f"cannot use the picture {path}: it has {status.st_size} bytes, {MOST_BYTES} at most are read"
        )


def _turn(file: Image.Image) -> Image.Transpose | None:
    """How to turn a picture upright as its EXIF says; None where it says nothing that can be read."""
    try:
        return ORIENTATIONS.get(file.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # whatever else is broken in EXIF
        return None


def to_mode(picture: Image.Image, mode: str) -> Image.Image:
    """A picture of any mode of Pillow in ``L`` or ``RGB``, black 0 and white 255.

    Of 16-bit grey 65535 is white. Of floats white is the smallest of 1, 255 and 65535 that no pixel exceeds. What is
    transparent is laid on white.

    Raises MpiconvError for pixels below black, above white, or not finite.
    """
    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = _to_grey(picture)
    if picture.has_transparency_data:
        layer = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        picture = Image.new("RGB", layer.size, "white")
        picture.paste(layer, mask=layer)
    return picture.convert(mode)


def _to_grey(picture: Image.Image) -> Image.Image:
    """Integers or floats per pixel as 8 bits, band by band, so that no large copies are made."""
    spans = [(float(band.min()), float(band.max())) for band in _bands(picture)]  # the maximum of NaN is NaN
    least, most = (float(value) for value in (np.min(spans), np.max(spans)))
    whites = FLOAT_WHITES if picture.mode == "F" else (WHITE_16_BITS,)
    white = next((white for white in whites if 0 <= least <= most <= white), None)
    if white is None:
        raise MpiconvError(f"its pixels go from {least:g} to {most:g}, from 0 to {WHITE_16_BITS} are wanted")
    bands = [np.rint(band.astype(np.float32) * np.float32(255) / white).astype(np.uint8) for band in _bands(picture)]
    return Image.fromarray(np.concatenate(bands))


def _bands(picture: Image.Image) -> Iterator[np.ndarray]:
    rows = max(BAND_PIXELS // picture.width, 1)
    for top in range(0, picture.height, rows):
        yield np.asarray(picture.crop((0, top, picture.width, min(top + rows, picture.height))))


def class_folders(root: Path) -> dict[str, list[Path]]:
    """The pictures of every folder right below ``root``, by the folder's name.

    Raises UsageError where fewer than two have any.
    """
    found: dict[str, list[Path]] = {}
    for path in list_pictures(root):
        name, *below = path.relative_to(root).parts
        if below:
            found.setdefault(name, []).append(path)
    if len(found) < 2:
        raise UsageError(f"{root} has {len(found)} folders with pictures in it: one per class is wanted, two at least")
    return dict(sorted(found.items()))
