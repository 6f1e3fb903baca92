"""Random small CNNs for property tests: every parameter that box arithmetic has to get right, in odd combinations."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from mpiconv.models.registry import randomise


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


class Excited(nn.Module):
    """Squeeze and excitation: a map times what 1x1 convolutions make of its means."""

    def __init__(self, channels: int, gate: type[nn.Module]) -> None:
        super().__init__()
        few = max(channels // 2, 1)
        self.fc1, self.fc2, self.gate = nn.Conv2d(channels, few, 1), nn.Conv2d(few, channels, 1), gate()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))))


class ExcitedByFC(Excited):
    """The same with fully connected layers, which the root runs."""

    def __init__(self, channels: int, gate: type[nn.Module]) -> None:
        super().__init__(channels, gate)
        few = max(channels // 2, 1)
        self.fc1, self.fc2 = nn.Linear(channels, few), nn.Linear(few, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, _, _ = x.size()
        return x * self.gate(self.fc2(F.relu(self.fc1(x.mean((2, 3)))))).view(n, c, 1, 1)


class Where(nn.Module):
    """A map times what its channels' mean and maximum say of each place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1).mean(1, keepdim=True))


class Attention(nn.Module):
    """Self-attention over all places: nothing that boxes describe."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(channels, 1, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(2).transpose(1, 2)
        return x + self.mha(rows, rows, rows)[0].transpose(1, 2).reshape(x.shape)


class Shuffled(nn.Module):
    """ShuffleNet's shuffle by reshaping; then halves (uneven, if need be) that go separate ways and change places."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.groups, self.left = groups, (channels + 1) // 2
        self.conv = nn.Conv2d(self.left, self.left, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.size()
        x = x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        parts = torch.split(x, self.left, 1)
        return torch.cat([*parts[1:], F.relu(self.conv(parts[0]), inplace=True)], 1)


class Sliced(nn.Module):
    """Every second row and column, turned around."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, ::2, ::2].flip(3)


class Lasting(nn.Module):
    """ConvNeXt's block: normalised and mixed with the channels last, scaled by a parameter."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(channels), nn.Linear(channels, channels)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale * F.gelu(self.mix(self.norm(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)


class Numbers(nn.Module):
    """Arithmetic with numbers, as hard activations are written."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = (1 - x * 0.5 + 3).clamp(0, 6) / 6
        return torch.maximum(y, x) - y.abs()


class Outputs(nn.Module):
    """The map itself at twice its size, and scores: as segmentation nets return them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out = nn.Conv2d(channels, 2, 1)

    def forward(self, x: torch.Tensor) -> dict[str, object]:
        maps = F.interpolate(self.out(x), scale_factor=2, mode="bilinear")
        return {"out": maps, "more": (x.mean((2, 3)), x)}


class Net(nn.Module):
    """Stages one after the other; what they make is added up in place."""

    def __init__(self, *stages: nn.Module) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = stage(x)
        return x


@st.composite
def transposed(draw: st.DrawFn, channels: int) -> tuple[nn.Module, int]:
    groups = draw(st.sampled_from([g for g in (1, 2, 3, channels) if channels % g == 0]))
    outs = groups * draw(st.integers(1, 4))
    kernel, stride = (draw(st.integers(1, 4)), draw(st.integers(1, 4))), draw(st.integers(1, 3))
    dilation = draw(st.sampled_from([1, 1, 2]))
    padding = tuple(draw(st.integers(0, min(1, dilation * (k - 1)))) for k in kernel)
    more = draw(st.integers(0, max(stride, dilation) - 1))
    bias = draw(st.booleans())
    return nn.ConvTranspose2d(channels, outs, kernel, stride, padding, more, groups, bias, dilation), outs


@st.composite
def resized(draw: st.DrawFn) -> nn.Module:
    mode = draw(st.sampled_from(["nearest", "bilinear", "bicubic", "nearest-exact"]))
    corners = draw(st.booleans()) if mode in ("bilinear", "bicubic") else None
    if draw(st.booleans()):
        return nn.Upsample((draw(st.integers(1, 40)), draw(st.integers(1, 40))), mode=mode, align_corners=corners)
    return nn.Upsample(scale_factor=draw(st.sampled_from([1.3, 1.5, 2.0, 3.0])), mode=mode, align_corners=corners)


@st.composite
def padded(draw: st.DrawFn) -> nn.Module:
    around = tuple(draw(st.integers(0, 2)) for _ in range(4))
    kind = draw(st.sampled_from([nn.ZeroPad2d, nn.ReplicationPad2d, nn.ConstantPad2d, nn.ReflectionPad2d]))
    return nn.ConstantPad2d(around, 0.5) if kind is nn.ConstantPad2d else kind(around)


@st.composite
def normed(draw: st.DrawFn, channels: int) -> nn.Module:
    groups = draw(st.sampled_from([g for g in (1, 2, 3, channels) if channels % g == 0]))
    size = draw(st.integers(1, 5))
    kinds = [nn.GroupNorm(groups, channels), nn.InstanceNorm2d(channels, affine=True), nn.LocalResponseNorm(size, 0.1)]
    module = draw(st.sampled_from([*kinds, nn.Softmax2d(), nn.PReLU(channels), nn.PReLU()]))
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.2, 1)
    return module


