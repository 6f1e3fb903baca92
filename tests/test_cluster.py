"""A cluster as data: the file and back, and what is refused."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiconv.errors import MpiconvError
from mpiconv.planner.cluster import MEDIA, POWERS, UNIT_KINDS, Cluster, Device, Link

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

POSITIVE = st.floats(1e-12, 1e15)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
WHOLE = st.integers(1, 2**60)
SPEEDS = st.fixed_dictionaries(dict.fromkeys(UNIT_KINDS, POSITIVE))
SIZES = st.integers(1, 5000)
TIMES = st.dictionaries(
    TEXT, st.lists(st.tuples(*[SIZES] * 4, st.floats(1e-9, 1e5)), min_size=1, max_size=3), max_size=2
)
POWER = st.just({}) | st.fixed_dictionaries(dict.fromkeys(POWERS, st.floats(0, 1e6)))
DEVICES = st.builds(
    Device, TEXT, WHOLE, WHOLE, st.integers(0, 2**60), SPEEDS, POSITIVE, st.floats(1, 100), POWER, TIMES
)


def pairs(count: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(count) for b in range(count) if a != b]


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    devices = draw(st.lists(DEVICES, min_size=1, max_size=4))
    order = draw(st.permutations(pairs(len(devices))))
    links = tuple(Link(a, b, draw(POSITIVE), draw(POSITIVE)) for a, b in order)
    ratio, medium = draw(st.none() | POSITIVE), draw(st.sampled_from(MEDIA))
    rest = draw(st.tuples(TEXT, st.booleans(), st.floats(1, 100), TEXT, TEXT))
    return Cluster(tuple(devices), links, medium, ratio, *rest)


@given(clusters())
def test_a_file_gives_the_same_cluster(cluster):
    assert Cluster.from_dict(tomllib.loads(cluster.to_toml())) == cluster
    for a, b in pairs(len(cluster.devices)):
        link = cluster.link(a, b)
        assert (link.source, link.target) == (a, b)


def test_saved_and_loaded(tmp_path):
    cluster = made(3)
    cluster.save(tmp_path / "c.toml")
    assert Cluster.load(tmp_path / "c.toml") == cluster
    assert [path.name for path in tmp_path.iterdir()] == ["c.toml"]


def test_a_message_takes_its_latency_and_its_bytes():
    assert Link(0, 1, 0.001, 1e6).seconds(2000) == pytest.approx(0.003)


def device(**changes: object) -> dict[str, object]:
    usual = {"host": "pi", "cores": 4, "threads": 1, "memory_bytes": 0, "gflop_per_s": dict.fromkeys(UNIT_KINDS, 9.0)}
    return usual | {"weight_bytes_per_s": 4e9} | changes


def made(count: int) -> Cluster:
    links = tuple(Link(a, b, 1e-4, 1e8) for a, b in pairs(count))
    return Cluster(tuple(Device(**device()) for _ in range(count)), links)


def link(source: int, target: int, **changes: object) -> dict[str, object]:
    return {"source": source, "target": target, "alpha_s": 1e-4, "beta_bytes_per_s": 1e8} | changes


def without(key: str) -> dict[str, object]:
    return {name: value for name, value in device().items() if name != key}


ONE = {"mpiconv_cluster": 1, "device": [device()]}
TWO = {"mpiconv_cluster": 1, "device": [device(), device()]}


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        pytest.param({}, "mpiconv_cluster is None: 1 is wanted", id="something-else"),
        pytest.param(ONE | {"mpiconv_cluster": 2}, "mpiconv_cluster is 2: 1 is wanted", id="newer"),
        pytest.param({"mpiconv_cluster": 1}, "the cluster has no device", id="no-devices"),
        pytest.param(ONE | {"device": []}, "a cluster needs at least one device", id="empty"),
        pytest.param(ONE | {"device": ["pi"]}, "device has 'pi' in it, a list of tables is wanted", id="texts"),
        pytest.param(ONE | {"device": device()}, "a list of tables is wanted", id="single-brackets"),
        pytest.param(ONE | {"divice": []}, "unknown key 'divice', is it 'device'?", id="typo"),
        pytest.param(ONE | {"xyz": 1}, "unknown key 'xyz', known are", id="far-off"),
        pytest.param(ONE | {"medium": "air"}, "medium is 'air': switch, shared, multicast or unknown", id="medium"),
        pytest.param(ONE | {"medium_ratio": 0}, "medium_ratio is 0, a number above 0", id="ratio"),
        pytest.param(ONE | {"emulated": "yes"}, "emulated is 'yes', true or false is wanted", id="emulated"),
        pytest.param(ONE | {"dilation": 0.5}, "dilation is 0.5, a number from 1 up", id="dilation"),
        pytest.param(ONE | {"device": [without("cores")]}, "device 0 has no cores: a whole number", id="no-cores"),
        pytest.param(ONE | {"device": [device(core=1)]}, "device 0 has the unknown key 'core', is it", id="key"),
        pytest.param(ONE | {"device": [device(cores=1.5)]}, "cores is 1.5, a whole number is wanted", id="half-a-core"),
        pytest.param(ONE | {"device": [device(cores=True)]}, "cores is True, a whole number is wanted", id="true"),
        pytest.param(ONE | {"device": [device(threads=0)]}, "device pi: threads is 0, a number from 1", id="threads"),
        pytest.param(ONE | {"device": [device(host=1)]}, "host is 1, a text is wanted", id="host"),
        pytest.param(ONE | {"device": [device(pace=0.9)]}, "pace is 0.9, a number from 1 up", id="pace"),
        pytest.param(
            ONE | {"device": [device(gflop_per_s={"conv3x": 1.0})]},
            "device pi: gflop_per_s has the unknown key 'conv3x', is it 'conv3x3'?", id="kind",
        ),
        pytest.param(
            ONE | {"device": [device(gflop_per_s={"conv3x3": 1.0})]}, "gflop_per_s has no conv1x1", id="missing-kind"
        ),
        pytest.param(
            ONE | {"device": [device(gflop_per_s=dict.fromkeys(UNIT_KINDS, float("nan")))]},
            "gflop_per_s.conv1x1 is nan, a number above 0 is wanted", id="nan",
        ),
        pytest.param(ONE | {"device": [device(unit_seconds=[1])]}, "unit_seconds is [1], a table", id="units"),
        pytest.param(
            ONE | {"device": [device(unit_seconds={"u": [[1, 1, 1, 0.1]]})]},
            "device pi: unit_seconds.u has [1, 1, 1, 0.1] in it, [channels, rows, columns, batch, seconds]", id="box",
        ),
        pytest.param(
            ONE | {"device": [device(unit_seconds={"u": 0.1})]}, "unit_seconds.u is 0.1, a list of [chan", id="no-list"
        ),
        pytest.param(TWO, "no link from 0 to 1: every ordered pair", id="no-links"),
        pytest.param(TWO | {"link": [link(0, 1)]}, "no link from 1 to 0: every ordered pair", id="one-way"),
        pytest.param(TWO | {"link": [link(0, 1)] * 2}, "the link from 0 to 1 stands twice", id="twice"),
        pytest.param(TWO | {"link": [link(1, 1)]}, "a link from 1 to 1: two of the devices 0 to 1", id="to-itself"),
        pytest.param(TWO | {"link": [link(0, 2)]}, "a link from 0 to 2: two of the devices 0 to 1", id="to-nobody"),
        pytest.param(TWO | {"link": [link(-1, 0)]}, "source is -1, a number from 0 up", id="negative"),
        pytest.param(TWO | {"link": [link(0, 1, alpha=1)]}, "unknown key 'alpha', is it 'alpha_s'?", id="alpha"),
        pytest.param(TWO | {"link": [link(0, 1, beta_bytes_per_s=0)]}, "beta_bytes_per_s is 0, a number", id="beta"),
    ],
)  # fmt: skip
def test_what_is_refused(data, sentence):
    with pytest.raises(MpiconvError) as caught:
        Cluster.from_dict(data)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param(None, "cannot read the cluster", id="missing"),
        pytest.param("[[device", "c.toml is not TOML", id="broken"),
        pytest.param("mpiconv_cluster = 1\nmediun = 'switch'", "c.toml: the cluster has the unknown key", id="typo"),
    ],
)
def test_the_file_is_named(text, sentence, tmp_path):
    path = tmp_path / "c.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(MpiconvError) as caught:
        Cluster.load(path)
    assert sentence in str(caught.value)


def test_hundreds_of_devices_are_no_trouble():
    assert made(200).link(199, 0) == Link(199, 0, 1e-4, 1e8)
