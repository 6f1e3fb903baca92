"""``mpiconv plan``: make, show and save a plan: of a named scheme, or the best for a cluster."""

from __future__ import annotations

import argparse

from mpiconv.cli.memory_limit import add_memory_limit, check_plan
from mpiconv.cli.objectives import add_energy_limit, add_objective
from mpiconv.cli.options import AUTO, add_model_options, add_split_options, named, positive
from mpiconv.cli.wire_options import add_wire, add_wire_error, check_wire_error
from mpiconv.errors import UsageError
from mpiconv.words import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``mpiconv plan``."""
    add_model_options(parser)
    add_split_options(parser, usual="kpm; auto with --cluster")
    parser.add_argument(
        "--cluster",
        metavar="FILE.toml",
        help="choose a plan for the devices and links that mpiconv probe measured: says first what to do and what it "
        "gains, then the alternatives; or make the plan of a baseline; all of it estimated, no device needed "
        "(hostfiles/clusters/ has nominal ones)",
    )
    parser.add_argument(
        "--root", metavar="HOST", help="with --cluster: the device that has the pictures, as if it came first in FILE"
    )
    parser.add_argument(
        "--explain", metavar="UNIT", help="with --cluster: why the best plan splits this unit as it does"
    )
    parser.add_argument(
        "--html",
        type=named(".html"),
        metavar="FILE.html",
        help="with --cluster: also write a page with the alternatives and the timeline of the best",
    )
    add_objective(parser, "latency")
    parser.add_argument(
        "--pareto",
        action="store_true",
        help="with --cluster: also show the plans than which no other is better in latency, pictures/s, energy and the "
        "largest memory on a device at once",
    )
    add_memory_limit(parser)
    add_energy_limit(parser)
    add_wire(parser, usual="that of --plan, else float32")
    add_wire_error(parser, how="with --cluster, by the formats' usual errors")
    parser.add_argument("--ranks", type=positive, metavar="N", help="number of ranks (default: 2)")
    parser.add_argument("--plan", metavar="FILE", help="show this plan instead of making one")
    parser.add_argument(
        "--save", type=named(".json"), metavar="FILE.json", help="write the plan as JSON, for mpiconv run --plan FILE"
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Print the plan; exit status 0."""
    if arguments.cluster:
        from mpiconv.cli.plan_choice import choose

        return choose(arguments)
    for name in ("root", "explain", "html", "objective", "pareto", "energy_limit"):
        if getattr(arguments, name):
            raise UsageError(f"--{name.replace('_', '-')} is about a cluster: give --cluster FILE.toml too")
    check_wire_error(arguments, chooses=False, otherwise="give --cluster FILE.toml too, or name a format with --wire")
    from mpiconv.planner.baselines import BASELINES

    if arguments.scheme in (AUTO, *BASELINES) and not arguments.plan:
        raise UsageError(
            f"--scheme {arguments.scheme} chooses for the devices and links at hand: give them as --cluster FILE.toml, "
            "as mpiconv probe --out FILE.toml writes them"
        )
    from mpiconv.cli.networks import build_model
    from mpiconv.cli.setup import in_wire, plan_for, saved_plan
    from mpiconv.text import to_json

    plan = saved_plan(arguments, arguments.ranks or 2)
    if plan is None:
        model, info = build_model(arguments)
        plan = plan_for(arguments, model, (arguments.batch, *info.input_shape), arguments.ranks or 2)
    elif arguments.ranks not in (None, plan.ranks):
        raise UsageError(f"{arguments.plan} is a plan for {counted(plan.ranks, 'rank')}, not for {arguments.ranks}")
    plan = in_wire(plan, arguments)
    check_plan(arguments, plan)
    if arguments.save:
        plan.save(arguments.save)
    print(to_json(plan.to_dict()) if arguments.json else plan)
    return 0
