"""A small CNN for scikit-learn's handwritten digits; its trained weights come with the package."""

from __future__ import annotations

import torch
from torch import nn


class Digits(nn.Module):
    """Three 3x3 convolutions and two FC layers for grey 32 x 32 pictures; 10 classes unless told."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for kernels in (16, 32, 64):
            layers += [nn.Conv2d(channels, kernels, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
            channels = kernels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(0.3), nn.Linear(channels * 16, 64), nn.ReLU(inplace=True), nn.Linear(64, num_classes)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 1, 32, 32) to (N, classes)."""
        scores: torch.Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return scores
