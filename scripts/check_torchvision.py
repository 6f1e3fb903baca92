"""Hold torchvision's classification models, split, against the unsplit ones: prints a table, writes what fails.

    pip install torchvision && python scripts/check_torchvision.py [--size 64] [NAME ...]

Every model is split by kpm, wpm, grid and uneven shares over 1 to 4 ranks, simulated in one process, where
what a rank was not sent is NaN. The weights are random, the statistics of batch normalisations those of the network's
own maps, so that the maps keep their size. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import sys
import time
import types
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mpiconv.errors import MpiconvError
from mpiconv.graph.trace import trace
from mpiconv.partition import make_plan
from tests.simulated import largest_error, run_split, sensible

CASES = (
    *(("kpm", [1.0] * ranks) for ranks in (1, 2, 3, 4)),
    *(("wpm", [1.0] * ranks) for ranks in (2, 3, 4)),
    ("grid", [1.0] * 4),
    ("kpm", [0.7, 0.2, 0.1]),
    ("wpm", [0.7, 0.2, 0.1]),
    ("kpm", [0.0, 1.0, 1.0]),
    ("wpm", [1.0, 0.0, 1.0]),
)
LEAST = {"inception_v3": 299}
FIXED = {"swin_v2": 256, "vit": 224, "maxvit": 224}
TOLERANCE = 1e-5


def import_torchvision() -> types.ModuleType:
    """Torchvision's models; also where its compiled operators, which no classifier uses, are for another torch."""
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("_meta_registrations"))
    import torchvision

    return torchvision


def check(name: str, size: int) -> tuple[str, str]:
    """A line of the table about one model, and why it failed if it did."""
    import torchvision

    begin = time.perf_counter()
    size = max(size, LEAST.get(name, 0))
    size = next((fixed for prefix, fixed in FIXED.items() if name.startswith(prefix)), size)
    torch.manual_seed(0)
    extra = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **extra).eval()
    picture = (3, size, size)
    sensible(model, picture)
    images = torch.randn(1, *picture, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = model(images)
    traced = trace(model, picture)
    worst, failed = 0.0, ""
    for scheme, shares in CASES:
        plan = make_plan(traced.graph, (1, *picture), scheme, len(shares), shares)
        with torch.inference_mode():
            got = run_split(model, plan, images, traced)
        error = largest_error(got, wanted)
        worst = max(worst, error)
        if not error <= TOLERANCE or int(got.argmax()) != int(wanted.argmax()):
            failed = failed or f"{scheme} {shares}: off by {error:.2g} of the largest output"
    units, alone = traced.graph.body, [unit for unit in traced.graph.body if unit.opaque]
    flops = sum(unit.flops for unit in traced.graph.units)
    split = 100 * (1 - sum(unit.flops for unit in traced.graph.units if unit.opaque) / max(flops, 1))
    seconds = time.perf_counter() - begin
    cells = [name, size, len(units), len(alone), f"{split:.1f}", f"{worst:.1e}", "FAILED" if failed else "passed"]
    print(f"{name} {seconds:.0f} s", file=sys.stderr)
    return "| " + " | ".join(map(str, cells)) + " |", failed


def main() -> int:
    """The table; exit status 1 if a model fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="models; all of torchvision's classification models if none is given")
    parser.add_argument("--size", type=int, default=64, help="rows and columns of the pictures (default 64)")
    arguments = parser.parse_args()
    torchvision = import_torchvision()
    names = arguments.names or torchvision.models.list_models(module=torchvision.models)
    print(f"torchvision {torchvision.__version__}, torch {torch.__version__}")
    print("| model | input | units | of them root alone | FLOPs split % | largest error | |")
    print("|---|---|---|---|---|---|---|")
    failures = {}
    for name in names:
        try:
            line, failed = check(name, arguments.size)
        except (MpiconvError, RuntimeError, ValueError) as error:
            line, failed = f"| {name} | | | | | | FAILED |", f"{type(error).__name__}: {str(error).splitlines()[0]}"
        print(line, flush=True)
        if failed:
            failures[name] = failed
    for name, failed in failures.items():
        print(f"{name}: {failed}", file=sys.stderr)
    print(f"\n{len(names) - len(failures)} of {len(names)} passed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
