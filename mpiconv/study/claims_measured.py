"""The claims of [KPM22] that runs decide: Figures 8 and 9, the energy constants, and what is said in words only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpiconv.study.claims import NEAR, Case, Claim, near
from mpiconv.study.combined import Point
from mpiconv.study.robustness import Lost
from mpiconv.study.series import EXCHANGED, MODELS, NAMES, Curve, device_curves, offload_curves

BEST = {"nx": 0.5425, "pi4": 0.3882}
STEEPLY = 2 / 3
"""A latency that falls to at most so much of the unsplit one falls steeply."""

HARDLY = 0.1
"""Energies that differ by at most so much hardly differ."""

WINNING = 8
"""The number of devices where the paper sees WPM and KPM change places."""


def figure_8(measured: Sequence[Point], file: str) -> list[Claim]:
    """Offloading from a weak device to a laptop."""
    curves = [c for c in offload_curves(measured) if c.local and len(c.points) > 1]
    source = f"`{file}`, latency"

    def of(model: str, host: str | None, rate: float) -> list[Curve]:
        return [c for c in curves if c.model == model and c.what in (host, c.what if host is None else host)
                and c.rate_mb_per_s == rate]  # fmt: skip

    claims = []
    for host, share in BEST.items():
        cases = [
            Case(_setting(c), _best(c), source, near(c.relative(c.best[0]), share)) for c in of("alexnet", host, 100)
        ]
        paper = f"AlexNet at 100 MB/s, best share: {share:.2%} of the local latency on the {NAMES[host]}."
        claims.append(Claim("Figure 8", paper, tuple(cases), _WHY_BEST if host == "pi4" else ""))
    slow = [Case(_setting(c), _best(c), source, not _pays(c)) for c in of("alexnet", "nx", 10)]
    claims.append(Claim("Figure 8", "At 10 MB/s offloading AlexNet from the NX does not pay.", tuple(slow), _WHY_SLOW))
    always = [
        Case(_setting(c), f"{_best(c)}; {_paying(c)}", source, _pays(c))
        for rate in (100, 10)
        for c in of("vgg11", None, rate)
    ]
    claims.append(Claim("Figure 8", "Offloading VGG11 always pays.", tuple(always), _WHY_VGG))
    claims.append(Claim("Figure 8", _CLOSER, tuple(_closeness(curves, source)), _WHY_CLOSER))
    return claims


_CLOSER = "The two bandwidth curves of VGG11 lie closer together than those of AlexNet."
_WHY_BEST = (
    "The devices are emulated with nominal speeds, so the number depends on the pace in "
    "hostfiles/labs/pi4-nx-laptop.toml. "
    f"A number agrees here if it is within {NEAR:.0%} of the paper's. The fully connected layers stay on the "
    f"weak device: "
    "what they take there cannot be offloaded, and bounds what the best share can gain."
)
_WHY_SLOW = (
    "Offloading has to bring the picture (0.62 MB, 62 ms at 10 MB/s) to the helper and, at shares below 1, "
    "every map both "
    "ways. Handing everything over needs no exchange between layers, so the best share is often 1, where only the "
    "picture and the last map travel."
)
_WHY_VGG = (
    "Pays means: the best share is faster than local. VGG11's maps are large: at shares between 0 and 1 they travel in "
    "both directions after every unit, which at 10 MB/s can cost more than the helper saves."
)
_WHY_CLOSER = (
    "Compared is the mean over the shares above 0 of (latency at 10 MB/s) / (latency at 100 MB/s). VGG11 computes more "
    "for each byte of its weights, but its early maps are far larger than AlexNet's; which of them wins depends on the "
    "exchange point."
)


def _setting(curve: Curve) -> str:
    model, host = MODELS.get(curve.model, curve.model), NAMES.get(curve.what, curve.what)
    return f"{model}, {host}, {curve.rate_mb_per_s:g} MB/s, {EXCHANGED[curve.gather]}"


def _best(curve: Curve) -> str:
    x, point = curve.best
    local = curve.local.median_s if curve.local else float("nan")
    return f"best share {x:g}: {_ms(point.median_s)} of {_ms(local)} ms, {curve.relative(x):.1%} of local"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def _pays(curve: Curve) -> bool:
    return min(curve.relative(x) for x in curve.points) < 1


def _paying(curve: Curve) -> str:
    shares = [x for x in curve.points if x > 0]
    return f"faster than local at {sum(curve.relative(x) < 1 for x in shares)} of {len(shares)} shares"


def _closeness(curves: Sequence[Curve], source: str) -> list[Case]:
    """The mean ratio of the two rates' latencies for both networks, by device and exchange point."""
    ratios: dict[tuple[str, str], dict[str, float]] = {}
    for fast in curves:
        for slow in curves:
            same = (fast.model, fast.what, fast.gather) == (slow.model, slow.what, slow.gather)
            if same and (fast.rate_mb_per_s, slow.rate_mb_per_s) == (100, 10):
                shares = [x for x in fast.points if x > 0 and x in slow.points]
                found = [slow.points[x].median_s / fast.points[x].median_s for x in shares]
                if found:
                    ratios.setdefault((fast.what, fast.gather), {})[fast.model] = float(np.mean(found))
    return [
        Case(f"{NAMES.get(host, host)}, {EXCHANGED[gather]}", f"VGG11 {r['vgg11']:.2f}, AlexNet {r['alexnet']:.2f}",
             source, r["vgg11"] < r["alexnet"])
        for (host, gather), r in ratios.items() if {"vgg11", "alexnet"} <= set(r)
    ]  # fmt: skip


