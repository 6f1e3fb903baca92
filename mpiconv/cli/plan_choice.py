"""The work behind ``mpiconv plan --cluster``: what to do on these devices, what else there is, and what each takes."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from typing import Any

from mpiconv.cli.answer import Answer
from mpiconv.cli.memory_limit import asked_limits
from mpiconv.cli.networks import build_outline
from mpiconv.cli.notes import note
from mpiconv.cli.objectives import as_data, flow_cells, objective_of, pareto_rows
from mpiconv.cli.options import AUTO
from mpiconv.cli.wire_options import by_tolerance, check_wire_error, wires_of
from mpiconv.errors import UsageError
from mpiconv.graph.form import Graph
from mpiconv.graph.trace import trace
from mpiconv.partition.plan import at_work
from mpiconv.partition.schemes import check_scheme
from mpiconv.partition.turns import TURNS
from mpiconv.partition.wire import FLOAT32
from mpiconv.planner.advice import WORTH, alternatives, rate_now
from mpiconv.planner.baselines import BASELINES
from mpiconv.planner.candidates import candidates
from mpiconv.planner.cluster import Cluster
from mpiconv.planner.estimating import estimate
from mpiconv.planner.proposals import names_of, undivided
from mpiconv.text import align, to_json
from mpiconv.words import counted, did_you_mean, seconds

NOTES = (
    "pictures/s: with several batches in flight; <: at most, not simulated (--objective throughput does, or --pareto).",
    "most memory: on any one device. energy: above idle, of all devices together.",
    "first start: until the weights are where they are needed; later starts have them from the weight cache.",
)

MULTICAST = "What several devices need alike is taken to be sent once (multicast): estimated, no run sends so yet."

NOT_ASKED = ("scheme", "shares", "offload", "gather", "head", "ranks", "plan")


def choose(arguments: argparse.Namespace) -> int:
    """Print what to do and the alternatives, all of it estimated; save the best plan if that is asked for."""
    _check(arguments)
    named = arguments.scheme in BASELINES
    check_wire_error(arguments, chooses=not named, otherwise=f"leave out --scheme {arguments.scheme}")
    if named:
        return _show_baseline(arguments)
    answer = find(arguments)
    if arguments.save:
        answer.best.runs.save(arguments.save)
    if arguments.html:
        _write_page(answer, arguments.html)
    if arguments.explain:
        print("\n".join(explained(answer, arguments.explain)))
    elif arguments.json:
        print(to_json(as_dict(answer)))
    else:
        print("\n".join(_text(answer, arguments)))
    if arguments.html and not arguments.json:
        print(f"{arguments.html} shows it as a page", file=sys.stderr)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raise UsageError for an option that says what is chosen for the cluster."""
    if arguments.scheme is not None:
        check_scheme(arguments.scheme, (*BASELINES, AUTO, TURNS))
    for name in NOT_ASKED:
        if getattr(arguments, name) not in (None, AUTO, *BASELINES):
            raise UsageError(f"--cluster chooses a plan by itself: leave --{name} out, or leave --cluster out")


def _show_baseline(arguments: argparse.Namespace) -> int:
    """Print what a baseline takes and its plan, estimated; save the plan if that is asked for."""
    name = arguments.scheme
    for option in ("explain", "html", "objective", "pareto", "energy_limit"):
        if getattr(arguments, option):
            words = option.replace("_", "-")
            raise UsageError(f"--{words} is about the best plan: leave it out, or leave out --scheme {name}")
    graph, cluster, batch = _asked(arguments)
    plan = replace(BASELINES[name](graph, cluster, batch), wire=arguments.wire or FLOAT32.name)
    takes = estimate(plan, cluster).latency_s
    if arguments.save:
        plan.save(arguments.save)
    if arguments.json:
        found = {"estimated": True, "cluster": str(arguments.cluster), "best": name, "latency_s": takes}
        print(to_json({**found, "plan": plan.to_dict()}))
        return 0
    _, alone = next(undivided(graph, cluster, batch))
    print(
        f"{name}: over {counted(len(at_work(plan)), 'device')}, {seconds(takes)} a "
        f"{'picture' if batch == 1 else 'batch'}; {names_of(cluster)[0]} alone takes "
        f"{seconds(estimate(alone, cluster).latency_s)}."
    )
    about = f"\n{MULTICAST}" if cluster.medium == "multicast" else ""
    print(f"Estimated from {arguments.cluster}, not measured.{about}\n\n{plan}\n")
    print("\n".join(_next(arguments, cluster, "it")))
    return 0


