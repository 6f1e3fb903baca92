"""ResNet 18, 34 and 50 (He et al., 2015; a bottleneck strides in its 3x3), with torchvision's parameter names."""

from __future__ import annotations

import torch
from torch import nn

# blocks in each of the four stages, and whether they are bottlenecks
DEPTHS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
}
KERNELS = (64, 128, 256, 512)
EXPANSION = 4


class Block(nn.Module):
    """Two 3x3 convolutions, or a bottleneck of 1x1, 3x3, 1x1, and the sum with what went in."""

    def __init__(self, channels: int, kernels: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        out = kernels * EXPANSION if bottleneck else kernels
        sizes, widths = ((1, 3, 1), (kernels, kernels, out)) if bottleneck else ((3, 3), (kernels, out))
        before = channels
        for i, (size, width) in enumerate(zip(sizes, widths, strict=True)):
            step = stride if i == len(sizes) - 2 else 1
            setattr(self, f"conv{i + 1}", nn.Conv2d(before, width, size, step, size // 2, bias=False))
            setattr(self, f"bn{i + 1}", nn.BatchNorm2d(width))
            before = width
        self.count = len(sizes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C', H / stride, W / stride)."""
        made = maps
        for i in range(1, self.count + 1):
            made = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(made))
            if i < self.count:
                made = self.relu(made)
        total: torch.Tensor = self.relu(made + self.downsample(maps))
        return total


class ResNet(nn.Module):
    """A 7x7 convolution, four stages of residual blocks, one FC layer.

    Parameters
    ----------
    depths
        Blocks in each of the four stages.
    bottleneck
        Whether the blocks are bottlenecks.
    num_classes
        Outputs of the FC layer.
    """

    def __init__(self, depths: tuple[int, ...], bottleneck: bool, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 64
        for stage, (blocks, kernels) in enumerate(zip(depths, KERNELS, strict=True)):
            layers = []
            for i in range(blocks):
                stride = 2 if stage and not i else 1
                layers.append(Block(channels, kernels, stride, bottleneck=bottleneck))
                channels = kernels * EXPANSION if bottleneck else kernels
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, classes)."""
        maps = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in range(1, 5):
            maps = getattr(self, f"layer{stage}")(maps)
        scores: torch.Tensor = self.fc(torch.flatten(self.avgpool(maps), 1))
        return scores
