"""torch.distributed among the ranks of an MPI job: who listens where is agreed over MPI."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from mpiconv.errors import MpiconvError
from mpiconv.job.control import allgather_json, bcast_json

if TYPE_CHECKING:
    from mpiconv.job.team import Team

TIMEOUT = timedelta(minutes=30)
TRY_S = 3.0
LOST_S = 3.0
"""What a rank that loses another waits: that one has most likely failed, says why, and ends the job."""

LOOPBACK = "127.0.0.1"
INTERFACE = "GLOO_SOCKET_IFNAME"
SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface


@contextmanager
def process_group(team: Team) -> Iterator[None]:
    """A torch.distributed process group of the communicator's ranks, for DistributedDataParallel. Collective.

    The mpi backend where torch was built with it, else gloo over TCP: rank 0 listens on a free port and announces its
    addresses, and every rank takes the first that all can reach; loopback if all are on one host.

    Raises
    ------
    MpiconvError
        On every rank, if there is no address of rank 0 that all others reach.
    """
    if team.size == 1:
        yield
        return
    if not dist.is_available():
        raise MpiconvError("this torch was built without torch.distributed: train on one rank")
    if dist.is_mpi_available():
        dist.init_process_group("mpi")
    else:
        dist.init_process_group("gloo", store=_meet(team), rank=team.rank, world_size=team.size, timeout=TIMEOUT)
    try:
        yield
    except RuntimeError as error:
        if "peer" not in str(error) and "gloo" not in str(error):
            raise
        time.sleep(LOST_S)
        raise MpiconvError(f"rank {team.rank} lost another rank: {' '.join(str(error).split())}") from None
    finally:
        dist.destroy_process_group()


def _meet(team: Team) -> Any:
    """The store through which the ranks find each other. Collective."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    hosts = allgather_json(team, socket.gethostname())
    alone = len(set(hosts)) == 1
    store = TCPStore(LOOPBACK, 0, team.size, True, TIMEOUT, wait_for_workers=False) if team.rank == 0 else None
    addresses = [LOOPBACK] if alone else _addresses()
    port, offered = bcast_json(team, [store.port, addresses] if store is not None else None)
    reached = {address: mine for address in offered if (mine := _own_address(address, port, team.rank))}
    everywhere = allgather_json(team, list(reached))
    common = [address for address in offered if all(address in found for found in everywhere)]
    if not common:
        lost = [f"rank {rank} on {hosts[rank]}" for rank, found in enumerate(everywhere) if not found]
        raise MpiconvError(
            f"no address of {hosts[0]} ({', '.join(offered) or 'it has none'}) is reached by all ranks on port {port}"
            f"{'; by none of them: ' + ', '.join(lost) if lost else ''}: open TCP among the hosts"
        )
    names = {address: name for name, address in interfaces().items()}
    name = names.get(reached[common[0]])
    if name is not None:  # else gloo takes what the host's name resolves to
        os.environ.setdefault(INTERFACE, name)
    return store if store is not None else TCPStore(common[0], port, team.size, False, TIMEOUT)


def _own_address(address: str, port: int, rank: int) -> str:
    """The address of this host from which another is reached; empty if it is not."""
    if rank == 0:
        return address
    try:
        with socket.create_connection((address, port), TRY_S) as line:
            return str(line.getsockname()[0])
    except OSError:
        return ""


def _addresses() -> list[str]:
    """The IPv4 addresses at which other hosts may reach this one."""
    found = list(interfaces().values())
    if not found:
        try:
            found = socket.gethostbyname_ex(socket.gethostname())[2]
        except OSError:
            return []
    return [address for address in dict.fromkeys(found) if not address.startswith("127.")]


def interfaces() -> dict[str, str]:
    """The IPv4 address of every network interface that has one, by its name; nothing where Linux's call is missing."""
    found: dict[str, str] = {}
    try:
        import fcntl

        names = [name for _, name in socket.if_nameindex()]
    except (ImportError, OSError):
        return {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        for name in names:
            try:
                answer = fcntl.ioctl(line.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has no address
                continue
            found[name] = socket.inet_ntoa(answer[20:24])
    return found
