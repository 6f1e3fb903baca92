"""``mpiconv train``: teach a model on CIFAR-10, a folder of pictures per class, or the digits."""

from __future__ import annotations

import argparse
import math

from mpiconv.cli.options import positive, size, whole

EPILOG = """\
Trains on all ranks of mpirun -n K mpiconv train ...: every batch is shared among them, gradients are averaged by
torch's DistributedDataParallel. The data (and a model of your own) have to lie on every host. Dropout is drawn by each
rank for itself and BatchNorm sees a rank's own part of the batch; all else is as on one rank, but for rounding.
Then: mpiconv run --model M --weights FILE.safetensors --data DATA
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mpiconv train``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    what = parser.add_argument_group("what")
    what.add_argument(
        "--data",
        required=True,
        metavar="DATA",
        help="cifar10:DIR (the binary or the python distribution, unpacked), folder:DIR or DIR (a folder of pictures "
        "per class, or train and val with such folders), or digits (scikit-learn's, with the extra train)",
    )
    what.add_argument(
        "--model", help="a named model or package.module:callable (default: digits for the digits, else alexnet)"
    )
    what.add_argument(
        "--input-size", type=size, metavar="HxW", help="rows x columns in pixels (default: the model's own)"
    )
    what.add_argument(
        "--held-out",
        type=part,
        metavar="F",
        help="part of every class that is held out of a folder without train and val, between 0 and 1 (default: 0.2)",
    )
    what.add_argument("--limit", type=positive, metavar="N", help="take N pictures of each part, for a quick try")
    how = parser.add_argument_group("how")
    how.add_argument("--epochs", type=positive, default=30, metavar="N", help="passes over the data (default: 30)")
    how.add_argument(
        "--batch", type=positive, default=64, metavar="N", help="pictures a step, of all ranks together (default: 64)"
    )
    how.add_argument("--lr", type=above_zero, default=0.02, metavar="R", help="learning rate (default: 0.02)")
    how.add_argument("--momentum", type=momentum, default=0.9, metavar="M", help="of SGD, 0 to 1 (default: 0.9)")
    how.add_argument(
        "--weight-decay", type=from_zero, default=5e-4, metavar="W", help="L2 penalty of SGD (default: 0.0005)"
    )
    how.add_argument(
        "--clip", type=from_zero, default=5.0, metavar="G", help="largest norm of the gradient, 0: any (default: 5)"
    )
    how.add_argument(
        "--schedule",
        choices=("cosine", "constant"),
        default="cosine",
        help="of the learning rate: half a cosine to 0 over all steps, or none (default: cosine)",
    )
    how.add_argument("--no-flip", action="store_true", help="do not mirror half of the pictures (digits never are)")
    how.add_argument("--no-shift", action="store_true", help="do not move the pictures by up to a tenth of their size")
    how.add_argument("--seed", type=whole, default=0, metavar="N", help="of all that is drawn (default: %(default)s)")
    how.add_argument("--threads", type=positive, default=1, metavar="N", help="torch threads per rank (default: 1)")
    _add_output(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    """What is printed and written."""
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output",
        metavar="FILE.safetensors",
        help="the weights with the best held-out accuracy (default: results/MODEL.safetensors); the checkpoint, "
        "written after each epoch, lies beside it as FILE.checkpoint",
    )
    output.add_argument(
        "--resume",
        action="store_true",
        help="go on from the checkpoint: the same numbers as without the stop, if all else is given alike",
    )
    output.add_argument("--json", action="store_true", help="print one JSON object on stdout, and nothing else there")
    output.add_argument("--quiet", action="store_true", help="no progress and notes")


def run(arguments: argparse.Namespace) -> int:
    """Train; collective. Exit status 0."""
    from mpiconv.cli.train_run import train  # torch and MPI only now, so that --help is quick

    return train(arguments)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def above_zero(text: str) -> float:
    """A number above 0."""
    if not 0 < _number(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return float(text)


def from_zero(text: str) -> float:
    """A number from 0 up."""
    if not 0 <= _number(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 up")
    return float(text)


def momentum(text: str) -> float:
    """A number from 0 to below 1."""
    if not 0 <= _number(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to below 1")
    return float(text)


def part(text: str) -> float:
    """A number between 0 and 1."""
    if not 0 < _number(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return float(text)
