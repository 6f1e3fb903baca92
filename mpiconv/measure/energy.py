"""Energy from times and bytes by a model with named constants."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from mpiconv.errors import MpiconvError, UsageError
from mpiconv.measure.record import Record
from mpiconv.reading import read_toml
from mpiconv.words import did_you_mean

BUILT_IN = Path(__file__).with_name("profiles.toml")
WHAT = "file of energy profiles"
LARGEST = 1e30
TRAFFIC = ("multicast", "unicast")


@dataclass(frozen=True)
class EnergyProfile:
    """Constants of an energy model: E_c = P_c T_c with P_c = k f^3, and E_t = p T_t with T_t = bytes / B ([KPM22]).

    Attributes
    ----------
    compute_power_w
        Power while computing; ``k`` and ``frequency_hz`` say where it comes from, and are 0 where it was given itself.
    transfer_power_w
        Power p while transferring.
    traffic
        ``multicast`` (what goes to several receivers counts once, as in the paper) or ``unicast`` (all that is sent
        or received).
    link_bytes_per_s
        The assumed link rate B.
    """

    name: str
    compute_power_w: float
    transfer_power_w: float
    traffic: str = "unicast"
    source: str = ""
    k: float = 0.0
    frequency_hz: float = 0.0
    link_bytes_per_s: float = 100e6

    def compute_joules(self, record: Record) -> np.ndarray:
        """(rank,): energy of computing per inference, from the measured compute times."""
        return np.asarray(self.compute_power_w * record.compute_time_s.sum(axis=2).mean(axis=0))

    def transfer_joules(self, record: Record) -> np.ndarray:
        """(rank,): energy of transferring per inference, from the counted bytes and the assumed link rate."""
        once = self.traffic == "multicast"
        moved = record.multicast_bytes if once else record.bytes_sent + record.bytes_received
        return np.asarray(moved.sum(axis=1) / self.link_bytes_per_s * self.transfer_power_w)


def load_profile(name: str) -> EnergyProfile:
    """A built-in profile by name, or one from a file, ``FILE.toml`` (if it has one only) or ``FILE.toml:NAME``.

    Raises
    ------
    UsageError
        There is no such profile.
    MpiconvError
        The file cannot be read or a profile in it is wrong; the key is named.
    """
    file, _, wanted = name.rpartition(":") if ".toml:" in name else (name, "", "")
    if not file.endswith(".toml"):
        return _from_table(BUILT_IN, read_toml(BUILT_IN, WHAT), name)
    tables = read_toml(file, WHAT)
    if not wanted and len(tables) != 1:
        raise UsageError(f"{file} has the profiles {', '.join(tables)}: choose one as {file}:NAME")
    return _from_table(Path(file), tables, wanted or next(iter(tables)))


def _from_table(path: Path, tables: dict[str, Any], name: str) -> EnergyProfile:
    if not isinstance(tables.get(name), dict):
        hint = did_you_mean(name, tables)
        raise UsageError(f"no energy profile {name!r}: choose from {', '.join(tables)} or FILE.toml:NAME{hint}")
    table = dict(tables[name])
    known = {field.name for field in fields(EnergyProfile)} - {"name", "link_bytes_per_s"}
    for key, value in table.items():
        if key not in known:
            raise MpiconvError(f"{path}: {name} has the unknown key {key!r}{did_you_mean(key, known)}")
        if key in ("source", "traffic"):
            if not isinstance(value, str):
                raise MpiconvError(f"{path}: {key} of {name} is {value!r}: a text is wanted")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < LARGEST:
            raise MpiconvError(f"{path}: {key} of {name} is {value!r}: a number from 0 up is wanted")
    if "k" in table and "frequency_hz" in table:
        table.setdefault("compute_power_w", table["k"] * table["frequency_hz"] ** 3)
    for key in ("compute_power_w", "transfer_power_w"):
        if key not in table:
            raise MpiconvError(f"{path}: {name} has no {key} (or k and frequency_hz)")
    if table.get("traffic", "unicast") not in TRAFFIC:
        raise MpiconvError(f"{path}: traffic of {name} is {table['traffic']!r}: {' or '.join(TRAFFIC)} is wanted")
    return EnergyProfile(name, **table)
