"""What a module really computes, whatever it is written like: hooks, keywords, constants, contexts, checks of types."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from mpiconv.errors import ModelError
from mpiconv.graph.outputs import tensors_in
from mpiconv.graph.trace import trace
from mpiconv.partition import make_plan
from tests.simulated import assert_close, run_split

PICTURE = (3, 15, 13)


class Between(nn.Module):
    """A convolution, something, a convolution."""

    def __init__(self, middle, outs=8):
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 8, 3, padding=1), middle, nn.Conv2d(outs, 5, 3, padding=1)

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


class Apply(nn.Module):
    """A function of a map as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def with_hook(before=None, after=None, *, root=False):
    middle = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
    model = Between(middle)
    hooked = model if root else middle[0]
    if before is not None:
        hooked.register_forward_pre_hook(before)
    if after is not None:
        hooked.register_forward_hook(after)
    return model


class KeywordsOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool, self.norm, self.act = nn.MaxPool2d(3, 1, 1), nn.BatchNorm2d(8), nn.LeakyReLU(0.3, inplace=True)

    def forward(self, x):
        y = self.norm(input=x)
        return self.act(input=y) + y + self.pool(input=x)


class WritesOut(nn.Module):
    def forward(self, x):
        y = torch.empty_like(x)
        torch.mul(x, 2.0, out=y)
        return y + x


class Frozen(nn.Module):
    """FrozenBatchNorm2d as detection networks have it: statistics in buffers, reshaped at every call."""

    def __init__(self):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(8) + 0.5, persistent=name != "bias")

    def forward(self, x):
        scale = self.weight.view(1, -1, 1, 1) * (self.running_var.view(1, -1, 1, 1) + 1e-5).rsqrt()
        return x * scale + (self.bias.view(1, -1, 1, 1) - self.running_mean.view(1, -1, 1, 1) * scale)


class Standardised(nn.Module):
    """A convolution whose kernels are standardised in forward, as in ResNets with group normalisation."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, 3, 3))

    def forward(self, x):
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / std, padding=1)


class Blur(nn.Module):
    """A depthwise blur with a kernel that is made in forward."""

    def forward(self, x):
        row = torch.tensor([1.0, 2.0, 1.0])
        kernel = (row[:, None] * row[None] / 16).repeat(x.shape[1], 1, 1, 1)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, groups=x.shape[1])


class Positions(nn.Module):
    """Coordinates of the places beside the map, on the map's device."""

    def forward(self, x):
        n, _, h, w = x.shape
        ys = torch.linspace(-1, 1, h, device=x.device, dtype=x.dtype).view(1, 1, h, 1).expand(n, 1, h, w)
        return torch.cat([x, ys, x.new_ones(n, 1, h, w)], 1)


class Scattered(nn.Module):
    """A tensor of zeros that maps are written into."""

    def forward(self, x):
        out = x.new_zeros(x.shape[0], 12, *x.shape[2:])
        out[:, :8] = x
        out[:, 8:].copy_(x[:, :4] * 2)
        return out


class PartWritten(nn.Module):
    """A part of a map is written over in place and the whole is read."""

    def forward(self, x):
        x = x * 1.0
        x[:, 1].relu_()
        left, right = x.chunk(2, 1)
        right.mul_(3)
        return x + torch.cat([right, left], 1)


class Skipping(nn.Module):
    """Checks of types decide whether a skip connection counts."""

    def __init__(self, is_tensor):
        super().__init__()
        self.conv, self.is_tensor = nn.Conv2d(8, 8, 3, padding=1), is_tensor

    def forward(self, x):
        y = self.conv(x)
        return torch.cat([x, y], 1)[:, 4:12] if self.is_tensor(x) else y


class HalfPrecision(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, x):
        return F.relu(self.conv(x)).to(torch.float32)


