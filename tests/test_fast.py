"""What makes it fast and must change nothing: reordered weights, pieces, number formats, waiting, reading ahead."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from mpiconv.data.pictures import ahead
from mpiconv.errors import MpiconvError, UsageError
from mpiconv.graph.trace import trace
from mpiconv.partition import Box, make_plan
from mpiconv.partition.box import Span, union_size
from mpiconv.partition.exchange import exchange
from mpiconv.partition.pieces import pieces
from mpiconv.partition.receptive import layer_boxes, needed
from mpiconv.partition.schedule import Held
from mpiconv.runtime.compute import fuser, onednn
from mpiconv.runtime.compute.engines import _compiles, local_unit
from mpiconv.runtime.compute.local import weights_of
from mpiconv.runtime.emulation import Paced
from mpiconv.runtime.exchange.parts import Memory, Parts
from mpiconv.runtime.exchange.shared import SharedExchanger, _Place
from mpiconv.runtime.exchange.wire import WIRES
from mpiconv.runtime.settings import Settings
from mpiconv.study.benchmark import AT_ONCE, COMPUTING, EXCHANGING, Benchmark, is_benchmark, targets
from mpiconv.study.report import write_report
from tests.conftest import script
from tests.simulated import assert_close

needs_onednn = pytest.mark.skipif(not onednn.available(), reason="this torch has no oneDNN with reordered weights")
needs_fuser = pytest.mark.skipif(not fuser.available(), reason="this torch has no fuser for oneDNN")

ACTIVATIONS = [
    ("ReLU", {}),
    ("LeakyReLU", {"negative_slope": 0.3}),
    ("Hardtanh", {"min_val": -0.5, "max_val": 0.4}),
    ("ReLU6", {}),
    ("GELU", {}),
    ("GELU", {"approximate": "tanh"}),
    ("Sigmoid", {}),
    ("Tanh", {}),
    ("SiLU", {}),
    ("Hardswish", {}),
]


@needs_onednn
@pytest.mark.parametrize(("module", "arguments"), ACTIVATIONS)
def test_activations_in_the_convolution(module, arguments):
    x, weight, bias = torch.randn(2, 6, 9, 7), 3 * torch.randn(8, 3, 3, 2), torch.randn(8)
    fused = onednn.activation_of(module, arguments)
    with torch.inference_mode():
        mine = onednn.convolution(weight, bias, x.shape, (1, 2), (1, 0), (2, 1), 2, fused)(x)
        wanted = getattr(nn, module)(**arguments)(F.conv2d(x, weight, bias, (1, 2), (1, 0), (2, 1), 2))
    assert_close(mine, wanted)


@needs_fuser
@pytest.mark.parametrize(
    ("module", "arguments"),
    [*(a for a in ACTIVATIONS if "approximate" not in a[1]), ("ELU", {"alpha": 0.5}), ("Softsign", {})],
)
def test_fused_activations(module, arguments):
    x, weight, bias = torch.randn(2, 6, 9, 7), 3 * torch.randn(8, 3, 3, 2), torch.randn(8)
    activation = getattr(nn, module)(**arguments)
    conv = fuser.convolution(weight, bias, (1, 2), (1, 0), (2, 1), 2, activation)
    mine = fuser.fused(conv, (x,))
    assert mine is not conv
    with torch.inference_mode():
        assert_close(mine(x), activation(F.conv2d(x, weight, bias, (1, 2), (1, 0), (2, 1), 2)))


@needs_fuser
def test_several_are_fused_and_maps_may_lie_anyhow():
    made = []
    for _ in range(3):
        weight, bias = torch.randn(96, 64, 3, 3), torch.randn(96)
        x = torch.randn(1, 64, 9, 8).contiguous(memory_format=torch.channels_last)
        conv = fuser.convolution(weight, bias, (1, 1), (1, 1), (1, 1), 1, nn.ReLU())
        made.append((fuser.fused(conv, (x,)), weight, bias, x))
    for run, weight, bias, x in made:
        wide = torch.randn(1, 100, 20, 8).contiguous(memory_format=torch.channels_last)
        wide[:, 3:67, 4:13] = x
        rows = torch.randn(1, 64, 20, 8).contiguous(memory_format=torch.channels_last)
        rows[:, :, 4:13] = x
        with torch.inference_mode():
            wanted = F.conv2d(x, weight, bias, 1, 1).relu()
            for same in (x, x.contiguous(), wide[:, 3:67, 4:13], rows[:, :, 4:13]):
                before = same.clone()
                assert_close(run(same), wanted)
                assert torch.equal(same, before)
            assert_close(run(x[:, :, :7]), F.conv2d(x[:, :, :7], weight, bias, 1, 1).relu())


@needs_fuser
def test_what_is_fused_works_on_maps_in_one_piece():
    """Slices of channels, which oneDNN adds 50 times slower, are copied before."""
    wide = torch.randn(1, 32, 9, 8).contiguous(memory_format=torch.channels_last)
    maps = wide[:, :16], wide[:, 16:].contiguous(memory_format=torch.channels_last)
    seen = []

    def add(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.append(a.is_contiguous(memory_format=torch.channels_last))
        return (a + b).relu()

    run = fuser.fused(add, maps)
    assert run is not add
    assert all(seen)
    with torch.inference_mode():
        assert torch.equal(run(*maps), (maps[0] + maps[1]).relu())


@needs_fuser
def test_units_too_large_to_compile():
    """Their weights would be there twice; slices of a unit go with the whole."""
    model = nn.Sequential(nn.Conv2d(512, 512, 3), nn.Conv2d(512, 256, 3)).eval()
    large, small = trace(model, (512, 5, 5)).graph.body
    assert [_compiles(unit) for unit in (large, small)] == [False, False]
    assert _compiles(trace(nn.Sequential(nn.Conv2d(384, 256, 3)), (384, 5, 5)).graph.body[0])


@pytest.mark.parametrize(
    "layer",
    [
        nn.GELU("tanh"),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        nn.AvgPool2d(2, 3, 0, divisor_override=3),
        nn.MaxPool2d(3, 2, 1, 2, ceil_mode=True),
        nn.MaxPool2d((3, 2), (2, 1), (0, 1)),
    ],
    ids=repr,
)
def test_units_of_odd_layers(layer):
    model = nn.Sequential(nn.Conv2d(3, 16, 3), layer).eval()
    unit, state, images = trace(model, (3, 14, 12)).graph.body[0], model.state_dict(), torch.randn(2, 3, 14, 12)
    weights = [{p.role: state[p.key] for p in part.params} for part in unit.layers]
    assert len(unit.layers) == 2
    compute = local_unit(unit, Box.whole(unit.out_shape), weights, 2, "auto")
    with torch.inference_mode():
        wanted = model(images)
        for _ in range(3):
            assert_close(compute(images), wanted)


@needs_fuser
@pytest.mark.parametrize("length", [7, 56])
@pytest.mark.parametrize("stride", [1, 2])
def test_slices_of_a_pointwise_and_a_depthwise_convolution(length, stride):
    """They are one unit; where it is sliced, whole and slices are computed in the same order."""
    layers = [nn.Conv2d(24, 144, 1), nn.ReLU6(), nn.Conv2d(144, 144, 3, stride, 1, groups=144), nn.ReLU6()]
    model = nn.Sequential(*layers, nn.Conv2d(144, 24, 1)).eval()
    unit, state = trace(model, (24, length, length)).graph.body[0], model.state_dict()
    assert [layer.kind for layer in unit.layers] == ["conv", "activation"] * 2
    box, images = Box.whole(unit.out_shape), torch.randn(1, 24, length, length)
    weights = [{p.role: state[p.key] for p in layer.params} for layer in unit.layers]
    with torch.inference_mode():
        wanted = model[:4](images)
        whole = local_unit(unit, box, weights, 1, "auto", sliced=True)(images)
        assert_close(whole, wanted)
        assert_close(local_unit(unit, box, weights, 1, "auto")(images), wanted)
        for channels in (Span(0, 48), Span(48, 97), Span(97, 144)):
            part = Box(channels, box.rows, box.columns)
            compute = local_unit(unit, part, weights_of(unit, box, weights, part), 1, "auto", sliced=True)
            assert torch.equal(compute(images), whole[:, channels.lo : channels.hi])


@needs_fuser
@pytest.mark.parametrize("kernels", [1, 16, 33, 51, 64, 100])
@pytest.mark.parametrize("channels", [3, 16, 512])
def test_fused_slices_have_the_bits_of_the_whole(channels, kernels):
    x, weight, bias = torch.randn(1, channels, 14, 14), torch.randn(128, channels, 3, 3), torch.randn(128)
    whole, part = (
        fuser.fused(fuser.convolution(weight[:n], bias[:n], (1, 1), (1, 1), (1, 1), 1, nn.ReLU()), (x,))
        for n in (128, kernels)
    )
    with torch.inference_mode():
        assert part(x).shape[1] == kernels
        assert torch.equal(whole(x)[:, :kernels], part(x))


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((2, 3))], ids=repr)
def test_means_of_slices_have_the_bits_of_the_whole(pool):
    model = nn.Sequential(nn.Conv2d(3, 1280, 1), pool, nn.Conv2d(1280, 3, 1)).eval()
    unit = trace(model, (3, 7, 7)).graph.body[1]
    box, images = Box.whole(unit.out_shape), torch.randn(1, 1280, 7, 7).contiguous(memory_format=torch.channels_last)
    whole = local_unit(unit, box, [{}], 1, "auto")(images)
    assert_close(whole, pool(images))
    for lo, hi in ((0, 427), (427, 854), (1279, 1280)):
        compute = local_unit(unit, Box(Span(lo, hi), box.rows, box.columns), [{}], 1, "auto")
        assert torch.equal(compute(images[:, lo:hi]), whole[:, lo:hi])


def test_an_activation_that_onednn_lacks_is_left_alone():
    assert onednn.activation_of("ELU", {}) is None


@needs_onednn
@pytest.mark.parametrize("kernels", [1, 16, 33, 51, 64, 100])
@pytest.mark.parametrize("channels", [3, 16, 512])
def test_a_slice_of_kernels_gives_the_bits_of_the_whole(channels, kernels):
    x, weight, bias = torch.randn(1, channels, 14, 14), torch.randn(128, channels, 3, 3), torch.randn(128)
    with torch.inference_mode():
        whole = onednn.convolution(weight, bias, x.shape, (1, 1), (1, 1), (1, 1), 1)(x)
        part = onednn.convolution(weight[:kernels], bias[:kernels], x.shape, (1, 1), (1, 1), (1, 1), 1)(x)
    assert part.shape[1] == kernels
    assert torch.equal(whole[:, :kernels], part)


@pytest.mark.parametrize(("compute", "packed"), [("eager", None), ("auto", None), ("auto", {})])
def test_norm_and_activation_are_fused_without_a_trace(compute, packed):
    model = nn.Sequential(nn.Conv2d(3, 20, 3, 1, 1, bias=False), nn.BatchNorm2d(20), nn.ReLU(inplace=True)).eval()
    norm = model[1]
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.2, 3)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.uniform_(norm.bias, -1, 1)
    unit, state = trace(model, (3, 8, 9)).graph.body[0], model.state_dict()
    box = Box.whole(unit.out_shape)
    weights = [{p.role: state[p.key] for p in layer.params} for layer in unit.layers]
    images = torch.randn(2, 3, 8, 9)
    with torch.inference_mode():
        assert_close(local_unit(unit, box, weights, 2, compute, packed=packed)(images.clone()), model(images))


PLANS = [
    (scheme, ranks, model)
    for scheme in ("kpm", "wpm", "grid", "fused", "columns", "tiles")
    for ranks in (2, 3, 5)
    for model in (0, 1)
]


@pytest.mark.parametrize(("scheme", "ranks", "which"), PLANS)
def test_pieces_make_the_box_without_overlap_and_send_all(scheme, ranks, which):
    wide = nn.Sequential(nn.Conv2d(3, 96, 5, 2), nn.ReLU(), nn.Conv2d(96, 160, 3, 1, 1), nn.Conv2d(160, 64, 3))
    thin = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.MaxPool2d(3, 2), nn.Conv2d(8, 7, 7, 1, 3), nn.Conv2d(7, 3, 1))
    plan = make_plan((wide, thin)[which], (1, 3, 40, 31), scheme, ranks)
    for index, unit in enumerate(plan.graph.body):
        spread = plan.exchanges[index]
        cut = pieces(unit, spread)
        for rank, own in enumerate(plan.boxes[index]):
            mine = [piece[rank] for piece in cut if piece[rank]]
            assert sum(box.size for box in mine) == union_size(mine) == own.size
            assert all(box in own for box in mine)
        parts = [spread.part(owned) for owned in cut]
        assert sum(part.received(r) for part in parts for r in range(ranks)) == sum(map(spread.received, range(ranks)))


def test_pieces_where_they_help():
    model = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1), nn.Conv2d(64, 64, 3, 1, 1))
    kernels = make_plan(model, (1, 3, 40, 40), "kpm", 2)
    assert len(pieces(kernels.graph.body[0], kernels.exchanges[0])) == 2
    bands = make_plan(model, (1, 3, 40, 40), "wpm", 2)
    cut = pieces(bands.graph.body[0], bands.exchanges[0])
    assert [str(piece[0].rows) for piece in cut] == ["0:0", "19:20", "0:19"], "the row that rank 1 needs comes first"
    bands = make_plan(model, (1, 3, 40, 40), "columns", 2)
    cut = pieces(bands.graph.body[0], bands.exchanges[0])
    assert [str(piece[0].columns) for piece in cut] == ["0:0", "19:20", "0:19"]
    few = make_plan(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)), (1, 3, 9, 9), "kpm", 2)
    assert len(pieces(few.graph.body[0], few.exchanges[0])) == 1


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("name", sorted(WIRES))
def test_wire_formats(name, channels_last):
    memory, wire = Memory(channels_last=channels_last), WIRES[name]
    frame = Box.of([(0, 5), (2, 9), (0, 4)])
    boxes = [[Box.of([(0, 2), (2, 9), (0, 4)])], [Box.of([(2, 5), (3, 5), (1, 4)]), Box.of([(4, 5), (8, 9), (0, 1)])]]
    tensor = torch.randn(3, *frame.shape) * torch.tensor([1, 10, 1e3, 0, 1e-3]).view(1, 5, 1, 1)
    got = memory.empty(3, frame).fill_(torch.nan)
    sender = Parts(frame, boxes, 3, memory, wire)
    receiver = Parts(frame, boxes, 3, memory, wire, got)
    sender.pack(tensor)
    receiver.fixed.copy_(sender.fixed)
    receiver.unpack()
    for box in (box for peer in boxes for box in peer):
        where = (slice(None), *box.within(frame))
        error = (got[where] - tensor[where]).abs().amax((0, 2, 3))
        largest = tensor[where].abs().amax((0, 2, 3))
        assert (error <= wire.tolerance * largest + 1e-9).all(), (name, error, largest)
    if name != "float32":
        assert sender.total < Parts(frame, boxes, 3, memory).total or name == "int8"


def test_settings_are_checked():
    for wrong in (
        {"compute": "fast"},
        {"wire": "float8"},
        {"wait": "nap"},
        {"same_host": "pigeon"},
        {"in_flight": 0},
        {"pace": 0.5},
    ):
        with pytest.raises(UsageError):
            Settings(**wrong)


def test_a_place_in_shared_memory_is_not_written_before_it_was_read():
    """Rank 0 makes a map that rank 1 needs half of; rank 1 has not read the last frame when the next one is made."""
    whole, half = Box.whole((4, 3, 2)), Box.whole((2, 3, 2))
    spec = exchange([whole, Box()], [whole, half], "a map")
    frames = [Held.of(spec, rank) for rank in range(2)]
    view, flags = torch.zeros(1, 2, 3, 2), memoryview(bytearray(2 * 2 * 64)).cast("q")
    views = {_Place(frames[1], (1,), 0): view}
    first, second = (
        SharedExchanger(spec, 1, rank, frames, views, flags, Memory(channels_last=False), "bcast") for rank in range(2)
    )
    picture = torch.arange(24.0).view(1, 4, 3, 2)
    assert first.room.reached()
    there = second.start(None)
    assert not there.done()
    assert first.start(picture).done()
    assert there.done()
    assert torch.equal(second.finish(), picture[:, :2])
    assert first.finish() is picture
    assert not first.room.reached(), "rank 1 still reads"
    second.release()
    assert first.room.reached()
    first.start(picture + 1)
    assert second.start(None).done()
    assert torch.equal(second.finish(), picture[:, :2] + 1)
    assert (first.counter.bytes_sent, second.counter.bytes_received, first.counter.messages_sent) == (96, 96, 2)


def test_pace_is_taken_from_undisturbed_runs():
    calls = []
    paced = Paced(lambda x: calls.append(x) or x, 5)
    for i in range(5):
        assert paced(i) == i
    assert len(calls) == 5 + Paced.TRIED * Paced.AGAIN
    assert paced.calls == 5 - Paced.TRIED


@pytest.mark.parametrize("depth", [0, 1, 3, 100])
def test_reading_ahead(depth):
    threads = set()

    def load(index: int) -> torch.Tensor:
        threads.add(threading.get_ident())
        return torch.tensor(index)

    assert [int(x) for x in ahead(load, 7, depth)] == list(range(7))
    assert threading.get_ident() not in threads
    assert list(ahead(load, 0, depth)) == []


def test_help_needs_no_torch():
    code = "import sys; from mpiconv.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_benchmark_file_table_and_page(tmp_path):
    chart, page, table = (getattr(script("bench_page"), name) for name in ("chart", "page", "table"))
    times = {"ONNX Runtime, 1 thread": [1.0, 1.1, 0.9], "mpiconv 1 rank": [1.0, 1.2], "mpiconv kpm, 2 ranks": [0.5]}
    times[AT_ONCE], times["mpiconv kpm, 2 ranks" + COMPUTING] = [1.0, 1.21, 0.99], [0.4]
    links = {f"mpiconv {scheme}, 2 ranks": [2.0] for scheme in ("kpm", "wpm")}
    links |= {"mpiconv kpm, 2 ranks" + EXCHANGING: [1.0], "mpiconv wpm, 2 ranks" + EXCHANGING: [0.2]}
    links |= {f"{scheme}, --in-flight 2": [1.5] for scheme in ("kpm", "wpm")}
    whole = {"mpiconv 1 rank": [1.5], "mpiconv wpm, 2 ranks": [1.1]}
    result = Benchmark.of(
        {
            "vgg11, conv part": {"times": times, "overhead": {"mpiconv 1 rank": [1e-4, 3e-4, 1e-4]}},
            "vgg11, whole": {"times": whole, "overhead": {}},
            "vgg11 over links": {"times": links, "overhead": {}},
        },
        "a machine",
    )
    result.save(tmp_path / "b.h5")
    assert is_benchmark(tmp_path / "b.h5")
    again = Benchmark.load(tmp_path / "b.h5")
    assert table(again) == table(result)
    assert np.array_equal(again.times["vgg11, conv part"]["mpiconv 1 rank"], [1.0, 1.2])
    found = {row[1]: row[2:] for row in targets(again)}
    assert found["two ranks against ONNX Runtime, one thread (kpm, 2 ranks)"] == ("0.500", "0.540", "holds")
    assert found["half the time of two ONNX Runtimes at once against one"] == ("0.550", "-", "limit")
    computing = "of the two ranks' time: computing, unit by unit the slower rank's (kpm, 2 ranks)"
    assert found[computing] == ("0.400", "-", "limit")
    hidden = "two pictures under way against one ({}, --in-flight 2), where {} of one is exchange"
    assert found[hidden.format("kpm", "50%")] == ("0.750", "0.769", "holds")
    assert found[hidden.format("wpm", "10%")] == ("0.750", "0.769", "no aim there")
    assert found["one rank against ONNX Runtime, one thread each (1 rank)"] == ("1.100", "1.050", "missed")
    assert "| vgg11 | 1100.0 | 400.0 | 1.58 | 1.36 |" in page(again, "x.png")
    newer = Benchmark.of({"vgg11, whole": {"times": {"mpiconv 1 rank": [3.0]}, "overhead": {}}}, "a machine")
    both = again.updated(newer)
    assert list(both.times) == list(again.times)
    assert list(both.times["vgg11, whole"]["mpiconv 1 rank"]) == [3.0]
    assert page(both, "x.png").count(f"Taken {newer.taken['vgg11, whole']}") >= 1
    with pytest.raises(MpiconvError, match="one machine"):
        again.updated(replace(newer, machine="another"))
    chart(again, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000
    beside = write_report([tmp_path / "b.h5"], tmp_path / "report.html").beside
    html = (tmp_path / "report.html").read_text()
    assert html.count("<img ") == 3
    assert "a machine" in html
    assert ">holds</td>" in html
    assert sorted(path.name for path in beside.iterdir()) == [
        f"benchmark-1-{number}.{kind}" for number in (1, 2, 3) for kind in ("csv", "png", "svg")
    ]


def test_layers_of_a_band_fit():
    """A band whose first layer gets its padding with the buffer computes what one that pads itself does."""
    from mpiconv.partition.padding import margin

    model = nn.Sequential(nn.Conv2d(3, 4, 5, 1, 2), nn.ReLU()).eval()
    unit, state = trace(model, (3, 12, 9)).graph.body[0], model.state_dict()
    images = torch.randn(1, 3, 12, 9)
    for rows in ((0, 4), (4, 9), (9, 12), (0, 12)):
        box = Box.of([(0, 4), rows, (0, 9)])
        weights = [{p.role: state[p.key] for p in layer.params} for layer in unit.layers]
        assert layer_boxes(unit, box)[-1] == box
        (above, below), (left, right), value = margin(unit, box)
        lo, hi = max(rows[0] - 2, 0), min(rows[1] + 2, 12)
        held = images[:, :, lo:hi]
        padded = F.pad(held, (left, right, above, below), value=value)
        with torch.inference_mode():
            wanted = model(images)[:, :, rows[0] : rows[1]]
            for compute, packed in (("eager", None), ("auto", None), ("auto", {})):
                assert_close(local_unit(unit, box, weights, 1, compute, packed=packed)(held), wanted)
                assert_close(local_unit(unit, box, weights, 1, compute, padded=True, packed=packed)(padded), wanted)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("compute", ["eager", "auto"])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 4, 3, 1, 1),
        nn.Conv2d(3, 4, 3, 2, 1),
        nn.Conv2d(3, 4, 3, 1, 2, 2),
        nn.Conv2d(3, 4, (4, 2), 1, (2, 1)),
        nn.MaxPool2d(3, 2, 1),
    ],
    ids=repr,
)
def test_bands_at_the_edge_pad_themselves(layer, compute, batch, monkeypatch):
    """No copy of the map with padding is made for them: they compute a row too many where both edges are padded."""
    model = nn.Sequential(layer, nn.ReLU()).eval()
    unit, state = trace(model, (3, 24, 18)).graph.body[0], model.state_dict()
    images = torch.randn(batch, 3, 24, 18)
    with torch.inference_mode():
        wanted = model(images)
        monkeypatch.setattr(F, "pad", lambda *_, **__: pytest.fail("a copy with padding"))
        monkeypatch.setattr(onednn, "slices", lambda weight, bias, _: [(weight, bias, None)])
        monkeypatch.setattr(fuser, "slices", onednn.slices)
        count = wanted.shape[2]
        for rows in ((0, count // 2), (count // 2, count)):
            box = Box(Span(0, wanted.shape[1]), Span(*rows), Span(0, wanted.shape[3]))
            weights = [{p.role: state[p.key] for p in part.params} for part in unit.layers]
            need = needed(unit.layers[0], layer_boxes(unit, box)[0])[0].rows
            run = local_unit(unit, box, weights, batch, compute)
            assert_close(run(images[:, :, need.lo : need.hi]), wanted[:, :, rows[0] : rows[1]])


@needs_onednn
@pytest.mark.parametrize("slow", [True, False])
def test_weights_in_the_order_of_another_shape(slow, monkeypatch):
    """A piece shares the whole box's weights unless they are of no use to it; its numbers are the same."""
    monkeypatch.setattr(onednn, "_slow", lambda *_: slow)
    weight, bias, packed = torch.randn(32, 16, 3, 3), torch.randn(32), {}
    whole, piece = (
        onednn.convolution(weight, bias, (1, 16, rows, 9), (1, 1), (0, 1), (1, 1), 1, onednn.NONE, packed, ("conv",))
        for rows in (8, 3)
    )
    x = torch.randn(1, 16, 8, 9).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.allclose(piece(x[:, :, :3]), whole(x)[:, :, :1], atol=1e-5)
    assert len(packed) == 1 + slow