def _asked(arguments: argparse.Namespace) -> tuple[Graph, Cluster, int]:
    """The network, the cluster with the device first that has the pictures, and their number."""
    cluster = Cluster.load(arguments.cluster)
    if arguments.root:
        cluster = cluster.rooted_at(_device(cluster, arguments.root, arguments.cluster))
    model, info = build_outline(arguments)
    batch = arguments.batch or 1
    return trace(model, info.input_shape, batch=batch).layers, cluster, batch


def find(arguments: argparse.Namespace) -> Answer:
    """Look for plans for the network and the cluster that the options name."""
    graph, cluster, batch = _asked(arguments)
    limits, objective = asked_limits(arguments, len(cluster.devices)), objective_of(arguments)
    wires = wires_of(arguments, measured=False)
    found = candidates(
        graph,
        cluster,
        batch,
        memory_limits=limits,
        energy_limit_j=arguments.energy_limit or math.inf,
        objective=objective,
        front=arguments.pareto,
        wires=wires,
        tell=note,
    )
    about_wires = by_tolerance(arguments, wires)
    return Answer(arguments.cluster, graph, cluster, found, batch, objective, arguments.pareto, about_wires)


def _write_page(answer: Answer, path: str) -> None:
    """The answer as a page of its own."""
    from mpiconv.study.plan_page import write_plan_page

    units = answer.best.plan.graph.unit_names
    plans, per_unit = rows_of(answer), unit_rows(answer)
    words = [sentence(answer), *(advice(answer) if answer.timed else [])]
    title = f"{answer.graph.model} on {answer.path}"
    stamps, names = answer.best.timeline.stamps_s, names_of(answer.cluster)
    best = pareto_rows(answer.pareto, answer.cluster, names)
    write_plan_page(path, title, words, plans, per_unit, stamps, units, names, best)


def unit_rows(answer: Answer) -> list[dict[str, str]]:
    """Unit by unit, which part of it each device computes under the best plan, and when the last is done."""
    plan, stamps, names = answer.best.plan, answer.best.timeline.stamps_s, names_of(answer.cluster)
    rows = []
    for index, unit in enumerate(plan.graph.units):
        whole = unit.flops or 1
        at = [rank for rank in range(plan.ranks) if plan.owned[index][rank]]
        parts = [f"{names[rank]} {100 * plan.flops(index, rank) / plan.batch / whole:.0f} %" for rank in at]
        busy = stamps[:, index, 2] - stamps[:, index, 1]
        rows.append(
            {
                "unit": unit.name,
                "by": plan.schemes[index] if index < len(plan.schemes) else "root",
                "computed on (part of the FLOPs)": ", ".join(parts) if len(parts) <= 6 else f"{len(parts)} devices",
                "computing": seconds(float(busy.max())),
                "done after": seconds(float(stamps[:, index, 2].max())),
            }
        )
    return rows


def _device(cluster: Cluster, host: str, path: str) -> int:
    names = names_of(cluster)
    if host in names:
        return names.index(host)
    if host.isdecimal() and int(host) < len(names):
        return int(host)
    raise UsageError(f"--root {host}: {path} has the devices {', '.join(names)}{did_you_mean(host, names)}")


