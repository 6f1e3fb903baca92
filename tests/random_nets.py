"""Random small CNNs for property tests: every parameter that box arithmetic has to get right, in odd combinations."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import nn

from mpiconv.nets.registry import randomise


class Sum(nn.Module):
    """Two branches from one map, added."""

    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.left(x) + self.right(x)


class Cat(Sum):
    """Two branches from one map, and the map itself, one behind the other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.left(x), x, self.right(x)], 1)


@st.composite
def conv(draw: st.DrawFn, channels: int) -> tuple[nn.Module, int]:
    groups = draw(st.sampled_from([g for g in (1, 2, 3, 4, channels) if channels % g == 0]))
    outs = groups * draw(st.integers(1, 6 if groups == 1 else 3))
    kernel = (draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    stride = draw(st.integers(1, 4)) if draw(st.booleans()) else (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    dilation = draw(st.sampled_from([1, 1, 1, 2, 3]))
    same = stride == 1 and draw(st.booleans())
    padding = "same" if same else (draw(st.integers(0, 4)), draw(st.integers(0, 4)))
    return nn.Conv2d(channels, outs, kernel, stride, padding, dilation, groups, bias=draw(st.booleans())), outs


@st.composite
def pool(draw: st.DrawFn) -> nn.Module:
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    stride = draw(st.one_of(st.none(), st.integers(1, 4)))
    padding = (draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2)))
    ceil = draw(st.booleans())
    if draw(st.booleans()):
        return nn.MaxPool2d(kernel, stride, padding, dilation=draw(st.sampled_from([1, 1, 2])), ceil_mode=ceil)
    include, divisor = draw(st.booleans()), draw(st.sampled_from([None, None, 3]))
    return nn.AvgPool2d(kernel, stride, padding, ceil_mode=ceil, count_include_pad=include, divisor_override=divisor)


@st.composite
def norm(draw: st.DrawFn, channels: int) -> nn.Module:
    module = nn.BatchNorm2d(channels, affine=draw(st.booleans()))
    with torch.no_grad():
        module.running_mean.uniform_(-0.5, 0.5)
        module.running_var.uniform_(0.5, 2)
        if module.affine:
            module.weight.uniform_(0.5, 2)
            module.bias.uniform_(-0.5, 0.5)
    return module


ACTIVATIONS = st.sampled_from([nn.ReLU, nn.ReLU6, nn.Tanh, nn.SiLU, nn.Hardswish, nn.ELU, nn.Sigmoid, nn.LeakyReLU])


@st.composite
def stage(draw: st.DrawFn, channels: int) -> tuple[nn.Module, int]:
    """One layer, or a small branch."""
    kind = draw(st.sampled_from(["conv", "conv", "conv", "pool", "norm", "activation", "dropout", "sum", "cat"]))
    if kind == "conv":
        return draw(conv(channels))
    if kind in ("sum", "cat"):
        size = draw(st.sampled_from([1, 3, 5]))
        outs = channels if kind == "sum" else draw(st.integers(1, 4))
        left = nn.Sequential(nn.Conv2d(channels, outs, size, padding=size // 2), nn.ReLU(inplace=True))
        right = nn.Conv2d(channels, outs, 1) if draw(st.booleans()) else nn.Conv2d(channels, outs, 3, padding=1)
        return (Sum(left, right), outs) if kind == "sum" else (Cat(left, right), 2 * outs + channels)
    if kind == "pool":
        return draw(pool()), channels
    if kind == "norm":
        return draw(norm(channels)), channels
    return (draw(ACTIVATIONS)() if kind == "activation" else nn.Dropout()), channels


@st.composite
def nets(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, int, int]]:
    """A net of up to six stages with or without a classifier behind, and the shape (C, H, W) of its picture."""
    picture = (draw(st.integers(1, 4)), draw(st.integers(1, 33)), draw(st.integers(1, 33)))
    torch.manual_seed(draw(st.integers(0, 9)))
    layers, channels = [], picture[0]
    for _ in range(draw(st.integers(1, 6))):
        layer, channels = draw(stage(channels))
        layers.append(layer)
    if draw(st.booleans()):
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]
    net = nn.Sequential(*layers).eval()
    randomise(net, draw(st.integers(0, 9)))
    return net, picture


SHARES = st.lists(st.one_of(st.just(0.0), st.floats(0.01, 10)), min_size=1, max_size=6).filter(any)
