"""`memkv up`: a whole pool on this machine until Ctrl-C."""

from __future__ import annotations

import itertools
import shutil
import signal
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from memkv.cli import units
from memkv.cli.command import Call, Command
from memkv.cli.exits import Exit
from memkv.cli.settings import POOL, Field, Settings, UsageError
from memkv.cli.tables import Column, plain, table
from memkv.daemons import StopSignals
from memkv.errors import MemKVError
from memkv.limits import (
    BLOCK_BYTES_MAX,
    GIB,
    SEGMENTS_PER_STORE_MIN,
    WORKER_MEMORY_BYTES_DEFAULT,
)

if TYPE_CHECKING:
    from rich.console import Console

    from memkv.localpool.pool import LocalPool, PoolPlan

NODES: Field[int] = Field("nodes", units.parse_count, 3, "how many nodes", "up", "COUNT")
DIR: Field[str] = Field(
    "dir", units.parse_name, "",
    "where files and logs go; a pool that is there already is opened again;"
    " default: a temporary directory, removed at the end", "up", "DIR",
)  # fmt: skip
CAPACITY: Field[int] = Field(
    "capacity", units.parse_size, 2 * GIB, "flash of EACH node, preallocated", "up", "SIZE"
)
MEMORY: Field[int] = Field(
    "memory", units.parse_size, WORKER_MEMORY_BYTES_DEFAULT, "DRAM of EACH node for blocks", "up",
    "SIZE",
)  # fmt: skip
LISTEN: Field[str] = Field(
    "endpoint", units.parse_endpoint, "127.0.0.1:7443",
    "where the metadata service listens; port 0: any free one; the nodes take other free ports",
    "up", "HOST:PORT",
)  # fmt: skip
INSECURE: Field[bool] = Field(
    "insecure", units.parse_flag, False,
    "allow an address other than loopback: there is no TLS, so everyone who reaches it can read"
    " and write", "up",
)  # fmt: skip
CHECK_INTERVAL_S = 0.5
COLUMNS = (
    Column("process"), Column("pid", figure=True), Column("address"),
    Column("/metrics, /healthz, /readyz", rank=1),
)  # fmt: skip


def run(call: Call) -> int:
    settings = call.settings
    directory = Path(settings[DIR]) if settings[DIR] else Path(tempfile.mkdtemp(prefix="memkv-"))
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup stays what it is
        numbers.append(signal.SIGHUP)
    stopping = StopSignals(numbers)
    try:
        make_directory(directory)
        serve(call, plan_of(settings, directory.resolve()), stopping)
    except MemKVError:
        if not settings[DIR]:
            remove_all_but(directory / "logs")  # the message names a log
        raise
    if settings[DIR]:
        again = f"; `memkv up --dir {settings[DIR]}` opens it again with its blocks"
        call.output.note(f"stopped{again}")
    else:
        shutil.rmtree(directory, ignore_errors=True)
        call.output.note("stopped, and its files removed; name a --dir to keep them")
    return Exit.OK


def remove_all_but(kept: Path) -> None:
    """Remove everything beside `kept`, and the whole directory when nothing is in `kept`."""
    if not kept.is_dir() or not any(kept.iterdir()):
        shutil.rmtree(kept.parent, ignore_errors=True)
        return
    for path in kept.parent.iterdir():
        if path.is_dir() and path != kept:
            shutil.rmtree(path, ignore_errors=True)
        elif path != kept:
            path.unlink()


def plan_of(settings: Settings, directory: Path) -> PoolPlan:
    """Return what to run: what was said, else what a pool that is there was made with."""
    from memkv.localpool.directory import read_record
    from memkv.localpool.pool import PoolPlan

    kept = read_record(directory)
    nodes, capacity, name = settings[NODES], settings[CAPACITY], settings[POOL]
    if kept is not None:
        nodes = kept.nodes if settings.is_default(NODES) else nodes
        capacity = kept.capacity_bytes if settings.is_default(CAPACITY) else capacity
        name = kept.name if settings.is_default(POOL) else name
    check_room(directory, nodes, capacity)
    host, port = units.split_endpoint(settings[LISTEN])
    return PoolPlan(
        directory, nodes, capacity, settings[MEMORY], address_of(host, settings.origin(LISTEN)),
        port, name, settings[INSECURE],
    )  # fmt: skip


