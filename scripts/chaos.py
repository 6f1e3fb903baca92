"""Kill ranks of a run that is kept going, at random moments by a seed, and see that every answer is there and right.

``python scripts/chaos.py --kills 10 --pictures 2000`` runs the digits over three ranks of this host, kills rank 0 ten
times (``--victims any``: a rank by chance), compares all answers with those of the unsplit model, and prints how long
it took to notice and to go on. Exit status 1 where an answer is missing, wrong or not in its place.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import IO

import torch

import mpiconv
from mpiconv.data.pictures import RandomPictures
from mpiconv.measure.answers import read_answers
from mpiconv.models import info_of
from mpiconv.study.answers import answers as answers_of

MODEL = "digits"
NEAR = 1e-5
LOOK_S = 0.01
NOTICED, WENT_ON = " pictures answered; restart ", "the next answer came after"


@dataclass
class Found:
    """What came of a run: its exit status, its lines, what it took after each kill, and what is wrong, if anything."""

    status: int
    out: str = ""
    lines: list[str] = field(default_factory=list)
    noticed_s: list[float] = field(default_factory=list)
    again_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def processes(variable: str, value: str, word: str) -> Iterator[int]:
    """Processes of this host that have a variable in their environment, and a word on their command line."""
    wanted = f"{variable}={value}".encode()
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):  # it may be over
            around = Path("/proc", name, "environ").read_bytes().split(b"\0")
            if wanted in around and word.encode() in Path("/proc", name, "cmdline").read_bytes():
                yield int(name)


def check(path: Path, pictures: int, seed: int) -> list[str]:
    """What is wrong with an answers file, compared with the unsplit model on all pictures; empty if nothing."""
    model = mpiconv.load_model(MODEL)
    info = info_of(model)
    made = RandomPictures(pictures, seed, info)
    with torch.inference_mode():
        outputs = torch.cat([model(made.load(i)[None]) for i in range(pictures)])
    wrong = []
    answers, size = read_answers(path)
    if len(answers) != pictures or size != path.stat().st_size:
        wrong.append(f"{len(answers)} answers in order for {pictures} pictures")
    for found, right in zip(answers, answers_of(outputs, 0, made, info), strict=False):
        if found["label"] != right["label"] or abs(found["score"] - right["score"]) > NEAR:
            wrong.append(f"picture {right['index']}: {found['label']} in place of {right['label']}")
    return wrong


def schedule(kills: int, pictures: int, ranks: int, victims: str, dice: random.Random) -> list[tuple[int, int]]:
    """After how many answers which rank is to die, in order; none so late that the run may end before."""
    when = sorted(dice.sample(range(1, pictures // 2), kills))
    return [(count, 0 if victims == "root" else dice.randrange(ranks)) for count in when]


def command(answers: Path, options: argparse.Namespace) -> list[str]:
    """The run that is kept going."""
    words = [
        "run",
        "--keep-going",
        "-n",
        options.ranks,
        "--max-restarts",
        2 * options.kills,
        "--model",
        MODEL,
        "--random",
    ]
    words += ["--repeats", options.pictures, "--seed", options.seed, "--scheme", "kpm", "--answers", answers, "--json"]
    return [sys.executable, "-m", "mpiconv", *map(str, words)]


def run(folder: Path, options: argparse.Namespace) -> Found:
    """One run with its kills."""
    answers = folder / "answers.jsonl"
    plan = schedule(options.kills, options.pictures, options.ranks, options.victims, random.Random(options.seed))
    found, killed_s = Found(0), list[float]()
    out = folder / "out.json"
    with (
        out.open("w") as stdout,
        subprocess.Popen(command(answers, options), stdout=stdout, stderr=subprocess.PIPE, text=True) as job,
    ):
        listener = threading.Thread(target=listen, args=(job.stderr, found, killed_s))
        listener.start()
        while job.poll() is None:
            done = len(killed_s)
            if done < len(plan) and len(found.again_s) == done and answered(answers) > plan[done][0]:
                for pid in processes("OMPI_COMM_WORLD_RANK", str(plan[done][1]), answers.name):
                    killed_s.append(monotonic())
                    os.kill(pid, signal.SIGKILL)
                    break
            sleep(LOOK_S)
        listener.join()
        found.status = job.wait()
    found.out = out.read_text()
    found.wrong = check(answers, options.pictures, options.seed)
    if len(killed_s) < len(plan):
        found.wrong.append(f"only {len(killed_s)} of {len(plan)} kills: the run was too short")
    if found.status:
        found.wrong.append(f"exit status {found.status}: {found.lines[-1:]}")
    elif json.loads(found.out)["restarts"] < len(killed_s):
        found.wrong.append(f"{json.loads(found.out)['restarts']} restarts after {len(killed_s)} kills")
    return found


def listen(stream: IO[str], found: Found, killed_s: list[float]) -> None:
    """Note what the supervisor says, and when."""
    for line in stream:
        now = monotonic()
        found.lines.append(line.rstrip())
        if NOTICED in line:
            found.noticed_s.append(now - killed_s[-1])
        if WENT_ON in line:
            found.again_s.append(now - killed_s[-1])


def answered(path: Path) -> int:
    """How many lines an answers file has."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--ranks", type=int, default=3, help="of the run (default: 3)")
    options.add_argument("--pictures", type=int, default=2000, help="to be answered (default: 2000)")
    options.add_argument("--kills", type=int, default=10, help="kill -9 so often (default: 10)")
    options.add_argument("--victims", choices=("root", "any"), default="root", help="who is killed (default: root)")
    options.add_argument("--seed", type=int, default=0, help="of pictures, moments and victims (default: 0)")
    return options


def main() -> int:
    """Run, and print a summary."""
    options = parser().parse_args()
    with TemporaryDirectory(prefix="mpiconv-chaos-") as folder:
        found = run(Path(folder), options)
    print("\n".join(found.lines))
    for what, times in (("noticed", found.noticed_s), ("next answer", found.again_s)):
        if times:
            print(f"{what:12} p50 {median(times):.2f} s, max {max(times):.2f} s after the kill ({len(times)} of them)")
    verdict = "; ".join(found.wrong[:5]) or "all answers right, in order"
    print(f"{options.pictures} pictures, seed {options.seed}: {verdict}")
    return bool(found.wrong)


if __name__ == "__main__":
    raise SystemExit(main())
