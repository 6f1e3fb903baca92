"""``mpiconv model``: the paper's equations per layer, its Figures 3, 4 and 6, and 7 for a picture."""

from __future__ import annotations

import argparse

from mpiconv.cli.options import add_model_options, positive

FIGURES = (3, 4, 6, 7)


def counts(text: str) -> list[int]:
    """``1,2,4`` as whole numbers."""
    return [positive(part) for part in text.split(",")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mpiconv model``."""
    add_model_options(parser)
    parser.set_defaults(model=None)
    parser.add_argument("--input", metavar="CxHxW", help="input of the model (default: its own), like 3x227x227")
    parser.add_argument(
        "--devices", type=counts, metavar="N,...", help="numbers of equal devices (default: 1,2,4,8; figure 6: 2 to 12)"
    )
    parser.add_argument("--json", action="store_true", help="print a list of rows as JSON")
    parser.add_argument("--csv", metavar="FILE", help="write the rows, and what MPI moves beside them, as CSV")
    parser.add_argument("--figure", type=int, choices=FIGURES, help="draw this figure of the paper")
    parser.add_argument("--image", metavar="FILE", help="the picture for figure 7")
    parser.add_argument(
        "--out", metavar="FILE", help="where the figure goes, .png, .svg or .pdf (default: figureN.png)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the table and draw the figure; exit status 0."""
    arguments.model = arguments.model or ("vgg11" if arguments.figure == 7 else "alexnet")
    from mpiconv.cli.model_table import show  # torch only now, so that --help is quick

    return show(arguments)