class Swish(torch.autograd.Function):
    """An operation with a gradient of its own."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)


class Iterated(nn.Module):
    def forward(self, x):
        return torch.stack([row * (i + 1) for i, row in enumerate(x)])


class DefaultsAndMore(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, *maps, scale=2.0, mask=None, **more):
        y = self.conv(maps[0]) * scale
        return y if mask is None and not more else y * mask


def raised(x):
    x = x.clone()
    x **= 2
    return x


MODELS = {
    "hook-after": lambda: with_hook(after=lambda _m, _a, out: out * 0.5 + 1),
    "hook-before": lambda: with_hook(before=lambda _m, args: (args[0].relu(),)),
    "hooks-of-the-root": lambda: with_hook(lambda _m, args: (args[0] * 3,), lambda _m, _a, out: out.tanh(), root=True),
    "keywords-only": lambda: Between(KeywordsOnly()),
    "relu-in-place-by-keyword": lambda: Between(Apply(lambda x: F.relu(input=x, inplace=True) + x)),
    "out": lambda: Between(WritesOut()),
    "no-out": lambda: Between(Apply(lambda x: x * torch.linalg.vector_norm(x, dim=1, keepdim=True, out=None))),
    "statistics-of-the-batch": lambda: Between(Apply(lambda x: F.batch_norm(x, None, None, training=True))),
    "statistics-by-place": lambda: Between(
        Apply(lambda x: F.batch_norm(x, torch.zeros(8), torch.ones(8), None, None, True, 0.0))
    ),
    "divided-by-the-batch": lambda: Between(Apply(lambda x: x / x.shape[0] + x.size(0) + len(x))),
    "mixed-over-the-batch": lambda: Between(Apply(lambda x: x - x.mean(0, keepdim=True) * 0.5)),
    "first-of-the-batch": lambda: Between(Apply(lambda x: x + x[:1])),
    "antialias": lambda: Between(Apply(lambda x: F.interpolate(x, size=(7, 9), mode="bicubic", antialias=True))),
    "antialias-one-column": lambda: Between(
        Apply(lambda x: F.interpolate(x, scale_factor=(0.7, 1 / 13), mode="bilinear", antialias=True))
    ),
    "upsample-by-keyword": lambda: Between(Apply(lambda x: F.interpolate(input=x, scale_factor=1.5))),
    "frozen-norm": lambda: Between(Frozen()),
    "standardised-kernels": lambda: Between(Standardised()),
    "kernel-made-in-forward": lambda: Between(Blur()),
    "coordinates": lambda: Between(Positions(), 10),
    "scattered": lambda: Between(Scattered(), 12),
    "part-written": lambda: Between(PartWritten()),
    "isinstance": lambda: Between(Skipping(lambda x: isinstance(x, torch.Tensor))),
    "type-is": lambda: Between(Skipping(lambda x: type(x) is torch.Tensor)),
    "is-tensor": lambda: Between(Skipping(torch.is_tensor)),
    "jit-isinstance": lambda: Between(Skipping(lambda x: torch.jit.isinstance(x, torch.Tensor))),
    "on-the-processor": lambda: Between(Skipping(lambda x: x.device.type == "cpu" and not x.is_cuda)),
    "autocast": lambda: Between(HalfPrecision()),
    "half-and-back": lambda: Between(Apply(lambda x: (x.half() * 2).float())),
    "double": lambda: Between(Apply(lambda x: (x * torch.ones(1, 1, 1, 1, dtype=torch.float64)).float())),
    "own-gradient": lambda: Between(Apply(Swish.apply)),
    "iterated": lambda: Between(Apply(Iterated())),
    "defaults": lambda: Between(DefaultsAndMore()),
    "data-parallel": lambda: nn.DataParallel(Between(nn.ReLU())),
    "compiled": lambda: torch.compile(Between(nn.ReLU())),
    "rounding-mode": lambda: Between(Apply(lambda x: torch.div(x, 0.3, rounding_mode="floor"))),
    "softmax-in-double": lambda: Between(Apply(lambda x: F.softmax(x, 1, dtype=torch.float64).float())),
    "alpha": lambda: Between(Apply(lambda x: torch.add(x, x.relu(), alpha=2))),
    "turned-around": lambda: Between(Apply(lambda x: 1 - 2 / (2**x + 1.5))),
    "powers": lambda: Between(Apply(lambda x: raised(x.sort(1).values ** 2) ** 0.5 + x**2)),
    "indices": lambda: Between(Apply(lambda x: F.max_pool2d(x, 2, return_indices=True)[1].float() / 100)),
    "views": lambda: Between(Apply(lambda x: x.view(x.shape[0], -1).cumsum(1).view_as(x) / 9)),
    "inference-mode": lambda: Between(Apply(torch.inference_mode()(lambda x: x.relu() + 1))),
    "no-grad": lambda: Between(Apply(torch.no_grad()(lambda x: x.relu() + 1))),
    "weight-norm": lambda: Between(nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))),
    "spectral-norm": lambda: Between(nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 3, padding=1))),
    "ceil-mode-tiny": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, 8), nn.MaxPool2d(5, 3, 1, ceil_mode=True), nn.Conv2d(8, 4, 1)
    ),
    "ceil-mode-average": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, 8), nn.AvgPool2d(3, 2, ceil_mode=True), nn.Conv2d(8, 4, 1)
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch's compiler says it of itself
def test_split_equals_the_module_itself(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    own = getattr(model, "_orig_mod", model)
    for batch in (1, 3):
        images = torch.randn(batch, *PICTURE)
        with torch.inference_mode():
            wanted = own(images.clone())
        for scheme, ranks in (("kpm", 2), ("wpm", 3)):
            plan = make_plan(model, images.shape, scheme, ranks)
            assert_close(run_split(model, plan, images), wanted)


@dataclass
class Answer:
    """What a network may return."""

    scores: torch.Tensor
    more: dict
    name: str = "answer"


class Returning(nn.Module):
    def __init__(self, pack):
        super().__init__()
        self.conv, self.pack = nn.Conv2d(3, 4, 3), pack

    def forward(self, x):
        return self.pack(self.conv(x))


@pytest.mark.parametrize(
    "pack",
    [
        pytest.param(lambda y: Answer(y, {"mean": y.mean((2, 3)), "none": None}), id="dataclass"),
        pytest.param(lambda y: (y > 0, y.argmax(1), None, 3, "text"), id="other-types"),
        pytest.param(lambda y: {"same": y, "again": [y, y[:0]], "constant": torch.ones(2)}, id="twice-and-empty"),
        pytest.param(lambda y: torch.max(y, 1), id="named-tuple"),
    ],
)
def test_outputs_come_as_the_module_gives_them(pack):
    torch.manual_seed(0)
    model, images = Returning(pack).eval(), torch.randn(2, *PICTURE)
    with torch.inference_mode():
        wanted = model(images)
        got = run_split(model, make_plan(model, images.shape, "wpm", 2), images)
    assert type(got) is type(wanted)
    mine, whole = tensors_in(got), tensors_in(wanted)
    assert [(t.shape, t.dtype) for t in mine] == [(t.shape, t.dtype) for t in whole]
    for one, other in zip(mine, whole, strict=True):
        torch.testing.assert_close(one, other)
    if isinstance(got, Answer):
        assert (got.name, got.more["none"]) == ("answer", None)
        assert run_split(model, make_plan(model, images.shape), images).scores is not got.scores


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        self.calls += 1
        return self.conv(x) * self.calls


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))


def within_scripted():
    return nn.Sequential(scripted(), nn.Conv2d(4, 4, 3))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        pytest.param(lambda: Apply(lambda x: x * x.max().item()), r"at test_tracing\.py:\d+: item asks for", id="item"),
        pytest.param(
            lambda: Apply(lambda x: x if (x > 0).all() else -x), r"test_tracing\.py:\d+: bool asks", id="bool"
        ),
        pytest.param(lambda: Apply(lambda x: torch.from_numpy(x.numpy())), r"test_tracing\.py:\d+: numpy", id="numpy"),
        pytest.param(lambda: Apply(lambda x: x[x > 0]), r"cannot be run.*test_tracing\.py:\d+", id="nonzero"),
        pytest.param(Counting, "changes calls whenever the model is called", id="changing-state"),
        pytest.param(scripted, "it is a ScriptModule .*pass the module that it was made of", id="script"),
        pytest.param(within_scripted, "its 0 is a ScriptModule", id="script-inside"),
        pytest.param(lambda: Apply(lambda x: 1 / 0), r"cannot be run.*:\d+: ZeroDivisionError", id="error"),
    ],
)
def test_what_depends_on_content_is_refused_by_line(make, word, capfd):
    with pytest.raises(ModelError, match=word):
        trace(make().eval(), PICTURE)
    assert capfd.readouterr().err == ""


class Attending(nn.Module):
    """Products of matrices in all the ways there are."""

    def __init__(self):
        super().__init__()
        self.mha, self.fc = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 12)
        self.up, self.line = nn.ConvTranspose2d(8, 4, 2, 2, groups=2), nn.Conv1d(8, 4, 3)

    def forward(self, x):
        rows = x.flatten(2).transpose(1, 2)
        one = self.fc(self.mha(rows, rows, rows)[0])
        two = torch.einsum("nld,nmd->nlm", rows, rows) @ rows + F.scaled_dot_product_attention(rows, rows, rows)
        three = torch.baddbmm(two, torch.bmm(rows, rows.mT), rows)
        return one.sum() + three.sum() + self.up(x).sum() + self.line(x.flatten(2)).sum()


def test_what_the_root_computes_is_counted_as_torch_counts_it():
    from torch.utils.flop_counter import FlopCounterMode

    model = nn.Sequential(nn.Conv2d(3, 8, 3), Attending()).eval()
    with FlopCounterMode(display=False) as counter:  # with gradients, for it does not see into a fast path without
        model(torch.zeros(1, *PICTURE))
    for batch in (1, 2):
        units = trace(model, PICTURE, batch=batch).graph.units
        assert sum(unit.flops for unit in units) == counter.get_total_flops()


def test_a_module_is_traced_once_until_it_changes():
    model = Between(Standardised()).eval()
    first = trace(model, PICTURE)
    assert trace(model, PICTURE).tensors is first.tensors
    assert trace(model, PICTURE).tensors is first.tensors
    key = next(key for key in first.tensors if key.startswith("constant:"))
    with torch.no_grad():
        model.middle.weight.mul_(torch.rand(8, 1, 1, 1)).add_(torch.rand(8, 8, 3, 3))
    changed = trace(model, PICTURE)
    assert not torch.equal(changed.tensors[key], first.tensors[key])
    model.last.register_forward_hook(lambda _module, _args, out: out + 1)
    assert trace(model, PICTURE).tensors is not changed.tensors
