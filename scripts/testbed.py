"""Emulate a lab of edge devices on this Linux machine: real MPI over real TCP, on links slowed to a rate.

Every device is a network namespace with a host name of its own on a bridge; `tc` limits the rate of its link in both
directions, or of the whole medium. Nothing outside the lab's own namespaces is touched. Needs root, `ip` and `tc`
(Debian: iproute2) and the Open MPI that mpiconv runs with.

  python scripts/testbed.py up --devices 4 --rate 12.5      or: up hostfiles/labs/equal-4.toml
  python scripts/testbed.py run -- mpiconv doctor           mpirun over the devices, one rank each
  python scripts/testbed.py run --hosts pi4,laptop -- ...   over these two, rank 0 on the first
  python scripts/testbed.py status
  python scripts/testbed.py down
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of this checkout, also where none is installed

from mpiconv.errors import MpiconvError
from mpiconv.reading import read_toml

STATE = Path("/run/mpiconv-testbed")
LEAST_BYTES_PER_S = 20_000
MOST_DEVICES = 253
LARGEST = 1e12
GRACE_S = 10
LOSS_BASED = "for name in cubic reno; do echo $name > /proc/sys/net/ipv4/tcp_congestion_control && break; done"
"""What boards use; a host's BBR takes the kernel's token bucket for a faster link and wastes more than half of it."""
MEDIA = ("switch", "shared")
ANSWER_S = 5
ASK = """
import socket, sys
for address in sys.argv[2:]:
    try:
        socket.create_connection((address, 7), float(sys.argv[1])).close()
    except ConnectionRefusedError:
        pass
    except OSError:
        print(address)
        break
"""
KEEPALIVE = {"time": 5, "intvl": 3, "probes": 4}
"""Seconds and numbers after which mpirun gives up an idle connection to a device, in place of 8 minutes."""

TCP_RETRIES = 6
"""How often TCP sends again what a device does not take: for 25 s, in place of a quarter of an hour."""


class LabError(Exception):
    """What is wrong with a lab, in one sentence."""


@dataclass(frozen=True)
class Device:
    """One emulated device: how much slower than this core, its link's rate and delay, and its memory."""

    name: str
    pace: float = 1.0
    rate_mb_per_s: float = 0.0
    latency_ms: float = 0.0
    loss_percent: float = 0.0
    memory_mb: float = 0.0


@dataclass(frozen=True)
class Lab:
    """A set of devices and what connects them; rates in MB/s and paces of the lab, before dilation."""

    devices: tuple[Device, ...]
    medium: str = "switch"
    rate_mb_per_s: float = 100.0
    dilation: float = 1.0

    def check(self) -> None:
        """Raise LabError for what cannot be emulated."""
        if not self.dilation >= 1:
            raise LabError(f"dilation {self.dilation:g}: 1 is the least")
        names = [device.name for device in self.devices]
        if not names:
            raise LabError("a lab needs at least one [[device]]")
        if len(names) > MOST_DEVICES:
            raise LabError(f"{len(names)} devices: a lab has addresses for {MOST_DEVICES}")
        for device in self.devices:
            if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", device.name) or names.count(device.name) > 1:
                raise LabError(f"device name {device.name!r}: unique lower-case letters, digits and - are wanted")
            if device.pace < 1:
                raise LabError(
                    f"{device.name} has pace {device.pace:g}: this core cannot be made faster, 1 is the least"
                )
            if self.link_bytes_per_s(device) < LEAST_BYTES_PER_S:
                least = LEAST_BYTES_PER_S * self.dilation / 1e6
                raise LabError(
                    f"the link of {device.name} is too slow for the kernel's TBF: {least:g} MB/s is the least"
                )
        if self.medium not in MEDIA:
            raise LabError(f"medium {self.medium!r}: {' or '.join(MEDIA)} is wanted")

    def link_bytes_per_s(self, device: Device) -> float:
        """The rate that tc is told, slowed by the dilation."""
        return (device.rate_mb_per_s or self.rate_mb_per_s) * 1e6 / self.dilation

    def changed(self, rate_mb_per_s: float | None, medium: str | None, dilation: float | None) -> Lab:
        """The lab with what is given instead of its own; a rate is then every link's."""
        lab = self
        if rate_mb_per_s is not None:
            devices = tuple(replace(device, rate_mb_per_s=0.0) for device in self.devices)
            lab = replace(lab, devices=devices, rate_mb_per_s=rate_mb_per_s)
        return replace(lab, medium=medium or lab.medium, dilation=lab.dilation if dilation is None else dilation)


