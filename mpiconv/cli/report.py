"""``mpiconv report``: result files to one page, tables, figures and a trace; many of them to a figure or a file."""

from __future__ import annotations

import argparse

from mpiconv.cli.options import named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mpiconv report``."""
    parser.add_argument(
        "files", nargs="+", metavar="FILE.h5", help="result files of mpiconv run --output, of scripts/bench.py"
    )
    parser.add_argument("--out", metavar="FILE", help="the page (default: report.html), figure or combined file")
    parser.add_argument("--title", metavar="TEXT", help="heading of the page (default: the models and number of runs)")
    parser.add_argument(
        "--trace",
        type=named(".json"),
        metavar="FILE.json",
        help="also a Chrome or Perfetto trace of the run (one file only)",
    )
    instead = parser.add_argument_group("instead of the page").add_mutually_exclusive_group()
    instead.add_argument(
        "--figure",
        type=int,
        choices=(8, 9),
        help="draw this figure of the paper from runs, or from a combined file (default --out: figureN.png)",
    )
    instead.add_argument(
        "--combine",
        action="store_true",
        help="runs into one small file without their units (default --out: combined.h5)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the page, figure or file and say where; exit status 0."""
    if arguments.figure or arguments.combine:
        from mpiconv.cli.report_runs import combined_or_figure

        return combined_or_figure(arguments)
    from mpiconv.cli.notes import note
    from mpiconv.errors import UsageError

    arguments.out = arguments.out or "report.html"
    try:
        named(".html", ".htm")(arguments.out)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--out of the page: {error}") from None
    from mpiconv.study.report import write_report, write_trace  # not before: --help needs no numpy
    from mpiconv.text import safe_text

    if arguments.trace and len(arguments.files) != 1:
        raise UsageError(f"--trace shows one run and {len(arguments.files)} files are given")
    written = write_report(arguments.files, arguments.out, arguments.title, note)
    for sentence in written.verdicts:
        print(safe_text(sentence))
    print(f"report   {arguments.out}\nbeside   {written.beside}")
    if arguments.trace:
        write_trace(arguments.files[0], arguments.trace)
        print(f"trace    {arguments.trace}")
    return 0
