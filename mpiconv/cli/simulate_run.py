"""The work behind ``mpiconv simulate``: check what is asked, simulate it, print, write and draw it."""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from mpiconv.cli.simulate_text import as_dict, told
from mpiconv.errors import ModelError, UsageError
from mpiconv.files import check_writable
from mpiconv.graph.form import Graph
from mpiconv.graph.trace import trace
from mpiconv.models import info_of, load_model
from mpiconv.models.registry import check_name
from mpiconv.partition.schemes import SCHEMES, check_scheme
from mpiconv.planner.cluster import Cluster, Device
from mpiconv.planner.forecast import AUTO, MOST_DEVICES, MULTICAST, Question, forecast
from mpiconv.planner.nominal import SHEETS, nominal_device
from mpiconv.study.combined import Point, combine, points
from mpiconv.study.forecast_figures import draw
from mpiconv.study.forecast_file import write_forecast
from mpiconv.text import to_json
from mpiconv.words import did_you_mean

MOST_PIXELS = 2048
MEDIA = ("switch", "shared")
MULTICASTS = {"both": ("", MULTICAST), "off": ("",), "on": (MULTICAST,)}


def simulate(arguments: argparse.Namespace) -> int:
    """Simulate every combination that the options name; exit status 0.

    Raises MpiconvError for what cannot be simulated, before anything is.
    """
    question, device = asked(arguments), described(arguments.device)
    measured = _measured(arguments)
    for path in filter(None, (arguments.output, arguments.figures and Path(arguments.figures) / "map.png")):
        check_writable(path)
    total = 1
    for length in question.shape:
        total *= length
    with tqdm(total=total, desc="simulated", unit="", disable=arguments.quiet or None, file=sys.stderr) as bar:
        found = forecast(question, bar.update)
    if arguments.json:
        print(to_json(as_dict(question, found, device)))
    elif not arguments.quiet:
        print("\n".join(told(question, found["latency"], device)))
    if arguments.output:
        write_forecast(arguments.output, question, found, device)
        _say(arguments, f"result   {arguments.output}")
    if arguments.figures:
        for path in draw(question, found["latency"], device, Path(arguments.figures), measured):
            _say(arguments, f"figure   {path}")
    return 0


def _say(arguments: argparse.Namespace, line: str) -> None:
    print(line, file=sys.stderr if arguments.json else sys.stdout)


def asked(arguments: argparse.Namespace) -> Question:
    """The question that the options put. Raises MpiconvError for what cannot be simulated."""
    most = max(arguments.devices)
    if most > MOST_DEVICES:
        raise UsageError(f"--devices {most}: {MOST_DEVICES} are simulated at most")
    schemes = tuple(dict.fromkeys(arguments.schemes.split(",")))
    for name in schemes:
        if name != AUTO:
            _check_scheme(name)
    media = [medium + way for medium in _media(arguments.media) for way in MULTICASTS[arguments.multicast]]
    devices = tuple(device_of(name) for name in arguments.device.split(","))
    graphs = tuple(_graphs(arguments))
    return Question(
        graphs,
        devices,
        tuple(arguments.devices),
        tuple(arguments.rates),
        tuple(media),
        schemes,
        arguments.latency,
        arguments.batch,
        arguments.head,
        arguments.gather,
    )


def _check_scheme(name: str) -> None:
    known = (*SCHEMES, AUTO)
    if name not in known:
        raise UsageError(f"unknown scheme {name!r}: choose from {', '.join(known)}{did_you_mean(name, known)}")
    check_scheme(name)


def _media(text: str) -> list[str]:
    found = list(dict.fromkeys(text.split(",")))
    for name in found:
        if name not in MEDIA:
            raise UsageError(f"unknown medium {name!r}: choose from {', '.join(MEDIA)}{did_you_mean(name, MEDIA)}")
    return found


def device_of(name: str) -> Device:
    """A nominal device, or one of a cluster file: ``FILE.toml`` its device 0, ``FILE.toml:K`` its device K.

    Raises MpiconvError where there is none.
    """
    file = re.fullmatch(r"(.+\.toml)(?::(\d{1,4}))?", name)
    if file is None:
        if name not in SHEETS:
            raise UsageError(
                f"unknown device {name!r}: choose from {', '.join(SHEETS)}, or FILE.toml as mpiconv probe writes it"
                f"{did_you_mean(name, SHEETS)}"
            )
        return nominal_device(name)
    devices, number = Cluster.load(file[1]).devices, int(file[2] or 0)
    if number >= len(devices):
        raise UsageError(f"--device {name}: the devices of {file[1]} are numbered from 0 to {len(devices) - 1}")
    return devices[number]


def described(names: str) -> str:
    """What devices are taken, in words."""
    return ", ".join(f"nominal {name}" if name in SHEETS else f"device of {name}" for name in names.split(","))


def _graphs(arguments: argparse.Namespace) -> list[Graph]:
    """The network as traced for every size. Raises MpiconvError for a size that it does not take; named."""
    for rows, columns in arguments.input_size or ():
        if max(rows, columns) > MOST_PIXELS:
            raise UsageError(f"--input-size {rows}x{columns}: {MOST_PIXELS}x{MOST_PIXELS} is simulated at most")
    check_name(arguments.model)
    model = load_model(arguments.model, num_classes=arguments.classes)
    channels, *own = info_of(model).input_shape
    found = []
    for rows, columns in arguments.input_size or [own]:
        try:
            found.append(trace(model, (channels, rows, columns), batch=arguments.batch).layers)
        except ModelError as error:  # noqa: PERF203 - tracing takes much longer
            raise ModelError(f"{arguments.model} cannot take pictures of {rows}x{columns}: {error}") from None
    return found


def _measured(arguments: argparse.Namespace) -> Sequence[Point]:
    """The runs that are drawn beside: those of this model. Raises UsageError where there are none to draw."""
    if not arguments.measured:
        return ()
    if not arguments.figures:
        raise UsageError("--measured draws runs in the figures: add --figures DIR")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [point for point in points(combine([arguments.measured])) if point.model == arguments.model]
    if not found:
        raise UsageError(f"{arguments.measured} has no run of {arguments.model} to draw: leave --measured out")
    return found
