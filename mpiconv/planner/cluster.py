"""A cluster as data: its devices, the links between them, and what they share; read from and written to TOML."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

from mpiconv.errors import MpiconvError
from mpiconv.files import write_text
from mpiconv.planner.unit_times import Point, UnitTimes, points_of
from mpiconv.reading import read_toml
from mpiconv.text import encodable

CLUSTER_VERSION = 1
LARGEST = 1e30

UNIT_KINDS = ("conv1x1", "conv3x3", "conv5x5", "conv7x7", "conv11x11", "depthwise3x3", "linear")
"""The kinds of unit whose speed is known of every device: convolutions by kernel size, and fully connected layers."""

POWERS = ("idle", "waiting", "computing", "transferring")
"""What a device draws in W: always, and above that while a rank of it waits, computes, and sends or receives."""

MEDIA = ("switch", "shared", "multicast", "unknown")
"""Whether two pairs of devices that talk at once keep their rates, halve them, or nobody knows.

``multicast`` is a switch over which what several devices need alike would be sent once: for plans and simulations only.
"""


@dataclass(frozen=True)
class Device:
    """What one rank is: its host, its means and how fast it computes.

    Attributes
    ----------
    memory_bytes
        What a process may use there; 0 where it is not known.
    gflop_per_s
        Speed in 1e9 FLOP/s for every kind in ``UNIT_KINDS``, one picture at a time, with ``threads`` threads.
    weight_bytes_per_s
        How many B of weights a fully connected layer gets through per s: such layers wait for memory.
    pace
        How many times slower than its core the device was made to compute; 1 for a real one.
    power_w
        What it draws, for every key in ``POWERS``, with ``threads`` threads; empty where it is not known.
    unit_seconds
        What was measured of units, by their ``shape_key``: (channels, rows, columns, batch, seconds) of boxes.
    message_s, message_s_per_byte
        What a message of a map takes there beyond its link, for packing, copies and waking up: always, and per B.

    Raises
    ------
    MpiconvError
        A number is out of its range; the key is named.
    """

    host: str
    cores: int
    threads: int
    memory_bytes: int
    gflop_per_s: Mapping[str, float]
    weight_bytes_per_s: float
    pace: float = 1.0
    power_w: Mapping[str, float] = field(default_factory=dict)
    unit_seconds: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    message_s: float = 0.0
    message_s_per_byte: float = 0.0

    def __post_init__(self) -> None:
        where = f"device {self.host}"
        _check(f"{where}: power_w", self.power_w, dict.fromkeys(POWERS, "a number"), POWERS if self.power_w else ())
        _at_least(where, 0, **{f"power_w.{key}": value for key, value in self.power_w.items()})
        _check(f"{where}: gflop_per_s", self.gflop_per_s, dict.fromkeys(UNIT_KINDS, "a number"), UNIT_KINDS)
        speeds = {f"gflop_per_s.{kind}": speed for kind, speed in self.gflop_per_s.items()}
        for key, value in {**speeds, "weight_bytes_per_s": self.weight_bytes_per_s}.items():
            _above_zero(where, key, value)
        _at_least(where, 1, cores=self.cores, threads=self.threads, pace=self.pace)
        _at_least(where, 0, memory_bytes=self.memory_bytes, message_s=self.message_s)
        _at_least(where, 0, message_s_per_byte=self.message_s_per_byte)
        units = {key: points_of(f"{where}: unit_seconds.{key}", each) for key, each in self.unit_seconds.items()}
        object.__setattr__(self, "unit_seconds", units)

    @cached_property
    def memo(self) -> dict[str, dict[tuple[int, ...], float]]:
        """Estimates that were made of this device before, by a unit's ``shape_key``, for who asks the same again."""
        return {}

    @cached_property
    def unit_times(self) -> dict[str, UnitTimes]:
        """What was measured of each unit, ready to be asked for a box."""
        return {key: UnitTimes(points) for key, points in self.unit_seconds.items()}

    def faster(self, factor: float) -> Device:
        """The same device with all speeds multiplied by a factor, within what a cluster file may hold."""
        speeds = {kind: min(factor * speed, LARGEST / 10) for kind, speed in self.gflop_per_s.items()}
        times = {
            key: [(c, r, w, n, s / factor) for c, r, w, n, s in points] for key, points in self.unit_seconds.items()
        }
        rate = min(factor * self.weight_bytes_per_s, LARGEST / 10)
        return replace(self, gflop_per_s=speeds, weight_bytes_per_s=rate, unit_seconds=times)