def address_of(host: str, origin: str) -> str:
    """Return the address of a host name: a data port listens on an address."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise UsageError(f"{origin}: {host}: {error.strerror}; name an address") from None


def serve(call: Call, plan: PoolPlan, stopping: StopSignals) -> None:
    """Run the pool until it is told to stop. ConfigError when a process of it ends by itself."""
    from memkv.localpool.pool import LocalPool

    pool = LocalPool(plan)
    steps = plan.nodes + 2
    done = itertools.count()
    try:
        with call.output.progress() as report:
            pool.start(lambda text: report(next(done) / steps, text), stopping.is_set)
        if not stopping.is_set():
            announce(call, pool)
        while not stopping.wait(CHECK_INTERVAL_S):
            pool.check()
        call.output.note("stopping: nodes write what they still hold in memory")
    finally:
        pool.stop()


def make_directory(directory: Path) -> None:
    """Make it, or say why not."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--dir {directory}: {error.strerror}; choose a directory that you can write to"
        ) from None


def check_room(directory: Path, nodes: int, capacity: int) -> None:
    """Raise UsageError when the files cannot fit, before the first of them is made."""
    from memkv.localpool.directory import missing_bytes

    wanted = missing_bytes(directory, nodes, capacity)
    free = shutil.disk_usage(directory).free
    if wanted > free:
        raise UsageError(
            f"the nodes need {units.format_bytes(wanted)} below {directory}, and"
            f" {units.format_bytes(free)} are free: lower --capacity (it is for each node) or"
            " --nodes, or choose another --dir"
        )


def announce(call: Call, pool: LocalPool) -> None:
    """Say where the pool is."""
    plan = pool.plan

    def draw(console: Console) -> None:
        sizes = {pool.flash_bytes(node) for node in pool.nodes}
        each = " each" if plan.nodes > 1 and len(sizes) == 1 else ""
        flash = next(iter(sizes)) if each else sum(pool.flash_bytes(node) for node in pool.nodes)
        console.print(
            f"[bold green]pool {plain(plan.name)} is up[/] at [bold]{pool.endpoint}[/]:"
            f" {plan.nodes} node{'s' if plan.nodes > 1 else ''}, {units.format_bytes(flash)} of"
            f" flash{each}, {units.format_bytes(plan.memory_bytes)} of DRAM each"
        )
        rows = [("metadata", str(pool.metadata.pid), pool.endpoint, pool.url(pool.http_port))]
        rows += [
            (node.name, str(node.child.pid), f"{plan.host}:{node.data_port}",
             pool.url(node.http_port))
            for node in pool.nodes
        ]  # fmt: skip
        console.print(table(COLUMNS, rows, console.width))
        if (largest := min(sizes) // SEGMENTS_PER_STORE_MIN) < BLOCK_BYTES_MAX:
            size = units.format_bytes(largest)
            console.print(f"blocks under {size}, a 64th of a node's flash: a larger --capacity"
                          " takes larger ones")  # fmt: skip
        console.print(f"files  {plain(str(plan.directory))}", soft_wrap=True)
        console.print(f"logs   {plain(str(plan.directory / 'logs'))}", soft_wrap=True)
        console.print(
            f"local  export MEMKV_LOCAL_DIR={plain(str(pool.local_dir))}: Python programs here"
            " share memory with the nodes", soft_wrap=True,
        )  # fmt: skip
        console.print("stop   Ctrl-C, or SIGTERM to this process")
        console.print(
            f"try    export MEMKV_ENDPOINT={pool.endpoint}; memkv put KEY FILE; memkv get KEY;"
            " memkv top", soft_wrap=True,
        )  # fmt: skip

    call.output.result(pool.describe(), draw)


COMMAND = Command(
    "Run a metadata service and some nodes on this machine until Ctrl-C or SIGTERM.\n"
    "Each node is a process of its own with a file as its flash. When one of them ends by itself\n"
    "the pool stops with exit code 4 and shows the end of its log.",
    run, (NODES, DIR, CAPACITY, MEMORY, LISTEN, POOL, INSECURE),
    examples=(
        "memkv up",
        "memkv up --nodes 3 --dir /var/tmp/pool --capacity 2GiB --endpoint 127.0.0.1:7443",
        "memkv up --dir /var/tmp/pool            # the same pool again, with its blocks",
        "memkv up --endpoint 127.0.0.1:0 --json  # any free port, printed as JSON",
    ),
)  # fmt: skip
