"""Kill, crash, stop and cut off ranks at random moments by a seed, and see that every answer is there and right.

  python scripts/chaos.py                  60 runs of 1000 pictures on 4 ranks of this host, up to three deaths in each
  python scripts/chaos.py --minutes 30     as many as fit, the next seeds
  python scripts/chaos.py --mode root      rank 0 dies ten times in 2000 pictures, under mpiconv run --keep-going
  python scripts/chaos.py --mode lab       20 runs on four emulated hosts: a link down, a daemon killed, a host frozen

Compares all answers with those of the unsplit model and prints how long each phase took. Exit status 1 where an answer
is missing, wrong or not in its place. Needs an mpirun that outlives ranks (Open MPI 5), the lab root and Linux.
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
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import monotonic, sleep, time
from typing import IO, Any

import torch

import mpiconv
from mpiconv.data.pictures import RandomPictures
from mpiconv.measure.answers import read_answers
from mpiconv.models import info_of
from mpiconv.study.answers import answers as answers_of

MODEL, LAB, MARK = "digits", "chaos", "MPICONV_CHAOS"
NEAR = 1e-5
LOOK_S, PATIENCE_S = 0.002, 180.0
SOON_S = 0.03
"""Within this time a second death comes during the recovery from the first."""

NOTICED, WENT_ON = " pictures answered; restart ", "the next answer came after"
PHASES = ("noticed", "agree", "plan", "weights", "ready", "next answer")
SIGNALS = ("SIGKILL", "SIGSEGV", "SIGSTOP")
HOST_FAULTS = ("link", "daemon", "freeze")
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Death:
    """What happens to a rank: ``how``, once so many answers are there, or ``soon`` after the death before it."""

    rank: int
    how: str
    after: int
    soon: bool = False


@dataclass(frozen=True)
class Schedule:
    """A run and its deaths."""

    words: tuple[str, ...]
    deaths: tuple[Death, ...]

    def __str__(self) -> str:
        told = (f"{d.how} of rank {d.rank} {'soon' if d.soon else f'after {d.after}'}" for d in self.deaths)
        return f"{' '.join(self.words)}: {', '.join(told)}"


@dataclass
class Found:
    """What came of a run: its exit status, its lines, what it took after each death in s, what is wrong if anything."""

    status: int | None = 0
    out: str = ""
    lines: list[str] = field(default_factory=list)
    took: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PHASES})
    wrong: list[str] = field(default_factory=list)
    restarts: int = 0


def processes(variable: str, value: str, word: str) -> Iterator[int]:
    """Processes of this host that have a variable in their environment, and a word on their command line."""
    wanted = f"{variable}={value}".encode()
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):  # it may be over
            around = Path("/proc", name, "environ").read_bytes().split(b"\0")
            if wanted in around and word.encode() in Path("/proc", name, "cmdline").read_bytes():
                yield int(name)


def of_rank(rank: int, word: str) -> int | None:
    """The process of a rank that has a word on its command line."""
    found = (pid for pid in processes("PMIX_RANK", str(rank), word) if "--keep-going" not in words_of(pid))
    return next(found, None)


def words_of(pid: int) -> str:
    """A process's command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    except OSError:
        return ""


@cache
def right_answers(pictures: int, seed: int) -> list[dict[str, Any]]:
    """The unsplit model's, of random pictures."""
    model = mpiconv.load_model(MODEL)
    info = info_of(model)
    made = RandomPictures(pictures, seed, info)
    with torch.inference_mode():
        outputs = torch.cat([model(made.load(i)[None]) for i in range(pictures)])
    return answers_of(outputs, 0, made, info)


def check(path: Path, pictures: int, seed: int) -> list[str]:
    """What is wrong with an answers file, compared with the unsplit model on all pictures; empty if nothing."""
    if not path.exists():
        return ["no answers"]
    wrong = []
    answers, size = read_answers(path)
    if len(answers) != pictures or size != path.stat().st_size:
        wrong.append(f"{len(answers)} answers in order for {pictures} pictures")
    for found, right in zip(answers, right_answers(pictures, seed), strict=False):
        if found["label"] != right["label"] or abs(found["score"] - right["score"]) > NEAR:
            wrong.append(f"picture {right['index']}: {found['label']} in place of {right['label']}")
    return wrong


