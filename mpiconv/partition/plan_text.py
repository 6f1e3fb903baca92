"""A plan as a table for people."""

from __future__ import annotations

from mpiconv.partition.plan import Plan, plans_of
from mpiconv.partition.schemes import ROOT, ROOT_ALONE
from mpiconv.partition.turns import AnyPlan
from mpiconv.partition.wire import FLOAT32


def table(plan: Plan) -> str:
    """A title, and for every unit and rank the box, what travels before it, and the rank's part of the FLOPs."""
    header = ("unit", "scheme", "exchange", "rank", "channels", "rows", "columns", "bytes in", "FLOPs %")
    rows: list[tuple[str, ...]] = [header]
    for u, unit in enumerate(plan.graph.units):
        whole = max(plan.batch * unit.flops, 1)
        for rank, box in enumerate(plan.owned[u]):
            if u == len(plan.boxes) and rank != ROOT:
                continue
            spans = [str(span) for span in box.spans] if box else ["-"] * 3
            if u == len(plan.boxes):
                spans = ["all"] * 3
            scheme = plan.schemes[u] if u < len(plan.schemes) else ROOT_ALONE
            labels = (unit.name, scheme, plan.pattern(u)) if rank == 0 else ("", "", "")
            percent = f"{100 * plan.flops(u, rank) / whole:.1f}"
            rows.append((*labels, str(rank), *spans, f"{plan.bytes_received(u, rank)}", percent))
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    title = (
        f"{plan.graph.model}, input {'x'.join(map(str, plan.input_shape))}, scheme {plan.scheme}, "
        f"{plan.ranks} ranks, gather {plan.gather}, head {plan.head}"
        f"{'' if plan.wire == FLOAT32.name else f', wire {plan.wire}'}"
    )
    lines = [
        "  ".join(
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([title, *lines])


def idle(plan: AnyPlan) -> dict[int, list[str]]:
    """Ranks that own nothing in some units, and the names of those units."""
    rows = [[each.boxes[index] for each in plans_of(plan)] for index in range(len(plan.graph.body))]
    units = list(zip(plan.graph.body, rows, strict=True))
    empty = {r: [unit.name for unit, row in units if not any(each[r] for each in row)] for r in range(plan.ranks)}
    return {rank: names for rank, names in empty.items() if names}
