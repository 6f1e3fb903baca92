"""Who computes what: boxes, receptive fields, schemes and plans. Pure arithmetic: no MPI, no torch."""

from mpiconv.partition.box import Box, Span, hull, normalised, split
from mpiconv.partition.exchange import Exchange, Transfer
from mpiconv.partition.making import make_plan
from mpiconv.partition.plan import Plan
from mpiconv.partition.schemes import SCHEMES, scheme
from mpiconv.partition.turns import Turns, make_turns

__all__ = [
    "SCHEMES",
    "Box",
    "Exchange",
    "Plan",
    "Span",
    "Transfer",
    "Turns",
    "hull",
    "make_plan",
    "make_turns",
    "normalised",
    "scheme",
    "split",
]
