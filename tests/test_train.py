"""``mpiconv train``: it learns, stops, goes on with the same numbers, alone or over ranks; and ``run`` after it."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from mpi4py import MPI
from safetensors.torch import save_file
from torch.nn import functional as F  # noqa: N812

import mpiconv as package
from mpiconv.cli.train import above_zero, from_zero, momentum, part
from mpiconv.data.datasets import Some, open_data, prepare
from mpiconv.errors import ModelError, MpiconvError, UsageError
from mpiconv.models.weights import read_weights
from mpiconv.partition import SCHEMES
from mpiconv.training import Settings, train
from mpiconv.training.batches import Changes, change, draw_changes, epoch_batches, share
from mpiconv.training.trainer import checkpoint_of
from tests import cifar
from tests.conftest import ROOT, clean_environment, execute, mpiconv
from tests.test_errors import assert_fails

COMM = MPI.COMM_WORLD
SMALL = Settings("tests.own_model:learner", "digits", epochs=3, batch=25, lr=0.1, input_size=(16, 16), limit=120)
WORDS = [
    "--model", SMALL.model, "--data", "digits", "--batch", 25, "--lr", 0.1, "--input-size", "16x16", "--limit", 120
]  # fmt: skip


class StopError(Exception):
    pass


def numbers(epochs):
    return [(epoch.number, epoch.loss, epoch.accuracy, epoch.lr) for epoch in epochs]


def state_of(output: Path) -> dict[str, torch.Tensor]:
    found = torch.load(checkpoint_of(output), weights_only=True)
    return {**found["model"], **{f"momentum of {name}": tensor for name, tensor in found["momenta"].items()}}


def assert_same(mine: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert mine.keys() == wanted.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, wanted[name]), name


def test_alexnet_learns_cifar10_and_goes_on_as_if_it_had_not_stopped(tmp_path):
    """Uninterrupted from the binary files, stopped and resumed from the pickles: bit for bit the same."""
    cifar.write_binary(tmp_path, 4)
    cifar.write_python(tmp_path, 4)
    settings = Settings("alexnet", f"cifar10:{tmp_path / 'cifar-10-batches-bin'}", epochs=2, batch=4, limit=16)
    whole, halves, steps = tmp_path / "whole.safetensors", tmp_path / "halves.safetensors", []
    epochs = train(settings, MPI.COMM_SELF, whole, on_step=lambda *step: steps.append(step))
    assert [step[:2] for step in steps] == [(i, 8) for i in range(1, 9)]
    assert epochs[-1].loss < 0.9 * epochs[0].loss

    def stop(epoch):
        raise StopError

    settings = replace(settings, data=f"cifar10:{tmp_path / 'cifar-10-batches-py'}")
    with pytest.raises(StopError):
        train(settings, MPI.COMM_SELF, halves, on_epoch=stop)
    again = []
    resumed = train(settings, MPI.COMM_SELF, halves, resume=True, on_step=lambda *step: again.append(step))
    assert again == steps[4:]
    assert numbers(resumed) == numbers(epochs)
    assert_same(state_of(halves), state_of(whole))
    (best, metadata), (wanted, same) = read_weights(halves), read_weights(whole)
    assert_same(best, wanted)
    assert metadata == same
    for path in tmp_path.glob("*.*"):
        path.unlink()  # 1.4 GB


def test_a_signal_leaves_a_whole_checkpoint(tmp_path):
    words = ["train", *WORDS, "--epochs", 16, "--json"]
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    wanted = mpiconv(0, *words, "--output", whole, cwd=ROOT).json
    command = [sys.executable, "-m", "mpiconv", *map(str, words), "--output", str(stopped)]
    process = subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not checkpoint_of(stopped).exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert f"error: interrupted: --resume goes on from {checkpoint_of(stopped)}" in error
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"{name}.{end}" for name in ("whole", "stopped") for end in ("safetensors", "checkpoint")}
    done = len(torch.load(checkpoint_of(stopped), weights_only=True)["epochs"])
    assert 1 <= done < 16
    ended = mpiconv(0, *words, "--output", stopped, "--resume", cwd=ROOT)
    assert ended.status == 0, ended.err
    for found, epoch in zip(ended.json["epochs"], wanted["epochs"], strict=True):
        assert {**found, "seconds": 0} == {**epoch, "seconds": 0}
    assert_same(state_of(stopped), state_of(whole))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "w.safetensors"
    train(SMALL, MPI.COMM_SELF, output)
    return output


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"lr": 0.2}, "training with lr 0.1, not 0.2", id="lr"),
        pytest.param({"epochs": 4}, "training with epochs 3, not 4", id="epochs"),
        pytest.param(
            {"model": "digits", "input_size": None},
            "training with model tests.own_model:learner, not digits",
            id="model",
        ),
        pytest.param({"shift": False}, "training with shift True, not False", id="augmentation"),
        pytest.param({"input_size": (17, 17)}, r"training with input-size \[16, 16\], not \[17, 17\]", id="input-size"),
        pytest.param({"limit": 121}, "training with limit 120, not 121", id="limit"),
    ],
)
def test_a_checkpoint_of_another_training(trained, changed, message):
    with pytest.raises(MpiconvError, match=f"w.checkpoint is of a {message}"):
        train(replace(SMALL, **changed), MPI.COMM_SELF, trained, resume=True)


def test_a_missing_or_broken_checkpoint(tmp_path, trained):
    output = tmp_path / "x.safetensors"
    with pytest.raises(MpiconvError, match=r"there is no checkpoint .*x\.checkpoint to go on from"):
        train(SMALL, MPI.COMM_SELF, output, resume=True)
    content = checkpoint_of(trained).read_bytes()
    for wrong in (content[: len(content) // 2], b"", b"hello"):
        checkpoint_of(output).write_bytes(wrong)
        with pytest.raises(MpiconvError, match=r"x\.checkpoint is cut short or no checkpoint"):
            train(SMALL, MPI.COMM_SELF, output, resume=True)
    torch.save({"mpiconv_checkpoint": 99}, checkpoint_of(output))
    with pytest.raises(MpiconvError, match="its version is 99, not 1"):
        train(SMALL, MPI.COMM_SELF, output, resume=True)


def test_a_finished_training_is_not_gone_on_with(trained):
    before = trained.stat().st_mtime_ns, checkpoint_of(trained).stat().st_mtime_ns
    assert len(train(SMALL, MPI.COMM_SELF, trained, resume=True)) == 3
    assert before == (trained.stat().st_mtime_ns, checkpoint_of(trained).stat().st_mtime_ns)


def test_what_the_weights_say_of_themselves(trained):
    model = package.load_model(SMALL.model, trained)
    info = model.info
    assert info.labels == tuple("0123456789")
    assert info.input_shape == (1, 16, 16)
    assert "digits" in info.trained
    data = Some(open_data("digits", "held-out"), 120)
    right = sum(int(model(prepare([data.load(i)[0]], info)).argmax()) == data.load(i)[1] for i in range(120))
    _, metadata = read_weights(trained)
    assert metadata["held_out_pictures"] == "120"
    assert metadata["held_out_accuracy"] == f"{right / 120:.4f}"
    assert right > 12, "no better than chance"


@pytest.mark.parametrize(
    ("model", "metadata", "message"),
    [
        ("digits", {"model": "alexnet"}, "holds weights of alexnet, not of digits: use --model alexnet"),
        ("digits", {"mean": "[0.5, 0.5]"}, "mean has 2 numbers, the pictures have 1 channels"),
        ("digits", {"std": "[0]"}, r"std is '\[0\]', a list of numbers is wanted"),
        ("digits", {"mean": "half"}, "mean is 'half', a list of numbers is wanted"),
        ("digits", {"input_shape": "[1, 32]"}, r"input_shape is \[1, 32\], three whole numbers are wanted"),
        ("digits", {"input_shape": "[1, 0, 32]"}, r"input_shape is '\[1, 0, 32\]', a list of numbers is wanted"),
        ("digits", {"input_shape": "[1, 1e9, 1e9]"}, "three whole numbers are wanted"),
        ("digits", {"input_shape": "[1, Infinity, 32]"}, "a list of numbers is wanted"),
        ("digits", {"mean": "[NaN]"}, "a list of numbers is wanted"),
        ("digits", {"std": "[" * 10000}, "a list of numbers is wanted"),
    ],
)
def test_metadata_that_cannot_be(tmp_path, model, metadata, message):
    save_file(package.load_model("digits").state_dict(), tmp_path / "w.safetensors", metadata)
    with pytest.raises(ModelError, match=rf"w\.safetensors:? .*{message}"):
        package.load_model(model, tmp_path / "w.safetensors")


def test_wrong_settings(tmp_path):
    output = tmp_path / "x.safetensors"
    for changed, message in (
        ({"model": "tests.own_model:make", "input_size": (40, 40)}, r"does not run on|is no classifier"),
        ({"model": "tests.own_model:learner", "data": f"cifar10:{cifar.write_binary(tmp_path, 2)}"}, ""),
        ({"lr": 1e30, "clip": 0.0}, r"the loss is (nan|inf) in step \d of epoch 1: try a smaller --lr"),
    ):
        settings = replace(SMALL, **changed)
        if message:
            with pytest.raises(MpiconvError, match=message):
                train(settings, MPI.COMM_SELF, output)
        else:
            train(settings, MPI.COMM_SELF, output)  # grey from colour
    for name in ("a", "b", "c"):
        shutil.copytree(
            tmp_path.parent, tmp_path / "classes" / name, ignore=lambda *_: [p.name for p in tmp_path.parent.iterdir()]
        )
        for i in range(2):
            shutil.copy(ROOT / f"scripts/pictures/digit-{i}.png", tmp_path / "classes" / name)
    with pytest.raises(UsageError, match=r"learner has 10 outputs, the data has 3 classes \(a, b, c, ...\)"):
        train(replace(SMALL, data=f"folder:{tmp_path / 'classes'}"), MPI.COMM_SELF, output)


@pytest.mark.parametrize(
    ("ranks", "words", "status", "wanted"),
    [
        pytest.param(0, ["--lr", "0"], 2, "'0' is not a number above 0", id="lr-0"),
        pytest.param(0, ["--data", "cifar10:/no"], 2, "/no is not there: a folder with data_batch_1.bin", id="data"),
        pytest.param(2, ["--batch", "1"], 2, "a batch of 1 pictures cannot be shared among 2 ranks", id="batch"),
        pytest.param(0, ["--output", "w.pth"], 1, "w.pth does not end in .safetensors", id="output"),
    ],
)
def test_wrong_options(ranks, words, status, wanted):
    assert_fails(mpiconv(ranks, "train", "--data", "digits", *words), status, wanted)


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (above_zero, ("0", "-1", "nan", "inf", "x")),
        (from_zero, ("-1", "nan", "inf", "x")),
        (momentum, ("1", "-0.1", "nan", "x")),
        (part, ("0", "1", "nan", "x")),
    ],
)
def test_numbers_out_of_range(kind, texts):
    assert kind("0.5") == 0.5
    for text in texts:
        with pytest.raises(argparse.ArgumentTypeError, match=text):
            kind(text)


def test_a_rank_that_fails_ends_all(tmp_path):
    words = ["train", *map(str, WORDS), "--output", str(tmp_path / "w.safetensors")]
    broken = [sys.executable, "-m", "tests.broken_rank", "1", "mpiconv.training.trainer:change"]
    ended = execute(["mpirun", "-n", "2", *broken, *words], cwd=ROOT, timeout=90)
    assert_fails(ended, 1, "rank 1: RuntimeError:", "is broken here")


def test_train_and_evaluate_as_a_user(tmp_path):
    """CIFAR-10 through the command line over 2 ranks, then its accuracy split over 2: the one that training told."""
    data, output, results = f"cifar10:{cifar.write_binary(tmp_path, 30)}", tmp_path / "w.safetensors", tmp_path / "r.h5"
    words = ["--model", SMALL.model, "--data", data, "--input-size", "16x16", "--no-shift", "--lr", 0.1, "--batch", 10]
    ended = mpiconv(2, "train", *words, "--epochs", 5, "--output", output, cwd=ROOT)
    assert ended.status == 0, ended.err
    assert ended.out.count("held-out accuracy") == 5
    told = max(float(line.split("accuracy ")[1].split("%")[0]) for line in ended.out.splitlines()[:5]) / 100
    words = ["run", "--model", SMALL.model, "--weights", output, "--data", data, "--batch", 7, "--check"]
    ended = mpiconv(2, *words, "--json", "--output", results, "--answers", tmp_path / "a.jsonl", cwd=ROOT)
    assert ended.status == 0, ended.err
    report = ended.json
    assert report["accuracy"] == pytest.approx(told, abs=5e-5)
    assert report["accuracy"] > 0.3
    assert report["input_shape"] == [7, 1, 16, 16]
    assert len(report["predictions"]) == 30
    assert {line["label"] for line in report["predictions"]} <= set(cifar.NAMES)
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(30))
    answers = [cifar.NAMES[label] for label in cifar.pictures(30, 6)[0]]
    right = sum(line["label"] == answer for line, answer in zip(lines, answers, strict=True))
    assert report["accuracy"] == right / 30
    with h5py.File(results) as file:
        assert file.attrs["accuracy"] == right / 30
        assert file.attrs["data"] == data
        assert file["latency"].shape == (5,), "more than one pass"


def test_classes_of_run_and_data_have_to_agree(trained, tmp_path):
    data = f"cifar10:{cifar.write_binary(tmp_path, 2)}"
    ended = mpiconv(0, "run", "--model", SMALL.model, "--weights", trained, "--data", data, cwd=ROOT)
    assert_fails(ended, 2, "has 10 classes, learner was trained for 10: '0' is not in both")
    ended = mpiconv(0, "run", "--model", "digits", "--classes", 7, "--data", "digits")
    assert_fails(ended, 2, "digits has 10 classes, digits has 7 outputs")


def test_help_is_quick():
    code = "import sys; from mpiconv.cli import main; main(['train', '--help']); print('torch' in sys.modules)"
    ended = execute([sys.executable, "-c", code])
    assert ended.out.endswith("False\n")
    assert "(default: 0.02)" in ended.out


def test_batches_and_shares():
    batches = epoch_batches(23, 5, 0, 1)
    assert [len(batch) for batch in batches] == [5, 5, 5, 5]
    assert len(set(np.concatenate(batches))) == 20
    assert not np.array_equal(batches, epoch_batches(23, 5, 0, 2))
    assert [len(batch) for batch in epoch_batches(3, 5, 0, 1)] == [3]
    assert [share(np.arange(5), rank, 3).tolist() for rank in range(3)] == [[0, 1], [2, 3], [4]]


def test_changes():
    image = torch.arange(12.0).reshape(1, 1, 3, 4)

    def changed(flip, down, right):
        return change(image, Changes(np.array([flip]), np.array([[down, right]])))[0, 0]

    assert torch.equal(changed(False, 0, 0), image[0, 0])
    assert torch.equal(changed(True, 0, 0), image[0, 0].flip(1))
    padded = F.pad(image, (2, 2, 2, 2), mode="replicate")[0, 0]
    assert torch.equal(changed(False, 1, -2), padded[1:4, 4:8])
    assert torch.equal(changed(True, -1, 1), padded[3:6, 1:5].flip(1))
    drawn = draw_changes(1000, (32, 227), (0, 1, 2), flip=True, shift=True)
    assert 400 < drawn.flips.sum() < 600
    assert np.abs(drawn.moves).max(0).tolist() == [3, 23]
    none = draw_changes(1000, (32, 227), (0, 1, 2), flip=False, shift=False)
    assert not none.flips.any()
    assert not none.moves.any()


def shared_folder(comm: MPI.Comm, factory) -> Path:
    """A folder that rank 0 made, on every rank."""
    name = str(factory.mktemp("shared")) if comm.rank == 0 else ""
    return Path(comm.bcast(name))


@pytest.mark.parallel([2, 3])
def test_ranks_learn_as_one(tmp_path_factory):
    """Data-parallel training ends where one rank ends, and goes on bit for bit after a stop."""
    folder = shared_folder(COMM, tmp_path_factory)
    split, resumed, alone = (folder / f"{name}.safetensors" for name in ("split", "resumed", "alone"))

    def keep(epoch):
        if epoch.number == 1:
            shutil.copy(checkpoint_of(split), checkpoint_of(resumed))

    epochs = train(SMALL, COMM, split, on_epoch=keep)
    again = train(SMALL, COMM, resumed, resume=True)
    assert numbers(again) == numbers(epochs)
    if COMM.rank == 0:
        wanted = train(SMALL, MPI.COMM_SELF, alone)
        assert [e.loss for e in epochs] == pytest.approx([e.loss for e in wanted], rel=1e-5)
        assert [e.accuracy for e in epochs] == [e.accuracy for e in wanted]
        for name, tensor in state_of(split).items():
            assert torch.allclose(tensor, state_of(alone)[name], rtol=1e-4, atol=1e-6), name
        assert_same(state_of(resumed), state_of(split))


@pytest.mark.parallel([4])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_digits_split_are_read_as_well_as_unsplit(scheme):
    """The whole held-out set through the shipped weights: as many right, and the same classes."""
    batch, root = 40, COMM.rank == 0
    model = package.load_model("digits") if root else None
    plan = package.make_plan(model, (batch, 1, 32, 32), scheme=scheme, ranks=COMM.size) if root else None
    net = package.distribute(model, plan, COMM)
    if not root:
        for _ in range(9):
            net()
        return
    data = open_data("digits", "held-out")
    pictures, answers = zip(*(data.load(i) for i in range(len(data))), strict=True)
    images = prepare(pictures, model.info)
    classes = torch.cat([net(part).argmax(1) for part in images.split(batch)])
    assert len(answers) == 360
    assert torch.equal(classes, model(images).argmax(1))
    assert (classes == torch.tensor(answers)).all()
