"""MobileNetV2 (Sandler et al., 2018, table 2), with torchvision's parameter names."""

from __future__ import annotations

import torch
from torch import nn

# expansion, channels, blocks, stride of the first block
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
FIRST, LAST = 32, 1280


def _normed(channels: int, kernels: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU6."""
    conv = nn.Conv2d(channels, kernels, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(kernels), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Widened by 1x1, a depthwise 3x3, narrowed by 1x1; and the sum with what went in where the shapes allow."""

    def __init__(self, channels: int, kernels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        layers: list[nn.Module] = [_normed(channels, wide, 1)] if expansion > 1 else []
        layers += [
            _normed(wide, wide, 3, stride, wide),
            nn.Conv2d(wide, kernels, 1, bias=False),
            nn.BatchNorm2d(kernels),
        ]
        self.conv = nn.Sequential(*layers)
        self.adds = stride == 1 and channels == kernels

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C', H / stride, W / stride)."""
        made: torch.Tensor = self.conv(maps)
        return maps + made if self.adds else made


class MobileNetV2(nn.Module):
    """Seventeen inverted residual blocks between two convolutions, then one FC layer."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = [_normed(3, FIRST, 3, 2)]
        channels = FIRST
        for expansion, kernels, blocks, stride in STAGES:
            for i in range(blocks):
                layers.append(InvertedResidual(channels, kernels, stride if i == 0 else 1, expansion))
                channels = kernels
        layers.append(_normed(channels, LAST, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(LAST, num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, classes)."""
        scores: torch.Tensor = self.classifier(self.features(images).mean((2, 3)))
        return scores