def _text(answer: Answer, arguments: argparse.Namespace) -> list[str]:
    told = f"Estimated from {answer.path}, not measured."
    if answer.objective.name == "p90":
        told += " Nothing is known of scatter before a run: the 90th percentile is taken to be the latency."
    lines = [sentence(answer), told]
    lines += [f"{answer.about_wires}."] if answer.about_wires else []
    lines += [MULTICAST] if answer.cluster.medium == "multicast" else []
    lines += ["", *table(answer), *NOTES, ""]
    if answer.pareto:
        rows = pareto_rows(answer.pareto, answer.cluster, names_of(answer.cluster))
        lines += [*align([list(rows[0]), *(list(row.values()) for row in rows)]), ""]
    more = [*advice(answer), ""] if answer.timed else []
    return [*lines, *more, *_next(arguments, answer.cluster, "the first", answer.in_flight)]


def _next(arguments: argparse.Namespace, cluster: Cluster, what: str, options: str = "") -> list[str]:
    """How the plan is run, or saved."""
    if not arguments.save:
        return [f"--save FILE.json writes {what} as a plan, for mpiconv run --plan FILE.json"]
    words = f"mpirun --hostfile FILE -n {len(cluster.devices)} mpiconv run --model {arguments.model}"
    hosts = ", ".join(dict.fromkeys(device.host for device in cluster.devices))
    return [f"{words} --plan {arguments.save}{options} --check", f"    runs it; hosts in FILE, in this order: {hosts}"]


def sentence(answer: Answer) -> str:
    """What to do and what it gains over device 0 alone, in a few sentences."""
    best, own, names = answer.best, answer.own, names_of(answer.cluster)
    takes = f"{answer.said(best)} with{answer.in_flight}" if answer.in_flight else answer.said(best)
    gain = ""
    if own is not None and own is not best:
        gain = f", {answer.times_better(own):.1f} x {answer.objective.gain} {names[0]} alone"
    if best.divided:
        what = f"Split it: {best.name}, over {counted(len(at_work(best.plan)), 'device')}, {takes}{gain}."
    else:
        split = next((each for each in answer.found if each.divided), None)
        words = ("fastest", "takes") if answer.timed else ("best", "comes to")
        other = f" The {words[0]} split, {split.name}, {words[1]} {answer.said(split)}." if split is not None else ""
        pipeline = answer.objective.streams and not best.turns and len(at_work(best.plan)) > 1
        how = "Make it a pipeline:" if pipeline else "Do not split:" if best.turns else "Do not split: run it"
        what = f"{how} {best.name}, {takes}{gain}.{other}"
    return f"{what} {_break_even(answer) if answer.timed else ''}".rstrip()


def _break_even(answer: Answer) -> str:
    """From which link rate on splitting pays, in a sentence."""
    found, now = answer.break_even, rate_now(answer.cluster)
    if found is None:
        return ""
    if found.factor is None:
        return "Splitting pays at any link rate." if found.pays_now else "Splitting pays at no link rate."
    to = "down to" if found.pays_now else "from"
    if now is None:
        way = f"{1 / found.factor:.3g} x as slow" if found.pays_now else f"{found.factor:.3g} x as fast"
        return f"Splitting pays {to} links {way} as they are."
    return f"Splitting pays {to} {found.factor * now / 1e6:.2g} MB/s (now {now / 1e6:.3g})."


def advice(answer: Answer) -> list[str]:
    """What would help, and how far from the best possible the best is."""
    best_s, bound_s = answer.best.latency_s, answer.lower_bound_s
    (_, now_s), *changes = answer.helps
    told = [f"{what} {seconds(then)} ({now_s / then:.2f} x faster)" for what, then in changes if now_s / then >= WORTH]
    little = [what for what, then in changes if now_s / then < WORTH]
    rest = f"{', '.join(little)}: less than {100 * (WORTH - 1):.0f} %" if little else ""
    return [
        f"Would help: {'; '.join([*told, rest] if rest else told)}.",
        f"Lower bound: {seconds(bound_s)}, all devices at work all the time and nothing sent; the best plan takes "
        f"{best_s / bound_s:.2f} x that.",
    ]


