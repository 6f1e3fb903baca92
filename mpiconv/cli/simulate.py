"""``mpiconv simulate``: what a network would take on 1 to 384 devices, at any link rate, by any scheme; no MPI."""

from __future__ import annotations

import argparse

from mpiconv.cli.options import named, positive, rate, seconds, size
from mpiconv.graph.grouping import GATHERS, HEADS

EPILOG = """\
All numbers are estimated, none is measured: devices compute at speeds from data sheets (--device pi4, xavier-nx or
laptop, or a device of a file that mpiconv probe wrote), all links have one rate and latency. An example:

  mpiconv simulate --model vgg16 --device pi4 --devices 1,2,4,8,16 --rates 3,12.5,100 --figures figures

Multicast (a block that several devices need is sent once and reaches all of them) is simulated only: no run does it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mpiconv simulate``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default="vgg11",
        help="a named model, torchvision:NAME or package.module:callable (default: %(default)s)",
    )
    group.add_argument("--classes", type=positive, metavar="N", help="outputs (default: 10, or what the model has)")
    group.add_argument(
        "--input-size", type=sizes, metavar="HxW,...", help="rows x columns in pixels (default: the model's own)"
    )
    group.add_argument(
        "--batch", type=positive, default=1, metavar="N", help="pictures that travel together (default: %(default)s)"
    )
    _add_devices(parser)
    _add_split_and_output(parser)


def _add_devices(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("devices and links")
    group.add_argument(
        "--devices",
        type=counts,
        default="1,2,4,8,16,32,64,128,256,384",
        metavar="N,...",
        help="numbers of devices, up to 384 (default: %(default)s)",
    )
    group.add_argument(
        "--device",
        default="pi4",
        metavar="NAME,...",
        help="what they are: pi4, xavier-nx or laptop (nominal), FILE.toml (device 0 of a cluster file) or "
        "FILE.toml:K; of several, each in turn (default: %(default)s)",
    )
    group.add_argument(
        "--rates",
        type=numbers,
        default="1,3,12.5,100",
        metavar="R,...",
        help="link rates in MB/s (default: %(default)s)",
    )
    group.add_argument(
        "--latency",
        type=milliseconds,
        default="0.2",
        metavar="MS",
        help="what a message takes besides its bytes, in ms (default: %(default)s)",
    )
    group.add_argument(
        "--media",
        default="switch,shared",
        metavar="M,...",
        help="switch: every link its own rate; shared: one rate for all, as on Wi-Fi (default: %(default)s)",
    )
    group.add_argument(
        "--multicast",
        choices=("both", "on", "off"),
        default="both",
        help="send what several devices need once, to all of them: simulated only (default: %(default)s)",
    )


def _add_split_and_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("split")
    group.add_argument(
        "--schemes",
        default="kpm,wpm,grid,fused,auto",
        metavar="S,...",
        help="schemes to compare beside all on one device; auto: the best plan that the planner finds, whatever --head "
        "and --gather say, over 16 devices at most (default: %(default)s)",
    )
    group.add_argument(
        "--head", choices=HEADS, default="root", help="who computes fully connected layers (default: root)"
    )
    group.add_argument("--gather", choices=GATHERS, default="pool", help="where maps are exchanged (default: pool)")
    group = parser.add_argument_group("output")
    group.add_argument("--output", type=named(".h5", ".hdf5"), metavar="FILE.h5", help="write all numbers as HDF5")
    group.add_argument("--figures", metavar="DIR", help="draw latency against devices, and what is fastest where")
    group.add_argument(
        "--measured", metavar="FILE.h5", help="draw measured runs beside, as in results/figure9.h5; with --figures"
    )
    group.add_argument("--json", action="store_true", help="print all numbers as JSON instead of tables")
    group.add_argument("--quiet", action="store_true", help="no progress bar, no tables")


def sizes(text: str) -> list[tuple[int, int]]:
    """``224x224,1024x1024`` as (rows, columns)."""
    return list(dict.fromkeys(size(part) for part in text.split(",")))


def counts(text: str) -> list[int]:
    """``1,2,4`` as whole numbers, in rising order."""
    return sorted({positive(part) for part in text.split(",")})


def numbers(text: str) -> list[float]:
    """``3,12.5`` in MB/s as rates in B/s, in rising order."""
    return sorted({rate(part) for part in text.split(",")})


def milliseconds(text: str) -> float:
    """A time from 0 ms up, in s."""
    return seconds(text) / 1e3


def run(arguments: argparse.Namespace) -> int:
    """Simulate, print, write and draw; exit status 0."""
    from mpiconv.cli.simulate_run import simulate  # not before: --help needs no torch

    return simulate(arguments)
