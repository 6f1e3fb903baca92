"""``mpiconv plan``: make, show and save a plan."""

from __future__ import annotations

import argparse

from mpiconv.cli.options import add_model_options, add_split_options, positive, shares_for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``mpiconv plan``."""
    add_model_options(parser)
    add_split_options(parser)
    parser.add_argument("--ranks", type=positive, default=2, metavar="N", help="number of ranks (default: %(default)s)")
    parser.add_argument("--plan", metavar="FILE", help="show this plan instead of making one")
    parser.add_argument("--save", metavar="FILE", help="write the plan as JSON, for mpiconv run --plan FILE")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Print the plan; exit status 0."""
    from mpiconv.partition import Plan, make_plan

    if arguments.plan:
        plan = Plan.load(arguments.plan)
    else:
        from mpiconv.cli.setup import build_model

        model, info = build_model(arguments)
        shape = (arguments.batch, *info.input_shape)
        shares = shares_for(arguments, arguments.ranks)
        plan = make_plan(model, shape, arguments.scheme, arguments.ranks, shares, arguments.gather)
    if arguments.save:
        plan.save(arguments.save)
    print(plan.to_json() if arguments.json else plan)
    return 0
