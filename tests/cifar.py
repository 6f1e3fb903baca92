"""CIFAR-10 files of a few pictures, in both official formats."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) and pixels (N, 3072); every class has a colour of its own, with noise."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(count).astype(np.uint8) % 10
    colours = np.random.default_rng(5).integers(20, 236, (10, 3))
    noise = generator.integers(-20, 20, (count, 3, 1024))
    return labels, (colours[labels][:, :, None] + noise).astype(np.uint8).reshape(count, 3072)


def batches(count: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {f"data_batch_{i}": pictures(count, i) for i in range(1, 6)} | {"test_batch": pictures(count, 6)}


def write_binary(root: Path, count: int) -> Path:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, (labels, pixels) in batches(count).items():
        np.concatenate([labels[:, None], pixels], 1).tofile(folder / f"{name}.bin")
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    return folder


def as_pickled(labels: np.ndarray, pixels: np.ndarray, *, old: bool, protocol: int) -> bytes:
    """A batch as Python 3 pickles it; ``old``: with keys of bytes, as Python 2 wrote them."""
    content = {
        "batch_label": "a batch",
        "labels": labels.tolist(),
        "data": pixels,
        "filenames": ["a.png"] * len(labels),
    }
    return pickle.dumps({key.encode() if old else key: value for key, value in content.items()}, protocol)


def write_python(root: Path, count: int, *, old: bool = True, protocol: int = 2) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, (labels, pixels) in batches(count).items():
        (folder / name).write_bytes(as_pickled(labels, pixels, old=old, protocol=protocol))
    names = [name.encode() for name in NAMES] if old else NAMES
    key = b"label_names" if old else "label_names"
    (folder / "batches.meta").write_bytes(pickle.dumps({key: names}, protocol))
    return folder


def python_2_batch(labels: np.ndarray, pixels: np.ndarray) -> bytes:
    """A batch byte by byte as Python 2's cPickle wrote the official ones: protocol 2, strings without an encoding."""

    def text(value: bytes) -> bytes:
        return (
            b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + len(value).to_bytes(4, "little") + value
        )

    def number(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + value.to_bytes(2, "little")

    dtype = b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + 2 * b"J\xff\xff\xff\xff" + number(0) + b"tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"\x87R"
    shape = number(len(pixels)) + number(3072) + b"\x86"
    array = empty + b"(" + number(1) + shape + dtype + b"\x89" + text(pixels.tobytes()) + b"tb"
    answers = b"](" + b"".join(number(int(label)) for label in labels) + b"e"
    entries = text(b"data") + array + text(b"labels") + answers + text(b"batch_label") + text(b"testing batch 1 of 1")
    return b"\x80\x02}(" + entries + b"u."
