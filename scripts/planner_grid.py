"""Is the planner right? On emulated labs auto is measured against one device, the schemes and the literature's splits.

A cell of the grid is a lab, a link rate, a medium and a network. In one job all plans are adopted in turn, round after
round, so that what else the machine does hits all alike; their weights come from a file that every device has.

  python scripts/planner_grid.py             all cells, up to three hours; those in results/planner_grid.jsonl are there
  python scripts/planner_grid.py --quick     a few cells, one round each, into results/quick
  python scripts/planner_grid.py --only equal-4,12.5,switch,alexnet
  python scripts/planner_grid.py --papers    VGG16 on as many emulated devices and about such links as papers have Pis
  python scripts/planner_grid.py --report    no runs: the table on stdout, and the figure docs/planner.png

Needs a machine that can bring up emulated labs (root, Linux, tc).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

LABS = {
    "equal-2": ["--devices", "2", "--pace", "8"],
    "equal-3": ["--devices", "3", "--pace", "8"],
    "equal-4": ["--devices", "4", "--pace", "8"],
    "equal-8": ["--devices", "8", "--pace", "8"],
    "pi4-nx-laptop": ["hostfiles/labs/pi4-nx-laptop.toml"],
}
RATES, MEDIA = ("12.5", "100", "1.25"), ("switch", "shared")
NETWORKS = ("alexnet", "vgg11", "resnet18", "mobilenet_v2")
QUICK = [("equal-2", "100", "switch", "digits"), ("pi4-nx-laptop", "12.5", "shared", "digits")]
PAPERS = [("equal-3", "100", "switch", "vgg16"), ("equal-8", "12.5", "switch", "vgg16"),
          ("equal-8", "6.25", "shared", "vgg16")]  # fmt: skip
"""HALP: three Pi 4, Gigabit; AOFL and PICO: eight Pis on Wi-Fi, here once a switch and once a medium of 50 Mbit/s."""

SCHEMES = ("kpm", "wpm", "grid", "fused")

ROUNDS, TIMED, HOPELESS = 3, 2, 3.0
"""Rounds, pictures of each plan in a round, and how many times the best one's time is not measured again."""

FRAMES = 60
"""Of how many pictures the trials of auto take their part."""

PATIENCE_S = 900

Cell = tuple[str, str, str, str]