def figure_9(measured: Sequence[Point], file: str) -> list[Claim]:
    """Equal devices: latency and energy."""
    groups: dict[tuple[str, float, str], dict[str, Curve]] = {}
    for curve in device_curves(measured):
        if curve.local and curve.model == "alexnet":
            groups.setdefault((curve.what, curve.rate_mb_per_s, curve.gather), {})[curve.scheme] = curve
    fast = {(what, gather): g for (what, rate, gather), g in groups.items() if rate == 100}
    both = {key: g for key, g in fast.items() if {"kpm", "wpm"} <= set(g)}
    slow = {(what, gather): g for (what, rate, gather), g in groups.items() if rate == 10 and "kpm" in g}
    source, energies = f"`{file}`, latency", f"`{file}`, compute_energy + transfer_energy"
    falls = [
        Case(f"{scheme.upper()}, {what}, {EXCHANGED[gather]}", _course(curve), source,
             curve.relative(WINNING) <= STEEPLY)
        for (what, gather), group in fast.items() for scheme, curve in sorted(group.items()) if WINNING in curve.points
    ]  # fmt: skip
    kpm_on_two = [
        Case(f"{what}, {EXCHANGED[gather]}", f"{_ms(g['kpm'].points[2].median_s)} ms on 2, "
             f"{_ms(g['kpm'].points[1].median_s)} ms on one", source, g["kpm"].relative(2) > 1)
        for (what, gather), g in slow.items() if 2 in g["kpm"].points
    ]  # fmt: skip
    energy = [
        Case(f"{what}, {EXCHANGED[gather]}", f"largest difference {difference:.1%}, on {n:g} devices; {_joules(g)}",
             energies, difference <= HARDLY)
        for (what, gather), g in both.items() for difference, n in [_energy_difference(g)]
    ]  # fmt: skip
    return [
        Claim("Figure 9", "At 100 MB/s both latencies fall steeply up to 8 devices.", tuple(falls), _WHY_FALL),
        Claim("Figure 9", "Up to 8 devices WPM is the faster one.",
              tuple(_order(both, source, "wpm", [2, 3, 4, 6, 8])), ""),
        Claim("Figure 9", "Beyond 8 devices KPM is the faster one.",
              tuple(_order(both, source, "kpm", [10, 12])), _WHY_ORDER),
        Claim("Figure 9", "At 10 MB/s KPM on 2 devices is slower than no split.", tuple(kpm_on_two), _WHY_TWO),
        Claim("Figure 9", "At 100 MB/s the energies of the two schemes hardly differ.", tuple(energy), _WHY_ENERGY),
    ]  # fmt: skip


_WHY_FALL = (
    f"Steeply means here: on 8 devices at most {STEEPLY:.0%} of the latency on one. The fully connected layers "
    f"stay on the "
    "root: their time does not shrink. Over unicast links KPM's exchange does not shrink either (each device "
    "receives all "
    "that it does not hold), so how steep KPM falls depends on how slow the devices are against their links, "
    "and on how "
    "early the maps get small: gathering after the pooling moves half or less."
)
_WHY_ORDER = (
    "The paper's count lets KPM's traffic fall with every device, because a multicast counts once. Over unicast "
    "it grows in "
    "sum, while WPM sends a few rows to two neighbours. What WPM loses is balance: it can only share out whole rows."
)
_WHY_TWO = "Each of the two devices sends half of every map to the other, and rank 0 the picture."
_WHY_ENERGY = (
    f"Hardly means here: by at most {HARDLY:.0%}, at every number of devices that both were run on. With the paper's "
    "constants computing costs 1000 W and transferring 0.8 W, so that the energy is the computing time and little else."
)


def _course(curve: Curve) -> str:
    where = [x for x in curve.points if x in (1, 2, 4, 8, 12, 16)]
    values = ", ".join(_ms(curve.points[x].median_s) for x in where)
    return f"{values} ms on {', '.join(f'{x:g}' for x in where)} devices; {curve.relative(WINNING):.0%} on {WINNING}"


def _order(
    groups: Mapping[tuple[str, str], Mapping[str, Curve]], source: str, winner: str, where: Sequence[int]
) -> Any:
    """For each setting, on which of these numbers of devices ``winner`` is the faster one."""
    for (what, gather), group in groups.items():
        counts = [n for n in where if n in group["kpm"].points and n in group["wpm"].points]
        if counts:
            pairs = [(n, {scheme: group[scheme].points[n].median_s for scheme in ("kpm", "wpm")}) for n in counts]
            text = "; ".join(f"on {n}: WPM {_ms(p['wpm'])}, KPM {_ms(p['kpm'])} ms" for n, p in pairs)
            wins = [min(p, key=lambda scheme: p[scheme]) == winner for _, p in pairs]
            yield Case(f"{what}, {EXCHANGED[gather]}", text, source, all(wins))


