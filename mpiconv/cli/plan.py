"""``mpiconv plan``: make, show and save a plan."""

from __future__ import annotations

import argparse

from mpiconv.cli.options import add_model_options, add_split_options, positive


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
    from mpiconv.partition import Plan
    from mpiconv.text import to_json

    if arguments.plan:
        plan = Plan.load(arguments.plan)
    else:
        from mpiconv.cli.setup import build_model, plan_for

        model, info = build_model(arguments)
        plan = plan_for(arguments, model, (arguments.batch, *info.input_shape), arguments.ranks)
    if arguments.save:
        plan.save(arguments.save)
    print(to_json(plan.to_dict()) if arguments.json else plan)
    return 0
