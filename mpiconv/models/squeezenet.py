"""SqueezeNet 1.1 (Iandola et al., 2016, and its authors' smaller release), with torchvision's parameter names."""

from __future__ import annotations

import torch
from torch import nn

# channels of the squeeze convolution and of each of the two expanding ones, by fire module; None is a pooling
FIRES = ((16, 64), (16, 64), None, (32, 128), (32, 128), None, (48, 192), (48, 192), (64, 256), (64, 256))


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, 2, ceil_mode=True)


class Fire(nn.Module):
    """1x1 to few channels, then 1x1 and 3x3 side by side, concatenated."""

    def __init__(self, channels: int, few: int, kernels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, few, 1)
        self.expand1x1 = nn.Conv2d(few, kernels, 1)
        self.expand3x3 = nn.Conv2d(few, kernels, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, 2 kernels, H, W)."""
        few = self.relu(self.squeeze(maps))
        return torch.cat([self.relu(self.expand1x1(few)), self.relu(self.expand3x3(few))], 1)


class SqueezeNet(nn.Module):
    """A convolution, eight fire modules, and a convolution instead of FC layers."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 2), nn.ReLU(inplace=True), _pool()]
        channels = 64
        for fire in FIRES:
            if fire is None:
                layers.append(_pool())
            else:
                layers.append(Fire(channels, *fire))
                channels = 2 * fire[1]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Conv2d(channels, num_classes, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, classes)."""
        return torch.flatten(self.classifier(self.features(images)), 1)
