"""What an exchange takes beyond its links: measured by real exchanges, kept with the cluster, and predicted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mpi4py import MPI

from mpiconv.errors import MpiconvError
from mpiconv.job.control import allgather_json
from mpiconv.job.team import Team
from mpiconv.partition.plan import FLOAT_BYTES
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.links import Links
from mpiconv.probe.exchanges import CHANNELS, ROWS, WIDTH, exchanges, overhead, with_exchanges
from tests.test_simulation import cluster


@pytest.mark.parametrize(
    ("found", "each", "per_byte"),
    [
        pytest.param([], 0, 0, id="nothing"),
        pytest.param([(100, 3.0)], 3, 0, id="one-size"),
        pytest.param([(100, 2.0), (1100, 7.0)], 1.5, 0.005, id="line"),
        pytest.param([(100, 2.0), (100, 2.2), (100, 90.0), (600, 50.0), (1100, 2.2)], 2.2, 0, id="one-disturbed"),
        pytest.param([(100, 2.0), (1100, -5.0)], 2, 0, id="quicker-than-the-links"),
        pytest.param([(100, -2.0), (1100, -5.0)], 0, 0, id="all-quicker"),
    ],
)
def test_a_time_per_message_and_per_byte(found, each, per_byte):
    assert overhead(found) == pytest.approx((each, per_byte))


def test_the_exchanges_are_those_of_kernels_and_rows():
    found = list(exchanges())
    assert [each.pattern for each in found] == ["allgatherv", "sendrecv"] * len(ROWS)
    assert [each.sizes.max() for each in found[:2]] == [CHANNELS // 2 * ROWS[0] * WIDTH, CHANNELS * WIDTH]


@pytest.mark.parametrize("hosts", ["ab", "aa"])
def test_messages_take_longer_by_what_was_measured_at_the_slower_end(hosts):
    on = cluster(1.0, 1.0, hosts=hosts)
    slow = replace(on.devices[1], message_s=0.5, message_s_per_byte=0.25)
    measured = replace(on, devices=(replace(on.devices[0], message_s=0.1), slow))
    plain, later = Links(on), Links(measured)
    for source, target in ((0, 1), (1, 0)):
        assert later.carry(source, target, 8, 1.0) == pytest.approx(plain.carry(source, target, 8, 1.0) + 2.5)
    one, other = (links.spread(0, np.array([1]), 8, 5.0)[0] for links in (Links(on), Links(measured)))
    assert other == pytest.approx(one + 2.5)


def test_they_are_kept_in_the_file_and_old_files_have_none(tmp_path):
    on = cluster(1.0, 1.0)
    on.save(tmp_path / "old.toml")
    assert "message_s" not in (tmp_path / "old.toml").read_text().partition("[[device]]")[2]
    measured = replace(on, devices=(on.devices[0], replace(on.devices[1], message_s=1e-4, message_s_per_byte=1e-10)))
    measured.save(tmp_path / "new.toml")
    assert Cluster.load(tmp_path / "new.toml") == measured
    with pytest.raises(MpiconvError, match="message_s is -1"):
        replace(on.devices[0], message_s=-1)


@pytest.mark.parallel([1, 2, 3])
def test_real_exchanges_are_measured_alike_on_all_ranks():
    with Team.of(MPI.COMM_WORLD) as team:
        on = cluster(*[1.0] * team.size, rate=1e9, alpha=1e-7, hosts="a" * team.size)
        found = with_exchanges(team, on)
        times = [[each.message_s, each.message_s_per_byte] for each in found.devices]
        assert all(each == times for each in allgather_json(team, times))
        assert replace(found, devices=on.devices) == on
        assert all(0 <= each < 10 for each in (*times[0], *times[-1]))
        if team.size > 1:
            assert max(each for each, _ in times) > 0, "an exchange takes some time on top of a copy"
        slow = replace(on, links=tuple(replace(link, beta_bytes_per_s=FLOAT_BYTES) for link in on.links))
        hosts = tuple(replace(device, host=str(number)) for number, device in enumerate(on.devices))
        assert with_exchanges(team, replace(slow, devices=hosts)).devices == hosts, "on so slow links it does not count"
