"""The pool that is measured: one of its own with a node of a fitting size, or a running one."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from memkv.client.credentials import Credentials
from memkv.client.options import ConnectOptions
from memkv.client.sync import Client
from memkv.errors import RetryLater
from memkv.limits import GIB, MIB
from memkv.localpool.pool import LocalPool, PoolPlan

DEADLINE_MS = 10_000
ATTACH_TIMEOUT_MS = 10_000


@dataclass(frozen=True, slots=True)
class Sizing:
    """How large a pool of one's own is, and how many bytes of blocks are measured in it."""

    capacity_bytes: int
    memory_bytes: int
    data_bytes: int


SIZINGS: dict[str, Sizing] = {
    # All data fits DRAM twice: nothing is read from flash once it is there.
    "dram": Sizing(4 * GIB, 768 * MIB, 256 * MIB),
    # DRAM holds under a twentieth of the data: nearly every get goes to flash.
    "flash": Sizing(4 * GIB, 96 * MIB, 2 * GIB),
}


@dataclass(frozen=True, slots=True)
class Target:
    """A connected client and the processes that serve it (none known for a foreign pool)."""

    client: Client
    node_pids: tuple[int, ...]
    pool: LocalPool | None
    directory: Path
    local_dir: str = ""
    credentials: Credentials | None = None
    """What proves the client, and further ones; None: a pool without TLS."""

    @property
    def endpoint(self) -> str:
        """Where further clients connect."""
        return self.client.attachment.core.options.endpoint


@contextmanager
def own_pool(
    directory: Path, sizing: Sizing, *, transport: str = "tcp", nodes: int = 1
) -> Iterator[Target]:
    """Run a pool below `directory` for a while."""
    with ExitStack() as stack:
        pool = stack.enter_context(
            LocalPool(PoolPlan(directory, nodes, sizing.capacity_bytes, sizing.memory_bytes))
        )
        local_dir = str(pool.local_dir) if transport == "local" else ""
        client = stack.enter_context(attach(pool.endpoint, pool.plan.name, "default", local_dir))
        pids = tuple(pid for node in pool.nodes for pid in node.child.processes())
        yield Target(client, pids, pool, directory, local_dir)


def attach(
    endpoint: str, pool: str, tenant: str, local_dir: str = "",
    credentials: Credentials | None = None, timeout_ms: int = ATTACH_TIMEOUT_MS,
) -> Client:  # fmt: skip
    """Connect and wait until every node is reached. RetryLater when that takes too long."""
    client = Client(
        ConnectOptions(
            endpoint, pool=pool, tenant=tenant, deadline_ms=DEADLINE_MS, local_dir=local_dir,
            credentials=credentials,
        )
    )
    if not client.wait_ready(timeout_ms):
        problems = "; ".join(client.attachment.problems())
        client.close()
        raise RetryLater(f"the pool at {endpoint} is not complete: {problems}")
    return client
