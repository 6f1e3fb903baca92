"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mpiconv.cli.wire_options import add_wire
from mpiconv.errors import UsageError
from mpiconv.graph.grouping import GATHERS
from mpiconv.runtime import choices
from mpiconv.runtime.faults import injected
from mpiconv.words import counted

if TYPE_CHECKING:
    from mpiconv.runtime.settings import Settings


SPLIT = {"scheme": "kpm", "gather": "pool", "head": "root", "batch": 1}
"""What counts where neither an option nor a saved plan says."""

AUTO = "auto"
"""In place of a scheme's name: the planner chooses, for the devices and links that are there."""

BASELINES = {
    "modnn": "bands by speed",
    "coedge": "bands by speed and links",
    "deepthings": "first layers as fused tiles, the rest on rank 0",
    "aofl": "groups of fused layers in equal bands",
    "flexpie": "rows, columns, tiles or kernels by layer, equal parts",
}
"""What each scheme that ``planner.baselines`` knows by name does; said here so that --help need not import it."""


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """What is computed: model, weights, classes, input size, batch, seed."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default="alexnet",
        help="a named model, torchvision:NAME or package.module:callable (default: alexnet)",
    )
    group.add_argument(
        "--weights", metavar="FILE", help=".safetensors or .pth file (default: the package's, else random)"
    )
    group.add_argument(
        "--allow-nonfinite",
        action="store_true",
        help="take weights that are infinite or not a number too; run then computes as --compute eager does",
    )
    group.add_argument("--classes", type=positive, metavar="N", help="outputs (default: what the weights have, or 10)")
    group.add_argument(
        "--input-size", type=size, metavar="HxW", help="rows x columns in pixels (default: the model's own)"
    )
    group.add_argument("--batch", type=positive, metavar="N", help="pictures that travel together (default: 1)")
    group.add_argument("--seed", type=int, default=0, help="seed of random weights and pictures (default: %(default)s)")


def add_weights_from(parser: argparse.ArgumentParser) -> None:
    """Where the ranks get their slices of the weights from, and keep them."""
    parser.add_argument(
        "--weight-cache",
        default="auto",
        metavar="auto|off|DIR",
        help="where ranks keep slices of weights that they received, by their hash, so that the next start need not "
        "send them: auto: on other hosts than rank 0's, in the user's cache folder; DIR: a folder on every rank but 0; "
        "off: nowhere (default: auto)",
    )
    parser.add_argument(
        "--weight-cache-size",
        type=gigabytes,
        default="4",
        metavar="GB",
        help="the most that a weight cache may take of a disk; what was used least lately goes (default: 4)",
    )
    parser.add_argument(
        "--weights-on",
        choices=("root", "every"),
        default="root",
        help="with --weights FILE.safetensors: rank 0 sends the others their slices, or every rank that has the file "
        "under the same path reads its own there (default: root)",
    )


def add_split_options(parser: argparse.ArgumentParser, *, usual: str) -> None:
    """Who computes what: scheme, shares, offload, gather, head."""
    group = parser.add_argument_group("split")
    group.add_argument(
        "--scheme",
        help="single, kpm (kernels), wpm (rows), columns, tiles (rows x columns), grid (rows x kernels), fused, "
        "replicated; turns: whole pictures to each rank in turn (--in-flight of at least as many as ranks); auto: what "
        "is fastest on these devices; or a baseline from the literature, planned for these devices: "
        f"{', '.join(f'{name} ({what})' for name, what in BASELINES.items())} (default: {usual})",
    )
    group.add_argument(
        "--shares", type=shares, metavar="A,B,...", help="one number per rank on any scale, 0 for none (default: equal)"
    )
    group.add_argument(
        "--offload", type=fraction, metavar="D", help="two ranks: share of rank 1, from 0 to 1; rank 0 keeps 1-D"
    )
    group.add_argument(
        "--gather",
        choices=GATHERS,
        help="exchange after each convolution as in the paper, or after the activation and pooling (default: pool)",
    )
    group.add_argument(
        "--head",
        type=head,
        metavar="root|split|RANK",
        help="fully connected layers: all on rank 0 as in the paper, their features (and so their weights) shared out "
        "like kernels, or all on the rank of that number (default: root)",
    )


def add_emulation_options(parser: argparse.ArgumentParser, *, inject: bool = False) -> None:
    """Emulate slower devices on this machine: pace and time dilation, and what is to happen in the middle of a run."""
    group = parser.add_argument_group("emulation (set by scripts/testbed.py)")
    group.add_argument(
        "--pace",
        type=shares,
        default=os.environ.get("MPICONV_PACE", "1"),
        metavar="P,...",
        help="how many times slower than this core each rank computes: one number, or one per rank (default: 1)",
    )
    group.add_argument(
        "--dilation",
        type=float,
        default=os.environ.get("MPICONV_DILATION", "1"),
        metavar="D",
        help="all was slowed down so many times, links too: report times divided by it (default: 1)",
    )
    if inject:
        group.add_argument(
            "--inject",
            type=injected,
            action="append",
            default=[],
            metavar="KIND:rank=R,frame=F",
            help="what happens to rank R at inference F, counted from 0 after the warm-up; several times for several "
            "of them. slow:rank=R,frame=F,factor=X: it computes X times slower than its pace from then on; kill: it "
            "dies; stop: it stops; drop: its device's link goes down (scripts/testbed.py); corrupt: it computes a "
            "wrong number from then on; full-disk: so is its disk",
        )


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """How the plan is run: local compute, waiting, what travels, overlap, batches in flight."""
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--compute",
        choices=choices.COMPUTES,
        default="auto",
        help="auto: channels last and units compiled for oneDNN, with weights reordered once, where this torch has "
        "that; eager: torch's operations one by one; another name: that engine for all units that it suits (default: "
        "auto)",
    )
    group.add_argument(
        "--wait",
        choices=choices.WAITS,
        default=os.environ.get("MPICONV_WAIT", "auto"),
        help="wait for messages spinning (soonest) or asleep (saves the core and energy); auto: asleep where a host "
        "has more ranks than cores (default: auto)",
    )
    add_wire(group, usual="that of --plan, else float32")
    group.add_argument(
        "--overlap",
        choices=choices.OVERLAPS,
        default="auto",
        help="compute and send what others need first, the rest while it travels; auto: where a message takes long "
        "enough to pay for it (default: auto)",
    )
    group.add_argument(
        "--same-host",
        choices=choices.SAME_HOSTS,
        default="auto",
        help="how ranks of one host exchange maps; auto: through memory that they share, where they can; messages: by "
        "MPI, as between hosts (default: auto)",
    )
    group.add_argument(
        "--in-flight",
        type=positive,
        metavar="K",
        help="batches under way at a time: one's exchange hides under another's computing; more throughput, more "
        "latency and memory (default: 1, or 4 with --objective throughput)",
    )
    group.add_argument(
        "--guard",
        choices=choices.GUARDS,
        default="auto",
        help="tell the first unit and rank whose output is not finite (NaN or infinity); auto: look at the units where "
        "that costs less than half a percent (default: auto)",
    )
    group.add_argument(
        "--no-selfcheck",
        action="store_true",
        help="do not compare, at the start, what was traced of the model with the model itself on one random batch",
    )


def add_rank_timeout(parser: argparse.ArgumentParser) -> None:
    """How long a rank waits for another."""
    parser.add_argument(
        "--rank-timeout",
        type=seconds,
        metavar="S",
        help="end the job, naming the rank, once another has waited S seconds for it; 0: wait for ever (default: 0 on "
        "a terminal, else, as in batch jobs, 300)",
    )


def settings_of(arguments: argparse.Namespace, pace: float) -> Settings:
    """The engine's settings that the options ask for."""
    from mpiconv.runtime.settings import Settings

    return Settings(
        compute=arguments.compute,
        wait=arguments.wait,
        overlap=arguments.overlap,
        same_host=arguments.same_host,
        in_flight=arguments.in_flight,
        pace=pace,
        inject=tuple(str(replace(each, frame=each.frame + arguments.warmup)) for each in arguments.inject),
        dilation=arguments.dilation,
        guard=arguments.guard,
        selfcheck=not arguments.no_selfcheck,
        weight_cache=arguments.weight_cache,
        weight_cache_bytes=arguments.weight_cache_size,
        rank_timeout_s=arguments.rank_timeout,
    )


