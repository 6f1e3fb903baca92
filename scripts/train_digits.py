"""Train the package's ``digits`` model on scikit-learn's handwritten digits and write its weights and ten pictures.

The 1797 scans of 8 x 8 pixels are split once, 80 % to train and 20 % held out, by class and with a fixed seed.
The accuracy in the weights' metadata is measured on the held-out scans with the weights read back from the file.
Needs the extra ``train``; takes about a minute on one core. The result is the same each time on the same machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name
from tqdm import tqdm

import mpiconv
from mpiconv.nets.digits import Digits
from mpiconv.nets.pictures import to_tensor
from mpiconv.nets.registry import REGISTRY

ROOT = Path(__file__).resolve().parent.parent
INFO = REGISTRY["digits"].info


def scans() -> tuple[list[Image.Image], list[Image.Image], np.ndarray, np.ndarray]:
    """Pictures to train on and held-out ones, with the digit that each shows."""
    images, digits = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    train, held_out, y_train, y_held_out = train_test_split(
        pixels, digits, test_size=0.2, random_state=0, stratify=digits
    )
    return [Image.fromarray(x) for x in train], [Image.fromarray(x) for x in held_out], y_train, y_held_out


def shifted(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The pictures, each moved by up to 3 pixels in both directions."""
    around = F.pad(batch, (3, 3, 3, 3), mode="replicate")
    offsets = torch.randint(0, 7, (len(batch), 2), generator=generator).tolist()
    return torch.stack([x[:, r : r + 32, c : c + 32] for x, (r, c) in zip(around, offsets, strict=True)])


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int) -> None:
    """Adam with a cosine schedule on shifted pictures."""
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in tqdm(range(epochs), desc="epochs"):
        for part in torch.randperm(len(x), generator=generator).split(64):
            optimiser.zero_grad()
            F.cross_entropy(model(shifted(x[part], generator)), y[part], label_smoothing=0.05).backward()
            optimiser.step()
        schedule.step()


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Share of the pictures that get the right digit."""
    with torch.inference_mode():
        return float((model.eval()(x).argmax(1) == y).float().mean())


def main() -> None:
    """Train, write, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--weights", type=Path, default=ROOT / "mpiconv/nets/pretrained/digits.safetensors")
    parser.add_argument(
        "--pictures", type=Path, default=ROOT / "scripts/pictures", help="folder for ten held-out scans"
    )
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    train_pictures, held_out, y_train, y_held_out = scans()
    x_train, x_held_out = (torch.stack([to_tensor(p, INFO) for p in part]) for part in (train_pictures, held_out))
    model = Digits()
    train(model, x_train, torch.from_numpy(y_train), arguments.epochs)
    metadata = {
        "classes": json.dumps([str(digit) for digit in range(10)]),
        "trained": "on scikit-learn's handwritten digits by scripts/train_digits.py",
        "held_out_pictures": str(len(held_out)),
        "held_out_accuracy": f"{accuracy(model, x_held_out, torch.from_numpy(y_held_out)):.4f}",
    }
    arguments.weights.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), arguments.weights, metadata)
    read_back = accuracy(mpiconv.load_model("digits", arguments.weights), x_held_out, torch.from_numpy(y_held_out))
    assert f"{read_back:.4f}" == metadata["held_out_accuracy"], "the file does not give what was measured"
    arguments.pictures.mkdir(parents=True, exist_ok=True)
    for digit in range(10):
        held_out[int(np.flatnonzero(y_held_out == digit)[0])].save(arguments.pictures / f"digit-{digit}.png")
    print(f"{arguments.weights}: {read_back:.2%} of {len(held_out)} held-out pictures right")


if __name__ == "__main__":
    main()
