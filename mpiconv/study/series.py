"""Points put into curves: latency against the offloaded share (Figure 8) and against the number of devices (9)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mpiconv.study.combined import Point

NAMES = {"pi4": "Raspberry Pi 4", "nx": "Xavier NX", "laptop": "laptop"}
MODELS = {"alexnet": "AlexNet", "vgg11": "VGG11"}
EXCHANGED = {"conv": "exchange after the convolution", "pool": "exchange after the pooling"}


@dataclass(frozen=True)
class Curve:
    """Points against x (share or number of devices), all else equal; ``what`` is the device, or how slow all are."""

    model: str
    what: str
    rate_mb_per_s: float
    scheme: str
    gather: str
    points: Mapping[float, Point]

    local: Point | None
    """The point without a split: share 0, or one device; None where that was not run."""

    @property
    def best(self) -> tuple[float, Point]:
        """X and point of the least median latency."""
        return min(self.points.items(), key=lambda item: item[1].median_s)

    def relative(self, x: float) -> float:
        """Median latency at x over that without a split; NaN where one of them was not run."""
        return self.points[x].median_s / self.local.median_s if self.local and x in self.points else float("nan")


def offload_curves(points: Iterable[Point]) -> list[Curve]:
    """The curves of Figure 8. Without an exchange, at share 0, where it would be does not matter: one point serves all.

    The order is device, model, falling rate, exchange point.
    """
    groups: dict[tuple[str, str, float, str], dict[float, Point]] = {}
    for point in points:
        if point.ranks == 2 and point.scheme == "kpm":
            groups.setdefault((point.host, point.model, point.rate_mb_per_s, point.gather), {})[point.offload] = point
    for (host, model, rate, gather), found in groups.items():
        other = groups.get((host, model, rate, "pool" if gather == "conv" else "conv"), {})
        if 0.0 in other:
            found.setdefault(0.0, other[0.0])
    known = [*NAMES]

    def place(key: tuple[str, str, float, str]) -> tuple[int, str, str, float, str]:
        host, model, rate, gather = key
        return known.index(host) if host in known else len(known), host, model, -rate, gather

    curves = []
    for key in sorted(groups, key=place):
        host, model, rate, gather = key
        found = dict(sorted(groups[key].items()))
        curves.append(Curve(model, host, rate, "kpm", gather, found, found.get(0.0)))
    return curves


def speed(pace: float) -> str:
    """What to call equal devices, by how many times slower than the emulating core they are."""
    return "devices like this machine's core" if pace < 1.05 else f"devices {pace:.3g} times slower than this core"


def device_curves(points: Iterable[Point]) -> list[Curve]:
    """The curves of Figure 9; all with the same model, speed and rate begin with the fastest run on one device.

    The order is model, speed, falling rate, scheme, exchange point.
    """
    groups: dict[tuple[str, float, float, str, str], dict[float, Point]] = {}
    alone: dict[tuple[str, float, float], Point] = {}
    for point in points:
        where = (point.model, round(point.pace, 2), point.rate_mb_per_s)
        if point.ranks == 1:
            alone[where] = min(point, alone.get(where, point), key=lambda each: each.median_s)
        else:
            groups.setdefault((*where, point.scheme, point.gather), {})[float(point.ranks)] = point
    curves = []
    for key in sorted(groups, key=lambda k: (k[0], k[1], -k[2], k[3], k[4])):
        model, pace, rate, scheme, gather = key
        found = dict(groups[key])
        if (model, pace, rate) in alone:
            found[1.0] = alone[model, pace, rate]
        curves.append(Curve(model, speed(pace), rate, scheme, gather, dict(sorted(found.items())), found.get(1.0)))
    return curves