def schedule(mode: str, seed: int, pictures: int, ranks: int, deaths: int) -> Schedule:
    """The run of a seed: in a third of those with several deaths the second comes during a recovery."""
    dice = random.Random(seed)
    if mode == "root":
        when = sorted(dice.sample(range(1, pictures // 2), deaths))
        return Schedule(("--scheme", "kpm"), tuple(Death(0, "SIGKILL", count) for count in when))
    words = ("--scheme", dice.choice(("kpm", "wpm", "auto")), "--in-flight", dice.choice("13"))
    victims = dice.sample(range(1, ranks), 1 if mode == "lab" else dice.randint(1, min(deaths, ranks - 1)))
    faults = HOST_FAULTS if mode == "lab" else SIGNALS
    when = sorted(dice.randrange(1, pictures * 3 // 4) for _ in victims)
    soon = dice.random() < 1 / 2
    if mode == "inside":
        words += ("--same-host", dice.choice(("auto", "messages")))
    pairs = enumerate(zip(victims, when, strict=True))
    return Schedule(words, tuple(Death(r, dice.choice(faults), at, soon and i == 1) for i, (r, at) in pairs))


def command(mode: str, words: Sequence[str], answers: Path, options: argparse.Namespace, seed: int) -> list[str]:
    """The command line of a run."""
    python = [sys.executable, "-m", "mpiconv", "run"]
    start = {
        "inside": ["mpirun", "--with-ft", "ulfm", "-n", str(options.ranks), *python],
        "root": [*python, "--keep-going", "-n", str(options.ranks), "--max-restarts", "1000"],
        "lab": [*testbed("run"), "--keep-going", "--", *python, "--max-restarts", "1000"],
    }[mode]
    own = ["--model", MODEL, "--random", "--repeats", options.pictures, "--seed", seed, "--answers", answers, "--json"]
    return [*start, *map(str, own), *words]


def testbed(*words: str) -> list[str]:
    """The command that handles the lab."""
    return [sys.executable, str(ROOT / "scripts" / "testbed.py"), "--name", LAB, *words]


def happen(death: Death, word: str) -> bool:
    """Do to a rank, or its host, what is to happen; whether it was there."""
    device = f"edge{death.rank + 1}"
    if death.how == "link":
        return subprocess.run(
            ["ip", "-n", f"mpiconv-{LAB}-{device}", "link", "set", "eth0", "down"], check=False
        ).returncode == 0  # fmt: skip
    pid = of_rank(death.rank, word)
    if pid is None:
        return False
    if death.how == "daemon":
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    number = signal.SIGKILL if death.how == "daemon" else getattr(signal, death.how.replace("freeze", "SIGSTOP"))
    pids = [pid] if death.how != "freeze" else [pid, int(Path(f"/proc/{pid}/stat").read_text().split()[3])]
    for each in pids[::-1]:
        with suppress(ProcessLookupError):
            os.kill(each, number)
    return True


def run(folder: Path, mode: str, seed: int, options: argparse.Namespace) -> Found:
    """One run with its deaths."""
    plan = schedule(mode, seed, options.pictures, options.ranks, options.deaths)
    answers, found = folder / f"answers-{mode}-{seed}.jsonl", Found()
    died_s, counts = list[float](), list[tuple[float, int]]()
    out = folder / "out.json"
    with (
        out.open("w") as stdout,
        subprocess.Popen(
            command(mode, plan.words, answers, options, seed), stdout=stdout, stderr=subprocess.PIPE, text=True,
            env={**os.environ, MARK: answers.name}, cwd=ROOT,
        ) as job,
    ):  # fmt: skip
        listener = threading.Thread(target=listen, args=(job.stderr, found, died_s))
        listener.start()
        end_s = monotonic() + options.patience
        left = list(plan.deaths)
        while job.poll() is None and monotonic() < end_s:
            count = answered(answers)
            if not counts or count != counts[-1][1]:
                counts.append((time(), count))
            if left and _due(left[0], count, died_s, found, mode) and happen(left[0], answers.name):
                died_s.append(time())
                left.pop(0)
            sleep(LOOK_S)
        found.status = job.poll()
        if found.status is None:
            job.terminate()
            with suppress(subprocess.TimeoutExpired):
                job.wait(5)
        for pid in processes(MARK, answers.name, ""):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        listener.join()
    found.out = out.read_text()
    _judge(found, plan, died_s, counts, check(answers, options.pictures, seed))
    return found


def _due(death: Death, count: int, died_s: Sequence[float], found: Found, mode: str) -> bool:
    if mode == "root" and len(found.took["next answer"]) < len(died_s):
        return False
    return time() - died_s[-1] < SOON_S if death.soon and died_s else count > death.after


def _judge(
    found: Found, plan: Schedule, died_s: Sequence[float], counts: Sequence[tuple[float, int]], wrong: list[str]
) -> None:
    """Note what is wrong with a run, and what its losses took."""
    found.wrong += wrong
    if len(died_s) < len(plan.deaths):
        found.wrong.append(f"only {len(died_s)} of {len(plan.deaths)} deaths: the run was too short")
    if found.status != 0:
        how = "it did not end" if found.status is None else f"exit status {found.status}"
        found.wrong.append(f"{how}: {found.lines[-3:]}")
        return
    told = json.loads(found.out)
    found.restarts = told.get("restarts") or 0
    for event in told.get("events", ()):
        if event["kind"] == "loss":
            died = max((when for when in died_s if when <= event["noticed"] + SOON_S), default=event["noticed"])
            found.took["noticed"].append(max(event["noticed"] - died, 0.0))
            for name in PHASES[1:-1]:
                found.took[name].append(event[f"{name}_s"])
            after = [when for when, count in counts if count > event["picture"]]
            found.took["next answer"] += [after[0] - died] if after else []


def listen(stream: IO[str], found: Found, died_s: Sequence[float]) -> None:
    """Note what is said, and when a supervisor says that it goes on."""
    for line in stream:
        now = time()
        found.lines.append(line.rstrip())
        if NOTICED in line and died_s:
            found.took["noticed"].append(now - died_s[-1])
        if WENT_ON in line and died_s:
            found.took["next answer"].append(now - died_s[-1])


def answered(path: Path) -> int:
    """How many lines an answers file has."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--mode", choices=("inside", "root", "lab"), default="inside", help="see above")
    options.add_argument("--runs", type=int, help="how many (default: 60 inside, 1 with root, 20 on the lab)")
    options.add_argument("--minutes", type=float, help="as many runs as fit instead")
    options.add_argument("--ranks", type=int, help="of a run (default: 4; 3 with root)")
    options.add_argument("--pictures", type=int, help="to be answered in each (default: 1000; 2000 with root)")
    options.add_argument("--deaths", type=int, help="the most in a run (default: 3; 10 with root)")
    options.add_argument("--seed", type=int, default=0, help="of the first run; the next one has the next (default: 0)")
    options.add_argument("--patience", type=float, default=PATIENCE_S, help="s that a run may take (default: 180)")
    return options


def with_defaults(options: argparse.Namespace) -> argparse.Namespace:
    """The options with what their mode has where they say nothing."""
    usual = {
        "inside": {"runs": 60, "ranks": 4, "pictures": 1000, "deaths": 3},
        "root": {"runs": 1, "ranks": 3, "pictures": 2000, "deaths": 10},
        "lab": {"runs": 20, "ranks": 4, "pictures": 1000, "deaths": 1},
    }
    for name, value in usual[options.mode].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def main() -> int:
    """Run, and print a summary."""
    options = with_defaults(parser().parse_args())
    begin, seed, failed = monotonic(), options.seed, 0
    took: dict[str, list[float]] = {name: [] for name in PHASES}
    restarts = deaths = 0
    with TemporaryDirectory(prefix="mpiconv-chaos-") as folder:
        while monotonic() - begin < 60 * options.minutes if options.minutes else seed < options.seed + options.runs:
            found = one(Path(folder), seed, options)
            plan = schedule(options.mode, seed, options.pictures, options.ranks, options.deaths)
            deaths += len(plan.deaths)
            verdict = "; ".join(found.wrong[:3]) or "right"
            tier = f", {found.restarts} restarts" if found.restarts else ""
            print(f"seed {seed}: {plan}: {verdict}{tier}", flush=True)
            if found.wrong:
                print("\n".join(f"    {line}" for line in found.lines[-20:]))
            failed += bool(found.wrong)
            restarts += found.restarts
            for name in PHASES:
                took[name] += found.took[name]
            seed += 1
    runs = seed - options.seed
    print(f"{runs} runs of {options.pictures} pictures on {options.ranks} ranks, seeds from {options.seed}: "
          f"{deaths} deaths, {restarts} restarts, {runs - failed} with all answers right and in order")  # fmt: skip
    for name, times in took.items():
        if times:
            print(f"{name:12} p50 {1e3 * median(times):.0f} ms, max {1e3 * max(times):.0f} ms ({len(times)} of them)")
    return bool(failed)


def one(folder: Path, seed: int, options: argparse.Namespace) -> Found:
    """A run, on a lab of its own where it is for one."""
    if options.mode != "lab":
        return run(folder, options.mode, seed, options)
    subprocess.run(testbed("up", "--devices", str(options.ranks)), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        return run(folder, options.mode, seed, options)
    finally:
        subprocess.run(testbed("down"), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    raise SystemExit(main())
