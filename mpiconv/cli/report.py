"""``mpiconv report``: result files to one page, tables, figures and a trace."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mpiconv report``."""
    parser.add_argument("files", nargs="+", metavar="FILE.h5", help="result files of mpiconv run --output")
    parser.add_argument("--out", default="report.html", metavar="FILE", help="the page (default: %(default)s)")
    parser.add_argument("--title", metavar="TEXT", help="heading of the page (default: the models and number of runs)")
    parser.add_argument(
        "--trace", metavar="FILE.json", help="also a Chrome or Perfetto trace of the run (one file only)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the page and say where; exit status 0."""
    from mpiconv.errors import UsageError
    from mpiconv.study.report import write_report, write_trace  # not before: --help needs no numpy

    if arguments.trace and len(arguments.files) != 1:
        raise UsageError(f"--trace shows one run and {len(arguments.files)} files are given")
    beside = write_report(arguments.files, arguments.out, arguments.title)
    print(f"report   {arguments.out}\nbeside   {beside}")
    if arguments.trace:
        write_trace(arguments.files[0], arguments.trace)
        print(f"trace    {arguments.trace}")
    return 0
