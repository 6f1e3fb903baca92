"""Ranks that read their slices of the weights from a file: ``--weights-on every``."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import pytest
import torch
from mpi4py import MPI
from safetensors.torch import save_file
from torch import nn

import mpiconv
from mpiconv.errors import ModelError
from mpiconv.graph.trace import trace
from mpiconv.job.team import Team
from mpiconv.models import registry
from mpiconv.models.slices import WeightsFile, fingerprint, rows_of
from mpiconv.partition.holdings import holdings
from mpiconv.runtime import weights
from tests.conftest import execute
from tests.conftest import mpiconv as run

WORDS = ["run", "--model", "digits", "--head", "split", "--repeats", 2, "--check", "--json", "--weights-on", "every"]


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_rows_are_those_of_the_model(prefix, half, tmp_path):
    """Kernels, a transposed convolution in groups, a PReLU with one slope for all channels, an FC layer."""
    torch.manual_seed(3)
    body = [nn.Conv2d(3, 6, 3), nn.PReLU(), nn.ConvTranspose2d(6, 8, 3, groups=2), nn.BatchNorm2d(8), nn.Flatten()]
    model = nn.Sequential(*body, nn.Linear(8 * 9 * 9, 20)).eval()
    if half:
        model.half().float()
    state = model.state_dict()
    stored = {key: tensor.half() if half and tensor.is_floating_point() else tensor for key, tensor in state.items()}
    save_file({prefix + key: tensor for key, tensor in stored.items()}, tmp_path / "w.safetensors")
    file = WeightsFile(tmp_path / "w.safetensors")
    params = [param for unit in trace(model, (3, 9, 9)).grouped(head="split").units for param in unit.params]
    assert len(params) == 11
    for param in params:
        for lo, hi in ((0, param.shape[0]), (1, 2), (2, 5)):
            assert torch.equal(file.rows(param, lo, hi), rows_of(param, state[param.key])[lo:hi]), param


def test_a_file_without_the_tensor_is_named(tmp_path):
    save_file({"other": torch.ones(3)}, tmp_path / "w.safetensors")
    param = trace(nn.Sequential(nn.Conv2d(3, 6, 3)), (3, 9, 9)).graph.units[0].params[0]
    with pytest.raises(ModelError, match=r"w.safetensors has no 0.weight of shape \(6, 3, 3, 3\)"):
        WeightsFile(tmp_path / "w.safetensors").rows(param, 0, 2)


def test_fingerprint_sees_another_file(tmp_path):
    path = tmp_path / "w"
    assert fingerprint(path) == ""
    marks = set()
    mib = 1 << 20
    for data in (b"", bytes(10), bytes(3 * mib), bytes(2 * mib) + b"1" + bytes(mib - 1), bytes(3 * mib - 1) + b"1"):
        path.write_bytes(data)
        marks.add(fingerprint(path))
    assert len(marks) == 5


@pytest.mark.parallel([3])
def test_readers_are_sent_nothing():
    comm = MPI.COMM_WORLD
    model = mpiconv.load_model("digits")
    path = str(weights_of_the_package())
    plan = mpiconv.make_plan(model, (1, 1, 32, 32), ranks=3, head="split")
    state = model.state_dict() if comm.rank == 0 else {}
    team = Team.of(comm)
    assert weights.readers_of(team, path) == (1, 2)
    stores = [weights.FileStore(path, list(model.state_dict()))] if comm.rank == 2 else []
    sent, some = weights.Weights(team, state), weights.Weights(team, state, stores, asked=True)
    for each in (sent, some):
        each.adopt(holdings(plan))
    for unit, boxes in zip(plan.graph.body, plan.boxes, strict=True):
        for mine, theirs in zip(some.of(unit, boxes[comm.rank]), sent.of(unit, boxes[comm.rank]), strict=True):
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[role], theirs[role]) for role in mine)
    wanted = sum(plan.weight_bytes(u, comm.rank) for u in range(len(plan.boxes)))
    assert sent.received_bytes == (wanted if comm.rank else 0)
    assert some.received_bytes == (wanted if comm.rank == 1 else 0)
    assert some.stored_bytes == (wanted if comm.rank == 2 else 0)


def weights_of_the_package() -> Path:
    return Path(registry.__file__).with_name("pretrained") / "digits.safetensors"


def test_run_reads_on_every_rank(tmp_path):
    ended = run(3, *WORDS, "--weights", weights_of_the_package(), "--output", tmp_path / "run.h5")
    assert ended.status == 0, ended.err
    assert ended.json["check"]["equal"]
    assert "sent their weights" not in ended.err
    with h5py.File(tmp_path / "run.h5") as file:
        assert file.attrs["weights_on"] == "every"


def test_only_a_safetensors_file_can_be_read_so():
    ended = run(2, *WORDS)
    assert ended.status == 2
    assert ended.errors == ["mpiconv: error: --weights-on every wants --weights FILE.safetensors, not none"]


def test_a_rank_without_the_file_is_sent_its_weights_and_one_with_another_is_named(tmp_path):
    """The second rank runs in another folder, in which the same path is another file or none."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    (here / "w.safetensors").write_bytes(weights_of_the_package().read_bytes())
    words = ["-wdir", here, "-n", 1, sys.executable, "-m", "mpiconv", *WORDS, "--weights", "w.safetensors"]
    both = ["mpirun", *words, ":", "-wdir", there, *words[2:]]
    ended = execute(list(map(str, both)))
    assert ended.status == 0, ended.err
    assert ended.json["check"]["equal"]
    assert "note: sent their weights, having no w.safetensors: rank 1" in ended.err
    save_file(mpiconv.load_model("digits", pretrained=False).state_dict(), there / "w.safetensors")
    ended = execute(list(map(str, both)))
    assert ended.status == 1
    assert "rank 1 has another file w.safetensors than rank 0" in ended.errors[0]
