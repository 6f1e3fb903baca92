"""Measured energy: what the machine's own meters say. RAPL on PCs, INA or hwmon sensors on boards."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

SYS = Path("/sys")
INTERVAL_S = 0.05


class Meter(Protocol):
    """Energy of this host between ``start`` and ``stop``."""

    method: str

    def start(self) -> None:
        """Begin to count."""

    def stop(self) -> float:
        """Energy since ``start`` in J, the time between a ``stop`` and a ``resume`` left out."""

    def resume(self) -> None:
        """Go on counting after a ``stop``."""


def find_meter(sys: Path = SYS) -> tuple[Meter | None, str]:
    """The best meter that can be read here, or None and why not."""
    zones = [zone for zone in sorted(sys.glob("class/powercap/intel-rapl:*")) if zone.name.count(":") == 1]
    packages = [zone for zone in zones if _text(zone / "name").startswith("package")]
    if packages:
        if all(_text(zone / "energy_uj") for zone in packages):
            return Rapl(packages), ""
        return None, f"{packages[0] / 'energy_uj'} can be read by root only (chmod a+r it, or run as root)"
    rails = [rail for sensor in sorted(sys.glob("class/hwmon/hwmon*")) for rail in _rails(sensor)]
    if rails:
        return Ina(rails), ""
    return None, "this machine has no RAPL zones under powercap and no INA or power sensor under hwmon"


class _Sampled(ABC):
    """Calls ``sample`` at least every ``INTERVAL_S`` from a thread of its own, until ``stop``."""

    method = ""

    def __init__(self) -> None:
        self.joules = 0.0
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to count, anew if it was counting."""
        self.stop()
        self.joules = 0.0
        self.resume()

    def resume(self) -> None:
        """Go on counting after a ``stop``."""
        self._done.clear()
        self.begin()
        self._thread = threading.Thread(target=self._run, daemon=True, name="mpiconv power meter")
        self._thread.start()

    def stop(self) -> float:
        """Energy since ``start`` in J, the time between a ``stop`` and a ``resume`` left out."""
        if self._thread is not None:
            self._done.set()
            self._thread.join()
            self._thread = None
            self.sample()
        return self.joules

    @abstractmethod
    def begin(self) -> None:
        """Take the first reading."""

    @abstractmethod
    def sample(self) -> None:
        """Add the energy since the last reading."""

    def _run(self) -> None:
        while not self._done.wait(INTERVAL_S):
            self.sample()


class Rapl(_Sampled):
    """Intel's and AMD's running average power limit counters of all packages; they wrap around.

    ``zones`` are folders such as ``/sys/class/powercap/intel-rapl:0``.
    """

    method = "rapl"

    def __init__(self, zones: list[Path]) -> None:
        super().__init__()
        self.zones = zones
        self.ranges = [int(_text(zone / "max_energy_range_uj") or 2**32) for zone in zones]
        self.last: list[int] = []

    def begin(self) -> None:
        """Take the first reading."""
        self.last = self._read()

    def sample(self) -> None:
        """Add the energy since the last reading; a counter that is smaller than before has wrapped around."""
        now = self._read()
        for before, after, span in zip(self.last, now, self.ranges, strict=True):
            self.joules += (after - before if after >= before else after + span - before) / 1e6
        self.last = now

    def _read(self) -> list[int]:
        return [int(_text(zone / "energy_uj") or 0) for zone in self.zones]


class Ina(_Sampled):
    """Power sensors of a board (INA3221 on Jetsons, any hwmon power sensor), integrated over time.

    ``rails`` are functions that read the power of one rail in W.
    """

    method = "ina"

    def __init__(self, rails: list[Callable[[], float]]) -> None:
        super().__init__()
        self.rails = rails
        self.when, self.power_w = 0.0, 0.0

    def begin(self) -> None:
        """Take the first reading."""
        self.when, self.power_w = time.perf_counter(), self._read()

    def sample(self) -> None:
        """Add the energy since the last reading, by the trapezoidal rule."""
        when, power_w = time.perf_counter(), self._read()
        self.joules += (when - self.when) * (power_w + self.power_w) / 2
        self.when, self.power_w = when, power_w

    def _read(self) -> float:
        return sum(rail() for rail in self.rails)


def _rails(sensor: Path) -> list[Callable[[], float]]:
    """The rails of one hwmon device that tell the board's input power, from power in uW or from mV and mA."""
    if _text(sensor / "power1_input"):
        return [lambda: float(_text(sensor / "power1_input") or 0) / 1e6]
    if not _text(sensor / "name").startswith("ina"):
        return []
    inputs = [n for n in range(1, 9) if _text(sensor / f"in{n}_input") and _text(sensor / f"curr{n}_input")]
    whole = [n for n in inputs if _text(sensor / f"in{n}_label").upper().startswith(("VDD_IN", "POM_5V_IN"))]

    def rail(n: int) -> Callable[[], float]:
        return lambda: float(_text(sensor / f"in{n}_input") or 0) * float(_text(sensor / f"curr{n}_input") or 0) / 1e6

    return [rail(n) for n in whole or inputs]


def _text(path: Path) -> str:
    """What a file of sysfs says, empty if it is missing or may not be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