def rows_of(answer: Answer) -> list[dict[str, str]]:
    """The table of the plans, a row for each: column by column what is shown."""
    rows, names = [], names_of(answer.cluster)
    for each in answer.shown:
        energy = each.joules(answer.cluster)
        rows.append(
            {
                "plan": each.name,
                "latency": seconds(each.latency_s),
                **flow_cells(each, answer.cluster, streams=answer.streams),
                "moved MB": f"{each.bytes_moved / 1e6:.2f}",
                "most memory MB": f"{each.most_memory[1] / 1e6:.0f} on {names[each.most_memory[0]]}",
                "energy J": "-" if energy is None else f"{sum(energy):.3g}",
                "first start": seconds(each.first_start_s(answer.cluster)),
            }
        )
    return rows


def table(answer: Answer) -> list[str]:
    """The fastest plans, and every one that leaves all to one device; the column of energy only where it is known."""
    rows = rows_of(answer)
    columns = [key for key in rows[0] if key != "energy J" or any(row[key] != "-" for row in rows)]
    return align([columns, *([row[key] for key in columns] for row in rows)])


def explained(answer: Answer, unit: str) -> list[str]:
    """Who computes a unit under the best plan, and what the other ways to split it would take there."""
    plan = answer.best.plan
    names = plan.graph.unit_names[: len(plan.boxes)]
    if unit not in names:
        raise UsageError(f"--explain {unit}: the units are {', '.join(names)}{did_you_mean(unit, names)}")
    index, devices = names.index(unit), names_of(answer.cluster)
    parts = [f"{devices[rank]} {box}" for rank, box in enumerate(plan.boxes[index]) if box]
    rows = [["way", "computing", "getting its input", "together", ""]]
    rows += [
        [
            each.name,
            seconds(each.compute_s),
            seconds(each.exchange_s),
            seconds(each.compute_s + each.exchange_s),
            "<- the plan" if each.chosen else "",
        ]
        for each in alternatives(plan, answer.cluster, index)
    ]
    return [
        f"{unit} under the best plan, {answer.best.name}: channels, rows and columns of its output on each device",
        *(f"    {part}" for part in parts),
        "",
        "Ways to split it, estimated for this unit by itself after what the plan does before it. The plan is the best",
        "for all units together: a way that is quicker here may cost more behind it.",
        "",
        *(line.rstrip() for line in align(rows)),
    ]


def as_dict(answer: Answer) -> dict[str, Any]:
    """What ``--json`` prints."""
    found, now = answer.break_even, rate_now(answer.cluster)
    return {
        "estimated": True,
        "cluster": str(answer.path),
        "devices": names_of(answer.cluster),
        "sentence": sentence(answer),
        "objective": answer.objective.name,
        "best": answer.best.name,
        "pareto": [each.name for each in answer.pareto],
        "lower_bound_s": answer.lower_bound_s,
        "break_even": None
        if found is None
        else {
            "pays_now": found.pays_now,
            "factor": found.factor,
            "bytes_per_s": found.factor * now if found.factor and now else None,
        },
        "helps": [{"what": what, "latency_s": then} for what, then in answer.helps],
        "candidates": [
            {
                "name": each.name,
                "wire": each.plan.wire,
                "latency_s": each.latency_s,
                "bytes_moved": each.bytes_moved,
                "weight_bytes": each.weight_bytes,
                "memory_bytes": [one.peak_bytes for one in each.memory],
                **as_data(each, answer.cluster),
                "first_start_s": each.first_start_s(answer.cluster),
                "splits": each.divided,
                "devices": at_work(each.runs),
            }
            for each in answer.found
        ],
        "plan": answer.best.runs.to_dict(),
    }