class Keywords(nn.Module):
    """Everything by keyword, in place, and read again."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.act, self.drop = nn.BatchNorm2d(channels), nn.LeakyReLU(0.2, inplace=True), nn.Dropout2d()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(input=x)
        return torch.add(input=self.act(input=y), other=self.drop(input=y), alpha=0.5) + torch.div(
            x, 2, rounding_mode=None
        )


class Constants(nn.Module):
    """A buffer that is not saved, and coordinates that forward makes; the batch is a number in it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(channels) + 0.5, persistent=False)
        self.conv = nn.Conv2d(channels + 1, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, _, h, w = x.shape
        rows = torch.linspace(-1, 1, h, device=x.device).view(1, 1, h, 1).expand(n, 1, h, w)
        return self.conv(torch.cat([x * self.scale.view(1, -1, 1, 1), rows], 1)) / n + x / x.size(0)


class Written(nn.Module):
    """A tensor of zeros that parts of the map are written to, if it is a tensor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        out[:, ::2] = x[:, ::2]
        out[..., 0].add_(1)
        return out + x if isinstance(x, torch.Tensor) else x


class Antialiased(nn.Module):
    """Resized with antialiasing."""

    def __init__(self, size: tuple[int, int], mode: str) -> None:
        super().__init__()
        self.size, self.mode = size, mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(input=x, size=self.size, mode=self.mode, antialias=True)


def hooked(channels: int, before: bool) -> nn.Module:
    """A convolution with a hook before or after it."""
    conv = nn.Conv2d(channels, channels, 3, padding=1)
    if before:
        conv.register_forward_pre_hook(lambda _module, args: (args[0].clamp(-1, 1),))
    else:
        conv.register_forward_hook(lambda _module, _args, out: out * 0.5 + 1)
    return nn.Sequential(conv, nn.ReLU(inplace=True))


def large_windows(kernel: int, average: bool) -> nn.Module:
    """A pooling whose window may be larger than the map."""
    kind = nn.AvgPool2d if average else nn.MaxPool2d
    return kind(kernel, 2, kernel // 2, ceil_mode=True)


@st.composite
def odd(draw: st.DrawFn, channels: int) -> tuple[nn.Module, int]:
    """One layer of those that the paper's networks do not have."""
    kinds = ["transposed", "resized", "padded", "normed", "adaptive", "excited", "fc", "where", "attention", "shuffled"]
    kinds += ["sliced", "lasting", "numbers", "pixels", "unpixels", "reflecting"]
    kind = draw(st.sampled_from([*kinds, "keywords", "constants", "written", "antialiased", "hooked", "large-windows"]))
    if kind == "transposed":
        return draw(transposed(channels))
    if kind == "pixels":
        return nn.Sequential(nn.Conv2d(channels, 8, 1), nn.PixelShuffle(2)), 2
    if kind == "unpixels":
        return nn.Sequential(nn.Upsample(scale_factor=2), nn.PixelUnshuffle(2)), 4 * channels
    if kind == "excited":
        return Excited(channels, draw(st.sampled_from([nn.Sigmoid, nn.Hardsigmoid, nn.Softsign]))), channels
    groups = draw(st.sampled_from([g for g in (1, 2, 3) if channels % g == 0]))
    plain = {
        "resized": resized(),
        "padded": padded(),
        "normed": normed(channels),
        "adaptive": st.builds(nn.AdaptiveAvgPool2d, st.tuples(st.integers(1, 9), st.integers(1, 9))),
        "fc": st.just(ExcitedByFC(channels, nn.Sigmoid)),
        "where": st.just(Where()),
        "attention": st.just(Attention(channels)),
        "shuffled": st.just(Shuffled(channels, groups)),
        "sliced": st.just(Sliced()),
        "lasting": st.just(Lasting(channels)),
        "numbers": st.just(Numbers()),
        "keywords": st.just(Keywords(channels)),
        "constants": st.just(Constants(channels)),
        "written": st.just(Written()),
        "antialiased": st.builds(
            Antialiased, st.tuples(st.integers(1, 20), st.integers(1, 20)), st.sampled_from(["bilinear", "bicubic"])
        ),
        "hooked": st.builds(hooked, st.just(channels), st.booleans()),
        "large-windows": st.builds(large_windows, st.integers(2, 9), st.booleans()),
        "reflecting": st.just(nn.Conv2d(channels, channels, 3, padding=1, padding_mode="circular")),
    }
    return draw(plain[kind]), channels


@st.composite
def odd_nets(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, int, int]]:
    """A net of up to five stages, at least one of them odd, and the shape (C, H, W) of its picture."""
    picture = (draw(st.integers(1, 4)), draw(st.integers(1, 24)), draw(st.integers(1, 24)))
    torch.manual_seed(draw(st.integers(0, 9)))
    layers, channels = [], picture[0]
    for _ in range(draw(st.integers(1, 5))):
        layer, channels = draw(odd(channels)) if draw(st.booleans()) else draw(stage(channels))
        layers.append(layer)
    ends = draw(st.sampled_from(["map", "conv", "classes", "several"]))
    layers += {
        "map": [],
        "conv": [nn.Conv2d(channels, 3, 3, padding=1)],
        "classes": [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)],
        "several": [Outputs(channels)],
    }[ends]
    return Net(*layers).eval(), picture


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