def pace_of(arguments: argparse.Namespace, rank: int, ranks: int) -> float:
    """How much slower a rank is to compute than its core.

    Raises UsageError for a pace or dilation below 1, or another number of paces than ranks.
    """
    paces: list[float] = arguments.pace
    if len(paces) not in (1, ranks):
        raise UsageError(
            f"--pace has {counted(len(paces), 'number')} for {counted(ranks, 'rank')}: give one, or one per rank"
        )
    for value in (*paces, arguments.dilation):
        if not 1 <= value < math.inf:
            raise UsageError(f"a pace or dilation of {value:g}: 1 is the least, a core cannot be made faster")
    return paces[rank if len(paces) > 1 else 0]


@dataclass(frozen=True)
class Every:
    """After how many measured inferences, or else after how many seconds, the results so far are written."""

    inferences: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, text: str) -> Every:
        """``100`` as inferences, ``30s`` as seconds. Raises ArgumentTypeError for anything else."""
        found = re.fullmatch(r"(\d{1,9})|(\d{1,9}(?:\.\d{1,9})?)s", text, re.ASCII)
        every = cls(int(found[1] or 0), float(found[2] or 0)) if found else cls()
        if not every.inferences and not every.seconds:
            raise argparse.ArgumentTypeError(
                f"{text!r} is neither a number of inferences like 100 nor seconds like 30s"
            )
        return every

    def over(self, inferences: int, seconds: float) -> bool:
        """Whether it is time to save again, given the inferences and seconds since the last time."""
        return inferences >= self.inferences > 0 or seconds >= self.seconds > 0