def read_lab(path: str) -> Lab:
    """A lab from its TOML file; a wrong key is named with the nearest right one."""
    try:
        data = read_toml(path, "lab")
    except MpiconvError as error:
        raise LabError(str(error)) from None
    tables = data.pop("device", [])
    fields = {"medium", "rate_mb_per_s", "dilation"}
    _known(path, data, fields)
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise LabError(f"{path}: device is {tables!r}: tables that begin with [[device]] are wanted")
    for table in tables:
        _known(path, table, {*Device.__dataclass_fields__, "count"})
    try:
        return Lab(tuple(device for table in tables for device in _devices(path, table)), **data)
    except TypeError as error:
        raise LabError(f"{path}: {error}") from None


def _devices(path: str, table: dict[str, Any]) -> list[Device]:
    """The devices of one table: with ``count = 3``, three whose names end in 1, 2 and 3."""
    count = table.get("count")
    device = Device(**{key: value for key, value in table.items() if key != "count"})
    if count is None:
        return [device]
    if not isinstance(count, int) or not 1 <= count <= MOST_DEVICES:
        raise LabError(f"{path}: count is {count!r}, a whole number from 1 to {MOST_DEVICES} is wanted")
    return [replace(device, name=f"{device.name}{number}") for number in range(1, count + 1)]


def _known(path: str, table: dict[str, Any], keys: set[str]) -> None:
    for key, value in table.items():
        if key not in keys:
            close = get_close_matches(key, keys, 1)
            raise LabError(f"{path} has the unknown key {key!r}{f', is it {close[0]!r}?' if close else ''}")
        text = key in ("name", "medium")
        if isinstance(value, bool) or not isinstance(value, str if text else int | float):
            raise LabError(f"{path}: {key} is {value!r}, {'a text' if text else 'a number'} is wanted")
        if not text and not 0 <= value < LARGEST:
            raise LabError(f"{path}: {key} is {value!r}, a number from 0 up is wanted")


