"""VGG 11, 13, 16 and 19 (Simonyan and Zisserman's configurations A, B, D and E), torchvision's parameter names."""

from __future__ import annotations

import torch
from torch import nn

# 3x3 convolutions per stage; every stage ends in a 2x2 pooling
STAGES = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
KERNELS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """8 to 16 convolutions of 3x3, with or without BatchNorm, and three FC layers.

    Parameters
    ----------
    stages
        Convolutions in each of the five stages, a value of ``STAGES``.
    num_classes
        Outputs of the last FC layer.
    norm
        Whether a BatchNorm follows every convolution.
    """

    def __init__(self, stages: tuple[int, ...], num_classes: int = 10, *, norm: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for convolutions, kernels in zip(stages, KERNELS, strict=True):
            for _ in range(convolutions):
                layers.append(nn.Conv2d(channels, kernels, 3, padding=1))
                layers += [nn.BatchNorm2d(kernels)] if norm else []
                layers.append(nn.ReLU(inplace=True))
                channels = kernels
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(channels * 49, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, num_classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, classes)."""
        maps = self.avgpool(self.features(images))
        scores: torch.Tensor = self.classifier(torch.flatten(maps, 1))
        return scores