@dataclass(frozen=True)
class Link:
    """One direction between two ranks: a message of n bytes takes ``alpha_s + n / beta_bytes_per_s``.

    Raises MpiconvError where a number is out of its range.
    """

    source: int
    target: int
    alpha_s: float
    beta_bytes_per_s: float

    def __post_init__(self) -> None:
        where = f"link {self.source} to {self.target}"
        _at_least(where, 0, source=self.source, target=self.target, alpha_s=self.alpha_s)
        _above_zero(where, "beta_bytes_per_s", self.beta_bytes_per_s)

    def seconds(self, payload_bytes: float) -> float:
        """How long a message of this size in B takes, in s, alone on the link."""
        return self.alpha_s + payload_bytes / self.beta_bytes_per_s


@dataclass(frozen=True)
class Cluster:
    """The devices of a job in the order of their ranks, and a link for every ordered pair of them.

    Attributes
    ----------
    links
        Sorted by source and target.
    medium
        ``switch``: every link keeps its rate whoever else talks; ``shared``: all share one (a Wi-Fi); ``multicast``: a
        switch where what several devices need alike is sent once, which no run does; ``unknown``.
    medium_ratio
        Rate of a pair while another talks (of three hosts: two others) over its rate alone; None where unknown.
    medium_reason
        Why the medium is unknown.
    emulated
        Whether these are emulated devices; their numbers are of the lab, not of boards.
    dilation
        How many times slower than the lab everything ran while it was measured; all numbers are free of it.
    created, creator
        When (ISO 8601, UTC) and by what it was measured.

    Raises
    ------
    MpiconvError
        A number is out of its range, or a link is missing, doubled or between unknown devices.
    """

    devices: tuple[Device, ...]
    links: tuple[Link, ...] = ()
    medium: str = "unknown"
    medium_ratio: float | None = None
    medium_reason: str = ""
    emulated: bool = False
    dilation: float = 1.0
    created: str = ""
    creator: str = ""

    def __post_init__(self) -> None:
        if not self.devices:
            raise MpiconvError("a cluster needs at least one device")
        if self.medium not in MEDIA:
            raise MpiconvError(f"medium is {self.medium!r}: {', '.join(MEDIA[:-1])} or {MEDIA[-1]} is wanted")
        if self.medium_ratio is not None:
            _above_zero("the cluster", "medium_ratio", self.medium_ratio)
        _at_least("the cluster", 1, dilation=self.dilation)
        object.__setattr__(self, "links", tuple(sorted(self.links, key=lambda link: (link.source, link.target))))
        pairs = [(link.source, link.target) for link in self.links]
        count = len(self.devices)
        for earlier, pair in zip([None, *pairs], pairs, strict=False):
            if pair == earlier:
                raise MpiconvError(f"the link from {pair[0]} to {pair[1]} stands twice")
            if pair[0] == pair[1] or max(pair) >= count:
                raise MpiconvError(
                    f"a link from {pair[0]} to {pair[1]}: two of the devices 0 to {count - 1} are wanted"
                )
        missing = {(a, b) for a in range(count) for b in range(count) if a != b}.difference(pairs)
        if missing:
            a, b = min(missing)
            raise MpiconvError(f"there is no link from {a} to {b}: every ordered pair of devices needs one")

    def link(self, source: int, target: int) -> Link:
        """The link from one rank to another."""
        return self.links[source * (len(self.devices) - 1) + target - (target > source)]

    def rooted_at(self, rank: int) -> Cluster:
        """The same cluster with a device first, so that it has the pictures; the others stay in their order."""
        return self.in_order([rank, *(other for other in range(len(self.devices)) if other != rank)])

    def in_order(self, order: Sequence[int]) -> Cluster:
        """The same cluster with its devices in another order, or some of them; ``order`` has their numbers."""
        places = {old: new for new, old in enumerate(order)}
        links = (
            replace(link, source=places[link.source], target=places[link.target])
            for link in self.links
            if link.source in places and link.target in places
        )
        return replace(self, devices=tuple(self.devices[old] for old in order), links=tuple(links))

    def with_links(self, factor: float) -> Cluster:
        """The same devices, the rates of all links multiplied by a factor; their latencies stay."""
        links = (replace(link, beta_bytes_per_s=factor * link.beta_bytes_per_s) for link in self.links)
        return replace(self, links=tuple(links))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, as they stand in the file; what is None is left out."""
        data = {key: value for key, value in asdict(self).items() if value is not None}
        devices, links = data.pop("devices"), data.pop("links")
        for device in devices:
            for key in ("unit_seconds", "message_s", "message_s_per_byte"):
                if not device[key]:
                    del device[key]
        return {"mpiconv_cluster": CLUSTER_VERSION, **data, "link": list(links), "device": list(devices)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cluster:
        """Rebuild a cluster from what ``to_dict`` gave.

        Raises MpiconvError where a key is missing, unknown (the nearest right one is named) or of the wrong kind.
        """
        version = data.get("mpiconv_cluster")
        if version != CLUSTER_VERSION:
            raise MpiconvError(f"mpiconv_cluster is {version!r}: {CLUSTER_VERSION} is wanted (mpiconv probe writes it)")
        rest = {key: value for key, value in data.items() if key != "mpiconv_cluster"}
        _check("the cluster", rest, _CLUSTER, needed=("device",))
        devices, links = (_tables(key, rest.pop(key, [])) for key in ("device", "link"))
        for i, device in enumerate(devices):
            _check(f"device {i}", device, _DEVICE, needed=[key for key in _DEVICE if key not in _OPTIONAL])
        for i, link in enumerate(links):
            _check(f"link {i}", link, _LINK, needed=_LINK)
        return cls(tuple(Device(**device) for device in devices), tuple(Link(**link) for link in links), **rest)

    def save(self, path: str | Path) -> None:
        """Write the cluster as TOML: whole, or not at all.

        Raises MpiconvError, naming the file, where it cannot be written.
        """
        write_text(path, self.to_toml())

    @classmethod
    def load(cls, path: str | Path) -> Cluster:
        """Read a cluster that ``save`` wrote, or somebody by hand.

        Raises MpiconvError, naming the file and the key, where it is missing or wrong.
        """
        data = read_toml(path, "cluster")
        try:
            return cls.from_dict(data)
        except MpiconvError as error:
            raise MpiconvError(f"{path}: {error}") from None

    def to_toml(self) -> str:
        """The text of the file."""
        data = self.to_dict()
        links, devices = data.pop("link"), data.pop("device")
        lines = list(_HELP)
        lines += [f"{key} = {_toml(value)}" for key, value in data.items()]
        lines += ["link = [", *(f"  {_toml(link)}," for link in links), "]"] if links else []
        for device in devices:
            units = device.pop("unit_seconds", {})
            lines += ["", "[[device]]", *(f"{key} = {_toml(value)}" for key, value in device.items() if value != {})]
            lines += ["[device.unit_seconds]"] if units else []
            lines += [f"{_toml(key)} = {_toml(points)}" for key, points in units.items()]
        return "\n".join(lines) + "\n"


def find_hosts(devices: Sequence[Device], hosts: Sequence[str]) -> list[int] | None:
    """For each host the number of the device on it, each device once; None unless they are on just these hosts.

    Several on one host are taken in their order.
    """
    if sorted(device.host for device in devices) != sorted(hosts):
        return None
    there = {host: [number for number, device in enumerate(devices) if device.host == host] for host in hosts}
    return [there[host].pop(0) for host in hosts]


def kinds_of(devices: Sequence[Device]) -> list[int]:
    """For every device the number of the first that is alike but for its host's name."""
    nameless = [replace(device, host="") for device in devices]
    return [nameless.index(device) for device in nameless]


