"""AlexNet: the paper's one-tower original for 227 x 227, and torchvision's slimmer one for 224 x 224."""

from __future__ import annotations

import torch
from torch import nn

# (kernels, kernel size, stride, padding, pooled after) of each convolution
ORIGINAL = (
    (96, 11, 4, 0, True),
    (256, 5, 1, 2, True),
    (384, 3, 1, 1, False),
    (384, 3, 1, 1, False),
    (256, 3, 1, 1, True),
)
TORCHVISION = (
    (64, 11, 4, 2, True),
    (192, 5, 1, 2, True),
    (384, 3, 1, 1, False),
    (256, 3, 1, 1, False),
    (256, 3, 1, 1, True),
)


class AlexNet(nn.Module):
    """Five convolutions and three FC layers, with torchvision's parameter names.

    Parameters
    ----------
    num_classes
        Outputs of the last FC layer.
    table
        ``ORIGINAL`` ([KPM22]: 96-256-384-384-256, no padding in conv1) or ``TORCHVISION``.
    """

    def __init__(self, num_classes: int = 10, table: tuple[tuple[int, int, int, int, bool], ...] = ORIGINAL) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for kernels, size, stride, padding, pooled in table:
            layers += [nn.Conv2d(channels, kernels, size, stride, padding), nn.ReLU(inplace=True)]
            if pooled:
                layers.append(nn.MaxPool2d(3, 2))
            channels = kernels
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(channels * 36, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, classes)."""
        maps = self.avgpool(self.features(images))
        scores: torch.Tensor = self.classifier(torch.flatten(maps, 1))
        return scores