def main() -> int:
    """Run the cells that are missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few cells of the digits network, one round each")
    parser.add_argument("--papers", action="store_true", help="VGG16 where papers say what they gained")
    parser.add_argument("--only", metavar="LAB,RATE,MEDIUM,NETWORK", help="cells that have these words")
    parser.add_argument("--report", action="store_true", help="run nothing, print the table of what was measured")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="default: results/planner_grid.jsonl")
    parser.add_argument(
        "--limit", type=float, metavar="S", default=math.inf, help="start no cell after so many seconds"
    )
    parser.add_argument("--cell", nargs=2, metavar=("WEIGHTS", "NETWORK"), help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds in which all plans are timed (default: 3)")
    arguments = parser.parse_args()
    if arguments.cell:
        return measure(*arguments.cell, arguments.rounds)
    out = arguments.out or ROOT / "results" / ("quick/planner_grid.jsonl" if arguments.quick else "planner_grid.jsonl")
    out.parent.mkdir(parents=True, exist_ok=True)
    failed = False if arguments.report else run(wanted(arguments), out, arguments)
    found = read(out)
    print("\n".join(table(found)))
    if found:
        whole = out == ROOT / "results" / "planner_grid.jsonl"
        draw(found, ROOT / "docs" / "planner.png" if whole else out.with_suffix(".png"))
    return int(failed)


def wanted(arguments: argparse.Namespace) -> list[Cell]:
    """The cells to measure, those first that say most: every lab before every rate and medium."""
    if arguments.papers:
        return PAPERS
    cells: list[Cell] = (
        QUICK
        if arguments.quick
        else [
            (lab, rate, medium, network)
            for medium, rate, network, lab in product(MEDIA, RATES, NETWORKS, LABS)
            if lab != "equal-3"
        ]
    )
    words = arguments.only.split(",") if arguments.only else []
    return [cell for cell in cells if all(word in cell for word in words)]


def run(cells: Sequence[Cell], out: Path, arguments: argparse.Namespace) -> bool:
    """Measure the cells that the file has not; returns whether one failed."""
    done = {tuple(row["cell"]) for row in read(out)}
    begin, failed = perf_counter(), False
    rounds = 1 if arguments.quick else arguments.rounds
    with tempfile.TemporaryDirectory() as folder:
        for number, cell in enumerate(cells, 1):
            if cell in done or perf_counter() - begin > arguments.limit:
                continue
            print(f"== {perf_counter() - begin:5.0f} s  {number} of {len(cells)}: {', '.join(cell)}", flush=True)
            row = on_lab(cell, Path(folder), rounds)
            if row is None:
                failed = True
                continue
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"   {summary(row)}", flush=True)
    return failed


def on_lab(cell: Cell, folder: Path, rounds: int) -> dict[str, Any] | None:
    """Bring the lab of a cell up, measure there, take it down; None where that failed."""
    lab, rate, medium, network = cell
    name = f"grid{os.getpid() % 100000}"
    testbed = [sys.executable, str(ROOT / "scripts" / "testbed.py"), "--name", name]
    try:
        subprocess.run([*testbed, "up", *LABS[lab], "--rate", rate, "--medium", medium], check=True, cwd=ROOT,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        script, weights = str(Path(__file__).resolve()), str(weights_of(network, folder))
        words = [sys.executable, script, "--cell", weights, network, "--rounds", str(rounds)]
        begin = perf_counter()
        ran = subprocess.run([*testbed, "run", "--timeout", str(PATIENCE_S), "--", *words], cwd=ROOT,
                             stdout=subprocess.PIPE, text=True, check=False)  # fmt: skip
    finally:
        subprocess.run([*testbed, "down"], check=False, cwd=ROOT, stdout=subprocess.DEVNULL)
    lines = [line for line in ran.stdout.splitlines() if line.startswith("{")]
    if ran.returncode or not lines:
        print(f"   failed with exit status {ran.returncode}", file=sys.stderr)
        return None
    return {"cell": cell, "seconds": round(perf_counter() - begin, 1), **json.loads(lines[-1])}


def weights_of(network: str, folder: Path) -> Path:
    """A file with random weights of a network, made once."""
    path = folder / f"{network}.safetensors"
    if not path.exists():
        from safetensors.torch import save_file

        import mpiconv

        model = mpiconv.load_model(network, num_classes=10)
        save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, str(path))
    return path


def measure(weights: str, network: str, rounds: int) -> int:
    """Under mpirun: find the plan of auto, then time all plans in turn; rank 0 prints a line of JSON. Collective."""
    import torch

    from mpiconv.cli.auto import as_list, find_cluster
    from mpiconv.cli.networks import build_graph
    from mpiconv.cli.options import pace_of, settings_of
    from mpiconv.cli.run import add_arguments
    from mpiconv.cli.setup import prepare
    from mpiconv.job.control import on_root
    from mpiconv.job.world import join_world, leave
    from mpiconv.runtime.building import distribute
    from mpiconv.runtime.trials import choose, fastest
    from mpiconv.runtime.weights import readers_of

    torch.set_num_threads(1)
    team = join_world()
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["--model", network, "--weights", weights, "--scheme", "auto", "--repeats", str(FRAMES), "--quiet"]
    options = parser.parse_args([*words, "--weights-on", "every", "--no-selfcheck", "--in-flight", "1"])
    pace = pace_of(options, team.rank, team.size)
    cluster = find_cluster(options, team, range(team.size), pace, lambda: build_graph(options))
    job = on_root(team, lambda: prepare(options, team.size, cluster))
    settings = replace(settings_of(options, pace), weights_file=weights, readers=readers_of(team, weights))
    net = distribute(job and job.model, job and job.plan, team, settings)
    if job is None or cluster is None:
        net.follow()
        leave(team)
        return 0
    picture = job.batch(0)

    def frames(count: int) -> list[float]:
        taken = []
        for _ in range(count):
            begin = perf_counter()
            net(picture)
            taken.append((perf_counter() - begin) / options.dilation)
        return taken

    frames(2)
    tried = choose(net, job.trials, cluster, frames, FRAMES)
    best = fastest(tried)
    plans = dict(contenders(job.plan.graph, cluster))
    times = timed(net, {**plans, "auto": best.plan}, frames, rounds)
    from mpiconv.planner.estimating import estimate

    found = {
        name: {"measured_s": times[name], "estimated_s": estimate(plan, cluster).latency_s}
        for name, plan in {**plans, "auto": best.plan}.items()
    }
    print(json.dumps({"plans": found, "chosen": best.name, "tried": as_list(tried)}), flush=True)
    net.dismiss()
    leave(team)
    return 0


def contenders(graph: Any, cluster: Any) -> Iterator[tuple[str, Any]]:
    """All that auto is compared with: one device of each kind, the schemes by speed, the literature's."""
    from mpiconv.planner.proposals import named, published, undivided

    yield from ((name, plan) for name, plan in undivided(graph, cluster, 1) if name.startswith("all on"))
    chosen = ((name.split(",")[0], plan) for name, plan in named(graph, cluster, 1) if "head" not in name)
    yield from ((scheme, plan) for scheme, plan in chosen if scheme in SCHEMES)
    yield from published(graph, cluster, 1)


