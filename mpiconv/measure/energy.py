"""Energy from times and bytes by a model with named constants."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpiconv.measure.record import Record


@dataclass(frozen=True)
class EnergyProfile:
    """Constants of the energy model of [KPM22]: E_c = k f^3 T_c and E_t = T_t p.

    Attributes
    ----------
    k, frequency_hz
        Their product k f^3 is the power in W while computing.
    transfer_power_w
        Power p in W while transferring.
    link_bytes_per_s
        The assumed link rate B, by which T_t = bytes / B.
    """

    name: str
    k: float
    frequency_hz: float
    transfer_power_w: float
    link_bytes_per_s: float

    @property
    def compute_power_w(self) -> float:
        """Power while computing, k f^3, in W."""
        return self.k * self.frequency_hz**3

    def compute_joules(self, record: Record) -> np.ndarray:
        """(rank,): energy of computing per inference, from the measured compute times."""
        return np.asarray(self.compute_power_w * record.compute_time_s.sum(axis=2).mean(axis=0))

    def transfer_joules(self, record: Record) -> np.ndarray:
        """(rank,): energy of transferring per inference; several receivers count once, as in the paper."""
        return np.asarray(record.multicast_bytes.sum(axis=1) / self.link_bytes_per_s * self.transfer_power_w)


PAPER = EnergyProfile("paper", k=1e-24, frequency_hz=1e9, transfer_power_w=0.8, link_bytes_per_s=100e6)
"""The constants of [KPM22]. They give 1000 W of compute power, which no such board draws (k = 1e-27 gives 1 W)."""