_HELP = (
    "# Devices (in the order of ranks) and links of a cluster; creator says where the numbers come from.",
    "# gflop_per_s: 1e9 FLOP/s by kind of unit. A message of n bytes from source to target takes",
    "# alpha_s + n / beta_bytes_per_s seconds. medium: do links keep their rate while others are in use?",
    "# unit_seconds: [channels, rows, columns, batch, seconds] of boxes of the output of a network's own units.",
)
_DEVICE = {
    "host": "a text",
    "cores": "a whole number",
    "threads": "a whole number",
    "memory_bytes": "a whole number",
    "gflop_per_s": "a table",
    "weight_bytes_per_s": "a number",
    "pace": "a number",
    "power_w": "a table",
    "unit_seconds": "a table",
    "message_s": "a number",
    "message_s_per_byte": "a number",
}
_OPTIONAL = ("pace", "power_w", "unit_seconds", "message_s", "message_s_per_byte")
_LINK = {
    "source": "a whole number",
    "target": "a whole number",
    "alpha_s": "a number",
    "beta_bytes_per_s": "a number",
}
_CLUSTER = {
    "medium": "a text",
    "medium_ratio": "a number",
    "medium_reason": "a text",
    "emulated": "true or false",
    "dilation": "a number",
    "created": "a text",
    "creator": "a text",
    "device": "a list of tables",
    "link": "a list of tables",
}
_TYPES: dict[str, Any] = {
    "a text": str,
    "a whole number": int,
    "a number": int | float,
    "true or false": bool,
    "a table": Mapping,
    "a list of tables": list | tuple,
}