def command(*words: object, quiet: bool = False) -> str:
    """Run a program; its output, or LabError with what it said."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode and not quiet:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise LabError(f"{' '.join(map(str, words))}: {said[0] if said else f'exit status {done.returncode}'}")
    return done.stdout


class Testbed:
    """A lab that is up, or is to be: its namespaces, and its folder with state, hostfile and agent."""

    def __init__(self, name: str) -> None:
        if not re.fullmatch(r"[a-z0-9]{1,12}", name):
            raise LabError(f"lab name {name!r}: up to 12 lower-case letters and digits are wanted")
        self.name = name
        self.folder = STATE / name

    @property
    def state(self) -> dict[str, Any]:
        """What ``up`` noted."""
        try:
            found: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        except (OSError, ValueError):
            raise LabError(f"the lab {self.name!r} is not up: python scripts/testbed.py up ...") from None
        return found

    def namespace(self, device: str) -> str:
        """The network namespace of a device; the switch's is that of the device called ``0switch``."""
        return f"mpiconv-{self.name}-{device}"

    def up(self, lab: Lab) -> None:
        """Make the namespaces and links, and write the hostfile; on any failure take all of it down again."""
        lab.check()
        if self.folder.exists():
            raise LabError(f"the lab {self.name!r} is already up: take it down first, or choose another --name")
        self.folder.mkdir(parents=True)
        try:
            self._build(lab)
        except BaseException:
            self.down()
            raise

    def _build(self, lab: Lab) -> None:
        used = [json.loads(p.read_text())["network"] for p in STATE.glob("*/state.json")]
        networks = (str(net) for net in ipaddress.ip_network("10.213.0.0/16").subnets(new_prefix=24))
        network = next((net for net in networks if net not in used), None)
        if network is None:
            raise LabError("no network is left for another lab")
        hosts = list(ipaddress.ip_network(network).hosts())
        addresses = {device.name: str(host) for device, host in zip(lab.devices, hosts, strict=False)}
        state = {"network": network, "addresses": addresses, "lab": asdict(lab)}
        (self.folder / "state.json").write_text(json.dumps(state))
        switch = self.namespace("0switch")
        command("ip", "netns", "add", switch)
        command("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
        command("ip", "-n", switch, "link", "set", "br0", "up")
        if lab.medium == "shared":
            command("ip", "-n", switch, "link", "add", "ifb0", "type", "ifb")
            command("ip", "-n", switch, "link", "set", "ifb0", "up")
            self._limit(switch, "ifb0", lab.rate_mb_per_s * 1e6 / lab.dilation)
        for number, device in enumerate(lab.devices):
            self._connect(lab, device, f"port{number}", addresses[device.name])
        agent = self.folder / "agent"
        agent.write_text(_agent(self, lab))
        agent.chmod(0o755)
        (self.folder / "hostfile").write_text("".join(f"{device.name} slots=1\n" for device in lab.devices))
        names = "".join(f"{address} {name}\n" for name, address in addresses.items())
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")

    def _connect(self, lab: Lab, device: Device, port: str, address: str) -> None:
        """A device's namespace and its link to the switch, slowed on both ends."""
        switch, own = self.namespace("0switch"), self.namespace(device.name)
        command("ip", "netns", "add", own)
        command("ip", "-n", own, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", switch)
        command("ip", "-n", switch, "link", "set", port, "master", "br0", "up")
        command("ip", "-n", own, "addr", "add", f"{address}/24", "dev", "eth0")
        command("ip", "-n", own, "link", "set", "lo", "up")
        command("ip", "-n", own, "link", "set", "eth0", "up")
        retries = f"echo {TCP_RETRIES} > /proc/sys/net/ipv4/tcp_retries2"
        command("nsenter", f"--net=/run/netns/{own}", "sh", "-c", retries)
        command("nsenter", f"--net=/run/netns/{own}", "sh", "-c", LOSS_BASED, quiet=True)
        if lab.medium == "shared":
            command("tc", "-n", switch, "qdisc", "add", "dev", port, "ingress")
            everything = ["protocol", "all", "u32", "match", "u32", "0", "0"]
            redirect = ["action", "mirred", "egress", "redirect", "dev", "ifb0"]
            command("tc", "-n", switch, "filter", "add", "dev", port, "parent", "ffff:", *everything, *redirect)
        else:
            self._limit(own, "eth0", lab.link_bytes_per_s(device))
            self._limit(switch, port, lab.link_bytes_per_s(device))
        if device.latency_ms or device.loss_percent:
            delay = ["delay", f"{device.latency_ms * lab.dilation:g}ms", "loss", f"{device.loss_percent:g}%"]
            where = ["dev", "eth0", "root"] if lab.medium == "shared" else ["dev", "eth0", "parent", "1:1"]
            try:
                command("tc", "-n", own, "qdisc", "add", *where, "netem", *delay)
            except LabError:
                message = f"{device.name} wants latency or loss, but this kernel has no netem"
                raise LabError(f"{message}: leave latency_ms and loss_percent out") from None

    @staticmethod
    def _limit(namespace: str, link: str, bytes_per_s: float) -> None:
        burst = max(16_000, int(bytes_per_s * 0.002))
        limits = ["rate", f"{int(bytes_per_s * 8)}bit", "burst", burst, "limit", burst + 2_000_000]
        command("tc", "-n", namespace, "qdisc", "add", "dev", link, "root", "handle", "1:", "tbf", *limits)

    def down(self) -> None:
        """Remove the lab and end what still runs in its namespaces; nothing else."""
        prefix = self.namespace("")
        for line in command("ip", "netns", "list").splitlines():
            namespace = line.split()[0] if line.split() else ""
            if namespace.startswith(prefix):
                for pid in command("ip", "netns", "pids", namespace, quiet=True).split():
                    command("kill", "-9", pid, quiet=True)
                command("ip", "netns", "del", namespace, quiet=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(
        self,
        words: list[str],
        ranks: int | None,
        hosts: list[str] | None = None,
        timeout_s: float = 0,
        *,
        keep_going: bool = False,
    ) -> int:
        """Start a command by mpirun over the devices, or over ``hosts`` in their order; its exit status.

        ``keep_going``: it is mpiconv run, and starts that mpirun itself.

        Raises LabError, naming it, for a device that does not answer, before or after.
        """
        state = self.state
        lab = state["lab"]
        devices = {device["name"]: device for device in lab["devices"]}
        names = hosts or list(devices)
        for name in names:
            if name not in devices or names.count(name) > 1:
                problem = "is asked for twice" if name in devices else f"is none of {', '.join(devices)}"
                raise LabError(f"--hosts: {name!r} {problem} (lab {self.name!r})")
        ranks = ranks or len(names)
        if not 1 <= ranks <= len(names):
            whose = "--hosts names" if hosts else f"the lab {self.name!r} has"
            raise LabError(f"{ranks} ranks: {whose} {len(names)} devices, one rank each")
        names = names[:ranks]
        self._answers(names)
        hostfile = self.folder / f"hostfile-{os.getpid()}"
        hostfile.write_text("".join(f"{name} slots=1\n" for name in names))
        environment = {
            "MPICONV_PACE": ",".join(f"{devices[name]['pace'] * lab['dilation']:g}" for name in names),
            "MPICONV_DILATION": f"{lab['dilation']:g}",
            "MPICONV_WAIT": os.environ.get("MPICONV_WAIT", "sleep"),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }
        survives = outlives_ranks()
        mpirun = [
            "mpirun", *(["--with-ft", "ulfm"] if survives else []), "--map-by", "node", "--bind-to", "none",
            "--mca", "plm", "ssh", "--mca", "plm_ssh_agent", str(self.folder / "agent"),
            "--mca", "btl", "tcp,self", "--mca", "pml", "ob1", "--mca", "btl_tcp_if_include", state["network"],
            "--mca", "mpi_yield_when_idle", "1", "--prtemca", "prte_if_include", state["network"],
        ]  # fmt: skip
        for key, value in KEEPALIVE.items():
            mpirun += ["--prtemca", f"oob_tcp_keepalive_{key}", str(value)]
        for key, value in environment.items():
            mpirun += ["-x", f"{key}={value}"]
        where = ["--hostfile", str(hostfile), "-n", str(ranks)]
        line = [*mpirun, *where, *words]
        if keep_going:
            line = [*words, "--keep-going", "--launcher", shlex.join(mpirun), *where]
        inside = self.enter(names[0], shlex.join(line))
        as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        try:
            status = run_within(inside, os.environ | environment | as_root, timeout_s)
        finally:
            hostfile.unlink(missing_ok=True)
        if status == 0 and not survives:
            self._answers(names)  # mpirun ends with 0 where it has lost a device
        return status

    def enter(self, device: str, line: str) -> list[str]:
        """The command that runs a shell line on a device, under its host name."""
        return [str(self.folder / "agent"), device, line]

    def _answers(self, names: list[str]) -> None:
        """Raise LabError, naming the device, unless each refuses a connection from the first one: then it is there."""
        addresses = [self.state["addresses"][name] for name in names]
        ask = [sys.executable, "-c", ASK, str(ANSWER_S), *addresses[1:]]
        silent = command(*self.enter(names[0], shlex.join(ask))).split()
        for name, address in zip(names, addresses, strict=True):
            if address in silent:
                message = f"the device {name} ({address}) does not answer {names[0]} within {ANSWER_S} s"
                raise LabError(f"{message}: testbed.py down, then up again")

    def show(self) -> str:
        """A table of the devices and what went over their links so far."""
        state = self.state
        lab = state["lab"]
        lines = [f"{self.name}: {lab['medium']}, network {state['network']}, dilation {lab['dilation']:g}"]
        lines.append(f"{'device':16} {'address':15} {'pace':>6} {'MB/s':>8} {'received B':>14} {'sent B':>14}")
        for device in lab["devices"]:
            name = device["name"]
            received, sent = link_bytes(self.namespace(name))
            rate = device["rate_mb_per_s"] or lab["rate_mb_per_s"]
            lines.append(
                f"{name:16} {state['addresses'][name]:15} {device['pace']:6g} {rate:8g} {received:14} {sent:14}"
            )
        return "\n".join(lines)


def run_within(command_line: list[str], environment: dict[str, str], timeout_s: float) -> int:
    """The exit status of a job; LabError for one that was ended because it took too long.

    SIGUSR1 and SIGTERM reach it as SIGUSR1, which mpirun hands to all ranks: a run ends early with its results.
    """
    with ExitStack() as stack:
        job = stack.enter_context(subprocess.Popen(command_line, env=environment))
        for caught in (signal.SIGUSR1, signal.SIGTERM):
            before = signal.signal(caught, lambda *_: job.send_signal(signal.SIGUSR1))
            stack.callback(signal.signal, caught, before)
        try:
            return job.wait(timeout_s or None)
        except subprocess.TimeoutExpired:
            raise LabError(f"the job did not end within {timeout_s:g} s: it was ended") from None
        finally:
            if job.poll() is None:
                job.terminate()  # mpirun passes it on to all ranks
                try:
                    job.wait(GRACE_S)
                except subprocess.TimeoutExpired:
                    job.kill()


def outlives_ranks() -> bool:
    """Whether this mpirun can go on when a rank dies: Open MPI's from 5.0 on, unless it was built without."""
    found = re.search(r"Open MPI\D* (\d+)\.", command("mpirun", "--version"))
    return found is not None and int(found[1]) >= 5


def link_bytes(namespace: str) -> tuple[int, int]:
    """B received and sent on a device's link since it is up, headers included."""
    found = json.loads(command("ip", "-n", namespace, "-s", "-j", "link", "show", "eth0"))[0]["stats64"]
    return int(found["rx"]["bytes"]), int(found["tx"]["bytes"])


def _agent(testbed: Testbed, lab: Lab) -> str:
    """What mpirun calls in place of ssh: HOST COMMAND..., run on the device of that name."""
    limits = [
        f"  {device.name}) ulimit -d {int(device.memory_mb * 1024)} ;;\n" for device in lab.devices if device.memory_mb
    ]
    names = "|".join(device.name for device in lab.devices)
    hosts = shlex.quote(str(testbed.folder / "hosts"))
    return f"""#!/usr/bin/env bash
# Made by scripts/testbed.py: HOST COMMAND... runs the command on a device of the lab, under its host name.
host=$1; shift
case $host in {names}) ;; *) echo "no device called $host in this lab" >&2; exit 1 ;; esac
case $host in
{"".join(limits)}esac
export TMPDIR={shlex.quote(str(testbed.folder))}/tmp/$host; mkdir -p "$TMPDIR"
exec nsenter --net=/run/netns/{testbed.namespace("")}"$host" unshare --uts --mount --propagation private \\
  bash -c 'mount --bind {hosts} /etc/hosts; hostname "$0"; exec bash -c "$*"' "$host" "$@"
"""


def end(message: str, status: int = 1) -> NoReturn:
    """Say what is wrong and stop."""
    print(f"testbed: error: {message}", file=sys.stderr)
    raise SystemExit(status)


def main() -> int:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="lab", help="which lab; several can be up side by side (default: lab)")
    actions = parser.add_subparsers(dest="action", required=True)
    up = actions.add_parser("up", help="make the devices")
    up.add_argument("lab", nargs="?", metavar="LAB.toml", help="a description of a lab, as in hostfiles/labs")
    up.add_argument("--devices", type=int, metavar="N", help="N equal devices instead")
    up.add_argument("--rate", type=float, metavar="MB/s", help="of every link (default: the LAB's, or 100)")
    up.add_argument("--medium", choices=MEDIA, help="default: the LAB's, or switch")
    up.add_argument(
        "--dilation", type=float, metavar="D", help="slow everything down D times (default: the LAB's, or 1)"
    )
    up.add_argument(
        "--pace", type=float, default=1.0, metavar="P", help="devices P times slower than this core (default: 1)"
    )
    run = actions.add_parser("run", help="mpirun a command over the devices, one rank each")
    run.add_argument("-n", type=int, metavar="N", help="ranks (default: one on every device)")
    run.add_argument(
        "--hosts", type=lambda text: text.split(","), metavar="A,B,...", help="only over these, rank 0 on the first"
    )
    run.add_argument("--timeout", type=float, default=0, metavar="S", help="end it after so many s (default: never)")
    run.add_argument("--keep-going", action="store_true", help="COMMAND is mpiconv run: have it start mpirun itself")
    run.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND ...")
    actions.add_parser("status", help="the devices and their traffic so far")
    actions.add_parser("down", help="remove everything again")
    arguments = parser.parse_args()
    if sys.platform != "linux" or os.geteuid() != 0:
        end("needs root on Linux")
    for tool, package in (("ip", "iproute2"), ("tc", "iproute2"), ("nsenter", "util-linux"), ("unshare", "util-linux")):
        if shutil.which(tool) is None:
            end(f"needs {tool} (Debian: apt install {package})")
    try:
        testbed = Testbed(arguments.name)
        if arguments.action == "up":
            if bool(arguments.lab) == bool(arguments.devices):
                end("up needs a LAB.toml or --devices N", 2)
            equal = tuple(Device(f"edge{i + 1}", arguments.pace) for i in range(arguments.devices or 0))
            lab = read_lab(arguments.lab) if arguments.lab else Lab(equal)
            testbed.up(lab.changed(arguments.rate, arguments.medium, arguments.dilation))
            print(testbed.show())
        elif arguments.action == "run":
            words = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
            if not words:
                end("run needs a command: run -- mpiconv run ...", 2)
            how = {"timeout_s": arguments.timeout, "keep_going": arguments.keep_going}
            return testbed.run(words, arguments.n, arguments.hosts, **how)
        elif arguments.action == "status":
            print(testbed.show())
        else:
            testbed.down()
    except LabError as error:
        end(str(error))
    except KeyboardInterrupt:
        end("interrupted", 130)
    return 0


if __name__ == "__main__":
    sys.exit(main())
