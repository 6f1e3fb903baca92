"""Plans as JSON; what is read is checked, since a file may say anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mpiconv.errors import MpiconvError, PlanError
from mpiconv.graph.form import Graph
from mpiconv.partition.box import Box, normalised
from mpiconv.partition.plan import Plan
from mpiconv.partition.wire import FLOAT32
from mpiconv.reading import read_json

T = TypeVar("T")

PLAN_VERSION = 2
READ_VERSIONS = (1, PLAN_VERSION)
"""Plans of version 1 have one ``gather`` and ``head`` for all units; fully connected layers are in the head alone."""


def as_dict(plan: Plan) -> dict[str, Any]:
    """Plain lists, numbers and strings that JSON can hold."""
    return {
        "mpiconv_plan": PLAN_VERSION,
        "schemes": list(plan.schemes),
        "shares": list(plan.shares),
        "batch": plan.batch,
        "boxes": [[box.to_list() for box in row] for row in plan.boxes],
        **({"threads": list(plan.threads)} if plan.threads else {}),
        **({"wire": plan.wire} if plan.wire != FLOAT32.name else {}),
        "graph": plan.graph.to_dict(),
    }


def plan_of(data: Mapping[str, Any]) -> Plan:
    """The plan that ``Plan.to_dict`` gave.

    Raises PlanError where the data is no plan, of another version, or fits no network.
    """
    if not isinstance(data, Mapping) or data.get("mpiconv_plan") not in READ_VERSIONS:
        known = " or ".join(map(str, READ_VERSIONS))
        raise PlanError(f"not a plan of version {known} (made by mpiconv plan --save)")
    if "turns" in data:
        raise PlanError("several plans in turn, which mpiconv.Turns.load reads")
    try:
        shares = tuple(float(share) for share in data["shares"])
        boxes = tuple(tuple(Box.of(box) for box in row) for row in data["boxes"])
        normalised(shares, len(shares))
        schemes = tuple(str(name) for name in data["schemes"])
        threads = tuple(int(each) for each in data.get("threads", ()))
        wire = str(data.get("wire", FLOAT32.name))
        plan = Plan(Graph.from_dict(data["graph"]), schemes, shares, int(data["batch"]), boxes, threads, wire)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise PlanError(f"a broken plan: {error!r}") from None
    _ = plan.exchanges
    return plan


def load(path: str | Path) -> Plan:
    """The plan in a file. Raises PlanError, naming the file, where it is missing or no plan."""
    return read_plan(path, plan_of)


def read_plan(path: str | Path, made_of: Callable[[Mapping[str, Any]], T]) -> T:
    """What is made of the JSON in a file. Raises PlanError, naming the file, where it is missing or broken."""
    try:
        data = read_json(path, "plan")
    except MpiconvError as error:
        raise PlanError(f"{error}; a plan is what mpiconv plan --save writes") from None
    try:
        plan = made_of(data)
        str(plan)
    except MpiconvError as error:
        raise PlanError(f"{path}: {error}") from None
    except Exception as error:  # whatever the arithmetic makes of a network that none is
        raise PlanError(f"{path}: a broken plan: {error!r}") from None
    return plan
