"""Which of the tensors in a file are a model's: the names that it wants, below a prefix that wrappers left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

MOST_PARTS = 16

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What DataParallel, torch.compile, FSDP and checkpointing put into names, at any place."""

ENTRIES = frozenset(
    {"state_dict", "model_state_dict", "model_state", "model_weights", "weights", "params", "model", "net", "network"}
    | {"ema", "ema_model", "model_ema", "state_dict_ema", "model_ema_state_dict", "ema_state_dict", "params_ema"}
)
"""What a checkpoint calls the entry or attribute that is the model."""


@dataclass(frozen=True)
class Names:
    """How the names in a file fit those of a model.

    ``stored`` has the name in the file by the model's own, and the rest below the prefix by what follows the prefix.
    ``prefix`` is what stands before a name in the file, ``others`` the prefixes below which as many names fit.
    """

    stored: dict[str, str]
    prefix: str = ""
    others: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """What was taken, in words; empty where the names are simply those of the model."""
        changed = next((name for own, name in self.stored.items() if own != name), "")
        if not changed:
            return ""
        also = f", not those below {' or '.join(self.others)}" if self.others else ""
        return f"took the tensors below {self.prefix}{also}" if self.prefix else f"took {changed} and others without it"


def fit_names(stored: Iterable[str], wanted: Iterable[str]) -> Names:
    """Find the prefix below which the file has most of the names that the model wants.

    What wrappers put into names does not count, unless names would then be alike. A prefix is one that all names in the
    file have, or made of words for the model in a checkpoint; of several the one without an average (``ema``) and then
    the shortest is taken.
    """
    names = list(stored)
    ours, theirs = _plain(wanted), _plain(names)
    found: Counter[str] = Counter()
    for name in theirs:
        dots = islice((at + 1 for at, letter in enumerate(name) if letter == "."), MOST_PARTS)
        for at in (0, *dots):
            if name[at:] in ours:
                found[name[:at]] += 1
    fit = {p: n for p, n in found.items() if _says_model(p) or all(name.startswith(p) for name in theirs)}
    most = max(fit.values(), default=0)
    best = sorted((p for p, n in fit.items() if n == most), key=lambda prefix: ("ema" in prefix, len(prefix)))
    prefix = best[0] if best else ""
    below = {name[len(prefix) :]: original for name, original in theirs.items() if name.startswith(prefix)}
    fitted = {ours.get(name, name): original for name, original in below.items()}
    own, example = next(((o, s) for o, s in fitted.items() if o in ours.values() and s != o), ("", ""))
    shown = example.removesuffix(own) if own and example.endswith(own) else prefix
    return Names(fitted, shown, tuple(best[1:]))


def _says_model(prefix: str) -> bool:
    return all(word in ENTRIES for word in prefix.split(".")[:-1])


def _plain(names: Iterable[str]) -> dict[str, str]:
    """Every name by itself without what wrappers put into it; by itself as it is where two would be alike."""
    originals = list(names)
    plain = {".".join(part for part in name.split(".") if part not in WRAPPERS): name for name in originals}
    return plain if len(plain) == len(originals) else {name: name for name in originals}
