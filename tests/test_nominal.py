"""Nominal devices and clusters: their numbers hang together, and say that nobody measured them."""

from __future__ import annotations

import pytest

from mpiconv.errors import MpiconvError, UsageError
from mpiconv.planner.cluster import UNIT_KINDS, Cluster
from mpiconv.planner.nominal import SHEETS, nominal_cluster, nominal_device


@pytest.mark.parametrize("name", SHEETS)
def test_no_device_is_faster_than_its_peak(name):
    device = nominal_device(name, "here")
    assert device.host == "here"
    assert device.threads == 1
    assert set(device.gflop_per_s) == set(UNIT_KINDS)
    assert max(device.gflop_per_s.values()) < SHEETS[name].peak_gflop_per_s
    assert device.gflop_per_s["linear"] == pytest.approx(device.weight_bytes_per_s / 2e9, abs=1e-3)


def test_devices_of_one_name_are_hosts_of_their_own(tmp_path):
    cluster = nominal_cluster(["pi4", "laptop", "pi4"], 12.5e6, 1e-4, "shared")
    assert [device.host for device in cluster.devices] == ["pi4-1", "laptop", "pi4-2"]
    assert "not measured" in cluster.creator
    assert cluster.link(2, 0).seconds(12.5e6) == pytest.approx(1.0001)
    cluster.save(tmp_path / "c.toml")
    assert Cluster.load(tmp_path / "c.toml") == cluster


def test_devices_and_media_that_nobody_knows():
    with pytest.raises(UsageError, match=r"unknown device 'pi-4': choose from pi4, .*did you mean 'pi4'"):
        nominal_device("pi-4")
    with pytest.raises(MpiconvError, match="medium is 'wifi'"):
        nominal_cluster(["pi4", "pi4"], 1e6, 0, "wifi")
