"""`memkv up`: a whole pool on this machine until Ctrl-C."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from memkv.cli import units
from memkv.cli.command import Call, Command
from memkv.cli.exits import Exit
from memkv.cli.output import table
from memkv.cli.settings import POOL, Field, UsageError
from memkv.errors import MemKVError
from memkv.limits import GIB, MIB

if TYPE_CHECKING:
    from rich.console import Console

    from memkv.localpool.pool import LocalPool

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
    "memory", units.parse_size, 256 * MIB, "DRAM of EACH node for blocks", "up", "SIZE"
)
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


def run(call: Call) -> int:
    from memkv.localpool.pool import LocalPool, PoolPlan

    settings = call.settings
    host, port = units.split_endpoint(settings[LISTEN])
    directory = Path(settings[DIR]) if settings[DIR] else Path(tempfile.mkdtemp(prefix="memkv-"))
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    try:
        make_directory(directory)
        check_room(directory, settings[NODES] * settings[CAPACITY])
        pool = LocalPool(
            PoolPlan(
                directory.resolve(), settings[NODES], settings[CAPACITY], settings[MEMORY],
                host, port, settings[POOL], settings[INSECURE],
            )
        )  # fmt: skip
        try:
            pool.start(call.output.note, stopping.is_set)
            if not stopping.is_set():
                announce(call, pool)
            while not stopping.wait(CHECK_INTERVAL_S):
                pool.check()
            call.output.note("stopping")
        finally:
            pool.stop()
    except MemKVError:
        if not settings[DIR]:
            remove_all_but(directory / "logs")  # the message names a log
        raise
    if not settings[DIR]:
        shutil.rmtree(directory, ignore_errors=True)
    return Exit.OK


def remove_all_but(kept: Path) -> None:
    """Remove everything beside `kept`, and the directory when nothing is left in it."""
    for path in kept.parent.iterdir():
        if path != kept:
            shutil.rmtree(path, ignore_errors=True)
    if not any(kept.parent.iterdir()):
        kept.parent.rmdir()


def make_directory(directory: Path) -> None:
    """Make it, or say why not."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--dir {directory}: {error.strerror}; choose a directory that you can write to"
        ) from None


def check_room(directory: Path, wanted_bytes: int) -> None:
    """Raise UsageError when the files cannot fit, before the first of them is made."""
    existing = sum(file.stat().st_blocks * 512 for file in directory.rglob("*") if file.is_file())
    free = shutil.disk_usage(directory).free
    if wanted_bytes > free + existing:
        raise UsageError(
            f"the nodes need {units.format_bytes(wanted_bytes)} below {directory}, and"
            f" {units.format_bytes(free)} are free: lower --capacity (it is for each node) or"
            " --nodes, or choose another --dir"
        )


def announce(call: Call, pool: LocalPool) -> None:
    """Say where the pool is."""

    def draw(console: Console) -> None:
        plan = pool.plan
        console.print(
            f"[bold green]pool {plan.name} is up[/] at [bold]{pool.endpoint}[/]:"
            f" {plan.nodes} nodes, {units.format_bytes(plan.capacity_bytes)} of flash and"
            f" {units.format_bytes(plan.memory_bytes)} of DRAM each, in {plan.directory}"
        )
        rows = [
            (node.name, str(node.child.pid), f"{plan.host}:{node.data_port}",
             f"http://{plan.host}:{node.http_port}/metrics", str(node.child.log))
            for node in pool.nodes
        ]  # fmt: skip
        columns = tuple((name, "left") for name in ("node", "pid", "data", "metrics", "log"))
        console.print(table("", columns, rows))
        console.print(
            f"  export MEMKV_ENDPOINT={pool.endpoint}\n"
            "  memkv put KEY FILE, memkv get KEY, memkv top; Ctrl-C here stops the pool"
        )

    call.output.result(pool.describe(), draw)
    call.output.stdout.flush()


COMMAND = Command(
    "Run a metadata service and some nodes on this machine until Ctrl-C or SIGTERM.\n"
    "Each node is a process of its own with a file as its flash; none is restarted by itself.",
    run, (NODES, DIR, CAPACITY, MEMORY, LISTEN, POOL, INSECURE),
    examples=(
        "memkv up",
        "memkv up --nodes 3 --dir /var/tmp/pool --capacity 2GiB --endpoint 127.0.0.1:7443",
    ),
)  # fmt: skip
