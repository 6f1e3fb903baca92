"""Runs that are long, and messages that are large: counters, what is kept of every frame, what MPI can count."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import nn

import mpiconv
from mpiconv.errors import PlanError
from mpiconv.measure.results import open_results, write_results
from mpiconv.partition import Box
from mpiconv.partition.exchange import exchange
from mpiconv.partition.schedule import Held, schedule
from mpiconv.runtime import builder, stamps
from mpiconv.runtime.exchange import shared
from mpiconv.runtime.exchange.base import MEDIA
from mpiconv.runtime.exchange.parts import Memory
from mpiconv.runtime.exchange.shared import SharedExchanger, _Place
from mpiconv.runtime.stamps import Stamps
from tests.test_measure import ATTRIBUTES, load_profile, record


@pytest.mark.parametrize("frames", [2**31 - 2, 2**32 - 2, 2**53])
def test_flags_count_on_beyond_what_32_bits_hold(frames):
    whole = Box.whole((2, 3, 2))
    spec = exchange([whole, Box()], [whole, whole], "a map")
    places = [Held.of(spec, rank) for rank in range(2)]
    view, flags = torch.zeros(1, 2, 3, 2), memoryview(bytearray(2 * 2 * shared.LINE_BYTES)).cast("q")
    views = {_Place(places[1], (1,), 0): view}
    first, second = (
        SharedExchanger(spec, 1, rank, places, views, flags, Memory(channels_last=False), "bcast") for rank in range(2)
    )
    first._frames = second._frames = frames
    for place in range(0, len(flags), shared.LINE_BYTES // 8):
        flags[place] = frames
    for turn in range(5):
        there = second.start(None)
        assert not there.done(), "the last frame's flag was taken for this one's"
        assert first.start(torch.full((1, 2, 3, 2), float(turn))).done()
        assert there.done()
        assert second.finish().unique().tolist() == [turn]
        assert not first.room.reached()
        second.release()
        assert first.room.reached()


@pytest.mark.parametrize("order", ["even", "swapped"])
def test_of_a_long_series_every_nth_frame_is_kept(order, monkeypatch):
    monkeypatch.setattr(stamps, "KEPT_REPEATS", 64)
    mine = Stamps(3)
    for number in range(1000):
        number = number ^ 1 if order == "swapped" else number  # noqa: PLW2901 - as with several in flight
        mine.add(number, [number, number + 0.25, number + 0.5], number / 2)
        assert mine.kept < 64
    rows, latency = mine.in_order()
    assert (mine.added, mine.every) == (1000, 16)
    assert rows[:, 0].tolist() == list(range(0, 1000, 16))
    assert (rows[:, 2] - rows[:, 0] == 0.5).all()
    assert latency.tolist() == [n / 2 for n in range(0, 1000, 16)]
    mine.clear()
    assert (mine.added, mine.every, mine.in_order()[0].shape) == (0, 1, (0, 3))


def test_a_file_says_which_repeats_it_has(tmp_path):
    path = tmp_path / "r.h5"
    write_results(path, replace(record(), kept_every=4), load_profile("paper"), ATTRIBUTES)
    found = open_results(path)
    assert found.attrs["repeats_kept_every"] == 4
    assert found.repeat.values.tolist() == [0, 4, 8, 12]


def test_bytes_per_inference_are_those_of_all_though_few_are_kept(monkeypatch):
    monkeypatch.setattr(stamps, "KEPT_REPEATS", 8)
    model = mpiconv.load_model("digits")
    with mpiconv.distribute(model, mpiconv.make_plan(model, (1, 1, 32, 32)), MPI.COMM_SELF) as net:
        list(net.stream([torch.zeros(1, 1, 32, 32)] * 20))
        found = net.collect()
    assert (len(found.latency_s), found.kept_every) == (5, 4)
    assert (found.compute_time_s >= 0).all()
    assert np.isfinite(found.latency_s).all()


def test_messages_that_mpi_cannot_count_are_refused_naming_the_unit(monkeypatch):
    plan = mpiconv.make_plan(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 3)), (1, 1, 20, 20), "kpm", 2)
    by_messages, in_memory = schedule(plan, lambda _: "messages"), schedule(plan, lambda _: "shared")
    builder.check_sizes(by_messages)
    monkeypatch.setattr(MEDIA["messages"].__class__, "largest_items", 1000)
    with pytest.raises(PlanError, match=r"the messages with the output of unit conv1 have .* GiB, MPI can count"):
        builder.check_sizes(by_messages)
    builder.check_sizes(in_memory)
