"""--wire-error: smaller formats are proposed where they save time, and refused where they err too much."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mpiconv.cli import auto
from mpiconv.cli.run import add_arguments
from mpiconv.cli.wire_options import wire_error
from mpiconv.errors import UsageError
from mpiconv.graph.trace import trace
from mpiconv.partition import Plan, make_plan
from mpiconv.partition.plan import at_work
from mpiconv.partition.wire import WIRES
from mpiconv.planner.candidates import candidates
from mpiconv.planner.coding import DECODING, ENCODING, priced, smaller_formats
from mpiconv.planner.estimating import estimate
from mpiconv.runtime.settings import Settings
from mpiconv.runtime.trials import Limit, choose, fastest, shortlist
from tests.test_simulation import cluster
from tests.test_trials import MODEL, OWN, SHAPE, candidate

ERRORS = {"float16": 0.001, "bfloat16": 0.01, "int8": 0.03}
TAKES = {"float32": 0.2, "float16": 0.12, "bfloat16": 0.12, "int8": 0.08}


def in_wire(wire: str, estimated_s: float):
    return candidate(wire, make_plan(MODEL, SHAPE, "kpm", 2, wire=wire), estimated_s)


LISTED = [OWN, in_wire("int8", 0.5), in_wire("float16", 0.6), in_wire("bfloat16", 0.6), in_wire("float32", 0.9)]


@dataclass
class Fake:
    """A network of which it is known what a picture takes, and by how much it errs, in each format."""

    plan: Plan = OWN.plan
    settings: Settings = Settings()  # noqa: RUF009 - frozen
    answered: list[str] = field(default_factory=list)

    def adopt(self, plan: Plan) -> int:
        self.plan = plan
        return 0

    def run(self, count: int) -> list[float]:
        self.answered += [self.plan.wire] * count
        return [0.3 if at_work(self.plan) == [0] else TAKES[self.plan.wire]] * count

    def errs(self, _: float) -> float:
        return ERRORS[self.plan.wire]


@given(st.sampled_from([0.0001, 0.005, 0.02, 0.05]))
def test_the_limit_is_obeyed(most):
    fake = Fake()
    tried = choose(fake, LISTED, cluster(1.0, 1.0, rate=1e9), fake.run, 1000, limit=Limit(most, fake.errs))
    chosen = fastest(tried).plan.wire
    fine = {wire for wire in WIRES if ERRORS.get(wire, 0) <= most}
    assert chosen == fake.plan.wire == min(fine, key=lambda wire: (TAKES[wire], ERRORS.get(wire, 0)))
    assert set(fake.answered) <= fine, "a plan that errs too much answers no picture of the user's"
    for each in tried:
        wire = each.plan.wire
        if wire not in fine:
            assert each.why == f"{wire}: errs by {100 * ERRORS[wire]:.2g} %, more than {100 * most:.2g} %"


def test_a_run_that_ends_while_errors_are_measured():
    fake = Fake()
    tried = choose(fake, LISTED, cluster(1.0, 1.0, rate=1e9), fake.run, 1000, limit=Limit(0.1, lambda _: None))
    assert [each.name for each in tried] == ["own"]


def test_what_is_tried_of_each_format():
    names = [each.name for each in shortlist(sorted(LISTED, key=lambda each: each.latency_s))]
    assert names == ["own", "int8", "float16", "bfloat16", "float32"]


@pytest.mark.parametrize("rate", [1e6, 1e9])
def test_formats_are_proposed_by_what_they_save(rate):
    """Over a slow link int8 is the fastest; what coding takes is more than what it saves on a fast one."""
    net = nn.Sequential(*[nn.Conv2d(16, 16, 3, padding=1) for _ in range(3)]).eval()
    graph, on = trace(net, (16, 24, 24)).layers, cluster(0.05, 0.05, rate=rate, alpha=1e-5)
    on = replace(on, devices=tuple(replace(device, weight_bytes_per_s=1e8) for device in on.devices))
    found = candidates(graph, on, wires=tuple(WIRES))
    assert found[0].plan.wire == ("int8" if rate < 1e8 else "float32")
    exact = candidates(graph, on)
    assert next(each for each in found if each.plan.wire == "float32").latency_s == exact[0].latency_s
    assert all(each.plan.wire == "float32" for each in exact)
    assert all(each.bytes_moved for each in found if each.plan.wire != "float32")
    plan = make_plan(graph, (1, 16, 24, 24), "kpm", 2)
    slow = [estimate(replace(plan, wire=wire), cluster(0.05, 0.05, rate=1e5)).latency_s for wire in ("float32", "int8")]
    assert slow[1] < 0.6 * slow[0]


def test_prices():
    on = cluster(1.0, 1.0, rate=1e6)
    for wire in WIRES.values():
        rate = priced(on, wire).links[0].beta_bytes_per_s
        assert rate == pytest.approx(1e6 * 4 / wire.item_bytes), "these devices code in no time"
    assert set(ENCODING) == set(DECODING) == set(WIRES) - {"float32"}
    assert smaller_formats(0.01) == ("float32", "float16")


@pytest.mark.parametrize("text", ["2", "0", "-1", "nan", "much", "101%"])
def test_no_error(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not an error above 0 and up to 1"):
        wire_error(text)
    assert wire_error("1%") == wire_error("0.01") == 0.01


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--scheme kpm --wire-error 0.01", "leave out what says how to split"),
        ("--scheme auto --wire int8 --wire-error 0.01", "--wire int8 names the format"),
        ("--scheme coedge --wire-error 1%", "leave out --scheme coedge"),
    ],
)
def test_a_run_that_chooses_no_format(words, told):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    arguments = parser.parse_args(words.split())
    with pytest.raises(UsageError, match=told):
        auto._check_named(arguments, 2) if arguments.scheme == "kpm" else auto._check(arguments)