def positive(text: str) -> int:
    """A whole number from 1 up."""
    return _whole(text, 1)


def whole(text: str) -> int:
    """A whole number from 0 up."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not re.fullmatch(r"\d+", text) or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} up")
    return int(text)


def seconds(text: str) -> float:
    """A time from 0 s up."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 up")
    return value


def named(*endings: str) -> Callable[[str], str]:
    """The type of a file to write, which ends with one of these: a slip does not write over a file of another kind."""

    def name(text: str) -> str:
        special = os.path.exists(text) and not os.path.isfile(text)  # a folder, say, of which writing knows better
        if not special and not text.lower().endswith(endings):
            better = (os.path.splitext(text)[0] or text) + endings[0]
            raise argparse.ArgumentTypeError(f"{text!r} does not end with {' or '.join(endings)}; is it {better!r}?")
        return text

    return name


def size(text: str) -> tuple[int, int]:
    """``227x227`` as (rows, columns)."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not rows x columns, like 227x227")
    return int(match[1]), int(match[2])


def shares(text: str) -> list[float]:
    """``0.7,0.2,0.1`` as numbers; whether they fit is checked against the ranks later."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 0.7,0.2,0.1") from None


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def head(text: str) -> str:
    """``root``, ``split`` or the number of a rank; rank 0 is the root."""
    if text not in ("root", "split") and not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is neither root nor split nor the number of a rank")
    return "root" if text.isdecimal() and int(text) == 0 else text


def above_zero_to_one(text: str) -> float:
    """A number above 0, 1 at most."""
    if fraction(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return float(text)


def gigabytes(text: str) -> int:
    """A size given in GB, from 0 up, in B."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size in GB")
    return round(value * 1e9)


def rate(text: str) -> float:
    """A link rate given in MB/s, in B/s."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate in MB/s")
    return value * 1e6


def shares_for(arguments: argparse.Namespace, ranks: int) -> list[float] | None:
    """The shares that --shares or --offload ask for.

    Raises UsageError where both are given, or --offload with another number of ranks than 2.
    """
    given: list[float] | None = arguments.shares
    if arguments.offload is None:
        return given
    if given is not None:
        raise UsageError("--offload sets the shares of two ranks: leave --shares out")
    if ranks != 2:
        raise UsageError(f"--offload is for 2 ranks and {ranks} are running: use --shares")
    return [1 - arguments.offload, arguments.offload]
