"""How a plan is run: what local compute, how to wait, what travels. None of it changes what is computed."""

from __future__ import annotations

from dataclasses import dataclass

from mpiconv.errors import UsageError
from mpiconv.runtime.choices import GUARDS, OVERLAPS, SAME_HOSTS, WAITS
from mpiconv.runtime.compute.engines import computes
from mpiconv.runtime.faults import injected


@dataclass(frozen=True)
class Settings:
    """How ``distribute`` runs a plan; the root's count, but for ``pace``, which every rank has of its own.

    Attributes
    ----------
    compute
        ``auto``: maps with channels last, units compiled or computed by oneDNN where torch has it. ``eager``: torch's
        operations one by one. Or the name of another engine, for the units that it suits.
    wait
        ``spin``, ``sleep``, or ``auto``: asleep where a host has more ranks than cores.
    overlap
        Whether what others need is computed and sent first (``on``), the rest while it travels; ``auto`` where a
        message is large enough to pay for it.
    same_host
        How ranks of one host exchange maps: ``auto`` through memory that they share, as float32; ``messages`` by MPI,
        in the plan's number format, as between hosts.
    in_flight
        How many batches ``stream`` has under way at a time.
    pace
        How many times slower than its core this rank computes, to emulate a slower device: it sleeps in between.
    inject
        What happens to devices in the middle of the run, each as ``faults.injected`` reads it, in frames from the
        first one that is run.
    dilation
        By how much everything was slowed down, links too: the times of the merged record are divided by it.
    guard
        Whether the first unit whose output is not finite is noticed: ``on``, ``off``, or ``auto`` where that costs less
        than half a percent of its computing.
    selfcheck
        Whether the root first compares what the plan's units compute, unsplit, with the model itself.
    rank_timeout_s
        How long a rank waits for another before it ends with an error that names it, 0 for ever. None: for ever where
        rank 0's stderr is a terminal, else 5 minutes, but for ever for the next picture.
    backups
        The ranks that hold, as far as the first loss of a rank goes, what they need for the plan after it: nothing but
        orders travels then.
    as_slices
        The units of which all is computed in the way that slices of their kernels are, so that it has the same bits.
    weight_cache
        Where ranks keep the rows of weights that they received, by hash, so that the next start sends hashes alone: a
        folder on every rank but the root; ``auto``: on other hosts than the root's the user's cache folder; ``off``.
    weight_cache_bytes
        The most that the files in that folder may have together, in B; what was used least lately goes.
    weights_file, readers
        The safetensors file that the model's weights came from, and the ranks that read their slices from it instead
        of receiving them: those that ``mpiconv.runtime.weights.readers_of`` found to have it.
    """

    compute: str = "auto"
    wait: str = "auto"
    overlap: str = "auto"
    same_host: str = "auto"
    in_flight: int = 1
    pace: float = 1.0
    dilation: float = 1.0
    inject: tuple[str, ...] = ()
    guard: str = "auto"
    selfcheck: bool = True
    rank_timeout_s: float | None = None
    backups: tuple[int, ...] = ()
    as_slices: tuple[str, ...] = ()
    weight_cache: str = "auto"
    weight_cache_bytes: int = 4 * 10**9
    weights_file: str = ""
    readers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        choices = {"compute": computes(), "wait": WAITS, "overlap": OVERLAPS, "same_host": SAME_HOSTS}
        choices["guard"] = GUARDS
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UsageError(f"{name} is {getattr(self, name)!r}: {', '.join(known)} are known")
        if not self.weight_cache or self.weight_cache_bytes < 0:
            raise UsageError("a weight cache is auto, off or a folder, of 0 bytes or more")
        if self.in_flight < 1:
            raise UsageError(f"{self.in_flight} batches in flight: 1 is the least")
        if self.rank_timeout_s is not None and not 0 <= self.rank_timeout_s < float("inf"):
            raise UsageError(f"a rank timeout of {self.rank_timeout_s:g} s: 0 or more is wanted, 0 for none")
        for text in self.inject:
            injected(text)
        for name in ("pace", "dilation"):
            value = getattr(self, name)
            if not 1 <= value < float("inf"):
                raise UsageError(f"a {name} of {value:g}: 1 is the least, a core cannot be made faster")