def _check(where: str, table: Mapping[str, Any], wanted: Mapping[str, str], needed: Iterable[str] = ()) -> None:
    """Raise MpiconvError unless a table has the keys that are needed, no unknown ones, and values of their kind."""
    _known(where, table, wanted)
    for key in needed:
        if key not in table:
            raise MpiconvError(f"{where} has no {key}: {wanted[key]} is wanted")
    for key, value in table.items():
        kind = wanted[key]
        if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "true or false"):
            raise MpiconvError(f"{where}: {key} is {value!r}, {kind} is wanted")


def _known(where: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in table:
        if key not in known:
            close = get_close_matches(key, known, 1)
            hint = f"is it {close[0]!r}?" if close else f"known are {', '.join(known)}"
            raise MpiconvError(f"{where} has the unknown key {key!r}, {hint}")


def _tables(key: str, values: Any) -> list[Mapping[str, Any]]:
    for value in values:
        if not isinstance(value, Mapping):
            raise MpiconvError(f"{key} has {value!r} in it, a list of tables is wanted")
    return list(values)


def _above_zero(where: str, key: str, value: float) -> None:
    if not 0 < value < LARGEST:
        raise MpiconvError(f"{where}: {key} is {value!r}, a number above 0 is wanted")


def _at_least(where: str, least: int, **values: float) -> None:
    for key, value in values.items():
        if not least <= value < LARGEST:
            raise MpiconvError(f"{where}: {key} is {value!r}, a number from {least} up is wanted")


def _toml(value: Any) -> str:
    """A value as TOML; JSON's way to write text and numbers is TOML's too, but for the character DEL."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    text = encodable(value) if isinstance(value, str) else value
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