def timed(net: Any, plans: dict[str, Any], frames: Any, rounds: int) -> dict[str, list[float]]:
    """The s that pictures take by each plan, round after round; plans that do the same share their times."""
    from mpiconv.partition.plan import same_work

    first = {name: next(n for n in plans if same_work(plans[n], plan)) for name, plan in plans.items()}
    times: dict[str, list[float]] = {name: [] for name in dict.fromkeys(first.values())}
    for _ in range(rounds):
        for name, taken in times.items():
            best = min((median(each) for each in times.values() if each), default=math.inf)
            if taken and median(taken) > HOPELESS * best:
                continue
            net.adopt(plans[name])
            frames(1)
            seconds = frames(1)
            taken.extend(seconds + (frames(TIMED - 1) if seconds[0] < HOPELESS * best else []))
    return {name: times[other] for name, other in first.items()}


def read(path: Path) -> list[dict[str, Any]]:
    """What was measured so far; of a cell that was measured again the last."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = {tuple(row["cell"]): row for row in map(json.loads, lines)}
    return list(rows.values())


def best_of(row: dict[str, Any], *, single: bool = False) -> tuple[str, float]:
    """The fastest plan of a cell but auto, of those on one device alone if asked, and its median s."""
    taken = {
        name: median(plan["measured_s"])
        for name, plan in row["plans"].items()
        if name != "auto" and (name.startswith("all on") or not single)
    }
    name = min(taken, key=lambda each: taken[each])
    return name, taken[name]


def summary(row: dict[str, Any]) -> str:
    """A cell in a line."""
    auto, (name, best), (_, single) = (
        median(row["plans"]["auto"]["measured_s"]),
        best_of(row),
        best_of(row, single=True),
    )
    return (
        f"auto {1e3 * auto:.0f} ms ({row['chosen']}), best other {name} {1e3 * best:.0f} ms, auto / best "
        f"{auto / best:.2f}, auto / one device {auto / single:.2f}, predicted / measured "
        f"{row['plans']['auto']['estimated_s'] / auto:.2f}"
    )


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The cells as a table in Markdown, and what they come to in sentences."""
    if not rows:
        return ["nothing was measured yet"]
    columns = ["lab", "MB/s", "medium", "network", "one device ms", "best other", "ms", "auto", "ms"]
    columns += ["auto / best", "predicted"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    ratios, singles, errors = [], [], []
    for row in sorted(rows, key=lambda each: each["cell"]):
        auto, (name, best), (_, single) = (
            median(row["plans"]["auto"]["measured_s"]),
            best_of(row),
            best_of(row, single=True),
        )
        predicted = row["plans"]["auto"]["estimated_s"]
        ratios.append(auto / best)
        singles.append(auto / single)
        errors.append(predicted / auto - 1)
        cells = [*row["cell"], f"{1e3 * single:.0f}", name, f"{1e3 * best:.0f}", row["chosen"], f"{1e3 * auto:.0f}",
                 f"{auto / best:.2f}", f"{100 * errors[-1]:+.0f} %"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    count = len(rows)
    lines += [
        "",
        f"{count} cells: auto at most 1.05 x the best other in {sum(r <= 1.05 for r in ratios)}, 1.2 x faster in "
        f"{sum(r <= 1 / 1.2 for r in ratios)}, at most 1.02 x the best single device in "
        f"{sum(r <= 1.02 for r in singles)}; predicted within 15 % in {sum(abs(e) <= 0.15 for e in errors)}.",
    ]
    return lines


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A figure: how many times faster than one device auto is, and the best of the others, cell by cell."""
    from mpiconv.study.style import colour, pyplot, save

    rows = sorted(rows, key=lambda each: each["cell"])
    with pyplot() as plt:
        figure, axes = plt.subplots(figsize=(8.0, 1.2 + 0.2 * len(rows)))
        for place, row in enumerate(rows):
            single = best_of(row, single=True)[1]
            axes.plot(single / best_of(row)[1], place, "o", color=colour(1), label="best other" if place == 0 else None)
            auto = median(row["plans"]["auto"]["measured_s"])
            axes.plot(single / auto, place, "D", color=colour(0), label="auto" if place == 0 else None)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_yticks(range(len(rows)), [" ".join(row["cell"]) for row in rows], fontsize="x-small")
        axes.invert_yaxis()
        axes.set_xlabel("times faster than the best single device, measured on emulated devices")
        axes.legend()
        save(figure, path)


if __name__ == "__main__":
    sys.exit(main())
