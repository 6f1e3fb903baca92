"""The plan for the ranks that are left when others are lost: a pure function of the one that ran."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from mpiconv.partition.box import Box, Span, normalised
from mpiconv.partition.holdings import Holdings, holdings
from mpiconv.partition.making import on_rank
from mpiconv.partition.plan import Plan
from mpiconv.partition.schemes import NO_SPLIT, ROOT, SCHEMES, alone_on, boxes_of
from mpiconv.partition.turns import AnyPlan, Turns, in_turn


def plan_for_left(plan: AnyPlan, left: Sequence[int]) -> AnyPlan:
    """A plan with the same units for some of a plan's ranks, rank 0 among them.

    What the others did is done by ranks that had nothing to do, if there are as many. Else a plan by one scheme is made
    anew with the shares of those who are left; of any other one each part goes to the rank whose own it continues, or
    that has to compute the least because of it. Of plans in turn those stay of which nobody is lost.

    Parameters
    ----------
    plan
        The plan that ran.
    left
        The numbers in it of the ranks that are left, in their new order.

    Examples
    --------
    >>> plan = make_plan(torch.nn.Conv2d(3, 8, 3), (1, 3, 10, 10), "kpm", 4)
    >>> [str(box.channels) for box in plan_for_left(plan, (0, 1, 3)).boxes[0]]
    ['0:3', '3:6', '6:8']
    """
    if isinstance(plan, Turns):
        lost = set(range(plan.ranks)) - set(left)
        stay = [_taken_over(each, left) for each in plan.plans if not lost & _busy(each)]
        return in_turn(stay or [on_rank(plan.graph, ROOT, len(left), plan.batch)])
    busy = _busy(plan)
    lost, idle = busy - set(left), set(left) - busy
    if not lost or len(idle) >= len(lost):
        return _taken_over(plan, left)
    return _made_anew(plan, left) or _taken_over(plan, left)


def with_spares(plan: Plan, count: int) -> Plan:
    """The plan with ``count`` more ranks at the end, which compute nothing and hold no weights."""
    return replace(
        plan,
        boxes=tuple((*row, *[Box()] * count) for row in plan.boxes),
        shares=(*plan.shares, *[0.0] * count),
        threads=(*plan.threads, *[plan.threads[-1]] * count) if plan.threads else (),
    )


def with_backups(plan: AnyPlan, ranks: Collection[int]) -> Holdings:
    """What each rank holds for a plan, and some of them for the plans after the loss of any one rank but 0 besides."""
    found = dict(holdings(plan))
    for lost in range(1, plan.ranks):
        left = [rank for rank in range(plan.ranks) if rank != lost]
        for param, spans in holdings(plan_for_left(plan, left)).items():
            now = list(found.get(param, (Span(),) * plan.ranks))
            for place, span in enumerate(spans):
                now[left[place]] = now[left[place]].hull(span) if left[place] in ranks else now[left[place]]
            found[param] = tuple(now)
    return found


def _busy(plan: Plan) -> set[int]:
    """The ranks that compute something."""
    return {rank for row in plan.boxes for rank, box in enumerate(row) if box}


def _made_anew(plan: Plan, left: Sequence[int]) -> Plan | None:
    """The plan's scheme on those who are left by their shares; None where it is by no scheme alone."""
    name = plan.scheme
    if name not in SCHEMES or name in NO_SPLIT:
        return None
    for head in (None, *range(plan.ranks)):
        if tuple(map(tuple, boxes_of(name, plan.graph, plan.shares, head)[1])) == plan.boxes:
            break
    else:
        return None
    shares = [plan.shares[rank] for rank in left]
    parts = normalised(shares if sum(shares) else [1.0] * len(left), len(left))
    place = None if head is None else left.index(head) if head in left else ROOT
    schemes, boxes = boxes_of(name, plan.graph, parts, place)
    return _on(plan, left, schemes, boxes, parts)


def _taken_over(plan: Plan, left: Sequence[int]) -> Plan:
    """The parts of the others added to those of the ranks that are left."""
    schemes, boxes = [], []
    for name, row in zip(plan.schemes, plan.boxes, strict=True):
        own = [row[rank] for rank in left]
        for rank, box in enumerate(row):
            if box and rank not in left:
                taker = min(range(len(own)), key=lambda r: _cost(own[r], box))
                own[taker] = own[taker].hull(box)
        workers = [rank for rank, box in enumerate(own) if box]
        schemes.append(alone_on(workers[0]) if len(workers) == 1 else name)
        boxes.append(own)
    shares = [plan.shares[rank] for rank in left]
    return _on(plan, left, schemes, boxes, normalised(shares if sum(shares) else [1.0] * len(left), len(left)))


def _cost(own: Box, box: Box) -> tuple[int, int]:
    """What taking over a box adds to a rank's own, and what it has then; the first rank is taken of equal ones."""
    size = own.hull(box).size
    return size - own.size, size


def _on(
    plan: Plan, left: Sequence[int], schemes: Sequence[str], boxes: Sequence[Sequence[Box]], shares: Sequence[float]
) -> Plan:
    threads = tuple(plan.threads[rank] for rank in left) if plan.threads else ()
    return replace(plan, schemes=tuple(schemes), boxes=tuple(map(tuple, boxes)), shares=tuple(shares), threads=threads)