def _energy_difference(group: Mapping[str, Curve]) -> tuple[float, float]:
    """The largest relative difference of the mean device energies, and on how many devices."""
    kpm, wpm = group["kpm"].points, group["wpm"].points
    found = [(abs(kpm[n].device_joules / wpm[n].device_joules - 1), n) for n in kpm if n in wpm and n > 1]
    return max(found)


def _joules(group: Mapping[str, Curve]) -> str:
    counts = [n for n in (1, 4, 12) if all(n in group[scheme].points for scheme in ("kpm", "wpm"))]
    return "; ".join(
        f"on {n}: " + ", ".join(f"{s.upper()} {group[s].points[n].device_joules:.3g} J" for s in ("kpm", "wpm"))
        for n in counts
    )


def constants(attributes: Mapping[str, Any], file: str) -> Claim:
    """The energy constants."""
    cases = []
    if "energy_k" in attributes:
        k, f = float(attributes["energy_k"]), float(attributes["energy_frequency_hz"])
        power = float(attributes["energy_compute_power_w"])
        source = f"`{file}`, energy_k, energy_frequency_hz, energy_compute_power_w"
        cases.append(Case("as published", f"k f^3 = {power:g} W, k = {k:g}, f = {f / 1e9:g} GHz", source, power < 100))
        cases.append(Case("with k = 1e-27", f"{1e-27 * f**3:g} W", source))
    paper = "E_c = k f^3 T_c with k = 1e-24 and f = 1 GHz, E_t = p bytes / B with p = 0.8 W."
    why = "No such board draws 1000 W. The energies here compare schemes; none is what a meter would show."
    return Claim("Energy", paper, tuple(cases), why)


def section_3(measured: Sequence[Point], file: str, lost: Lost | None = None) -> list[Claim]:
    """What section 3 says in words only."""
    four = {p.scheme: p for p in measured if p.ranks == 4 and p.gather == "conv" and p.model == "alexnet"}
    private, exchanged = [], []
    for scheme, point in sorted(four.items()):
        seen = float(point.per_rank["picture_bytes"][1])
        whole = 4 * 3 * 227 * 227
        private.append(
            Case(f"{scheme.upper()}, 4 devices", f"rank 1 is sent {seen / whole:.0%} of the picture's values",
                 f"`{file}`, picture_bytes", seen > 0)
        )  # fmt: skip
        sent = point.per_rank["messages_sent"][1]
        got = point.per_rank["bytes_received"][1] / 1e6
        text = f"rank 1 sends {sent:.0f} messages a picture and receives {got:.2f} MB"
        exchanged.append(Case(f"{scheme.upper()}, 4 devices", text, f"`{file}`, messages_sent, bytes_received"))
    flexible = Case(
        "any boxes in any unit", "equal to the unsplit network", "tests/test_property.py, tests/test_run.py", True
    )
    return [
        Claim("Table of the schemes", "KPM sends every device's channels to all others, WPM its edge rows to "
        "two neighbours.",
              tuple(exchanged), "A message counts once for each receiver."),
        Claim("Section 3", "KPM can change the split at every layer (flexible).", (flexible,),
              "A plan gives every unit its own boxes, and `--plan` runs any. This is so for any scheme here, "
              "not only KPM."),
        Claim("Section 3", "A lost slice of early feature maps hurts less than a lost band of the picture "
        "(robust).", _robust(lost),
              "Simulated: the values that one of the devices made are zeros, each device in turn. Random weights "
              "could not show it."),
        Claim("Section 3", "Both schemes show data to their helpers: neither is private.", tuple(private),
              "Under KPM a helper sees the whole picture, under WPM its band and the halo."),
    ]  # fmt: skip


def _robust(lost: Lost | None) -> tuple[Case, ...]:
    if lost is None:
        return ()
    source = f"the shipped digits weights on {lost.pictures} held-out digits, when the page is made"
    one = f"one of {lost.devices} devices lost"
    return (
        Case("nothing lost", f"{lost.whole:.1%} right", source),
        Case(f"{one}: its kernels of the first unit (KPM)", f"{lost.channels:.1%} right", source,
             lost.channels > lost.picture_rows),
        Case(f"{one}: its band of the picture (WPM)", f"{lost.picture_rows:.1%} right", source),
        Case(f"{one}: its band of the first unit's map (WPM)", f"{lost.rows:.1%} right", source),
    )  # fmt: skip


def overrun(measured: Sequence[Point]) -> tuple[float, float]:
    """In which part of its units the device worst off could not keep pace: the median of the runs, and the worst."""
    worst = [float(np.nanmax(p.per_rank["pace_overrun"])) for p in measured]
    return (float(np.median(worst)), max(worst)) if worst else (0.0, 0.0)
