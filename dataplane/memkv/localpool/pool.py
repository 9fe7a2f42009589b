"""A pool of real processes on this machine: one metadata service and some nodes.

    with LocalPool(PoolPlan(Path("/tmp/pool"))) as pool:
        client = memkv.connect(pool.endpoint)

Everything binds to loopback unless the plan says otherwise. Nothing is restarted by itself: a child
that ends is reported by `check`. A directory that holds a pool already is opened again with its
blocks; with more nodes than it had, slots move to the new ones. Processes end with the pool, by
their ids.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import grpc

from memkv.client.options import ConnectOptions
from memkv.client.sync import Client
from memkv.errors import ConfigError, RetryLater
from memkv.limits import GIB, SLOTS_DEFAULT, WORKER_MEMORY_BYTES_DEFAULT
from memkv.localpool.directory import (
    FLASH_FILE,
    DirectoryLock,
    PoolRecord,
    check_record,
    read_record,
    write_record,
)
from memkv.localpool.ports import check_free, free_ports
from memkv.localpool.process import Child
from memkv.metadata.endpoint import check_exposure, join_endpoint, open_channel
from memkv.shardmap.map import MapVersion, ShardMap, Worker, WorkerState, unpack_owners
from memkv_proto import node_admin_pb2, node_admin_pb2_grpc

START_TIMEOUT_S = 60.0  # preallocating and scanning some GiB on a slow disk
WAIT_STEP_S = 0.1
# A worker that fails for so long will go on failing: a lock of a killed process is free by then.
FAILURE_PATIENCE_S = 6.0
FACTS_TIMEOUT_S = 2.0
PORTS_PER_NODE = 3
READY_FILE = "node.json"


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """What to run. `capacity_bytes` and `memory_bytes` are for each node."""

    directory: Path
    nodes: int = 3
    capacity_bytes: int = 2 * GIB
    memory_bytes: int = WORKER_MEMORY_BYTES_DEFAULT
    host: str = "127.0.0.1"
    port: int = 0
    """Of the metadata service; 0: any free one."""
    name: str = "default/local"
    insecure: bool = False
    slots: int = SLOTS_DEFAULT
    """Of a new pool; fixed for ever."""
    node_arguments: tuple[str, ...] = field(default=())
    metadata_arguments: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise ConfigError("a pool needs at least one node")
        check_exposure("the pool", self.host, None, insecure=self.insecure)


@dataclass(slots=True)
class LocalNode:
    """One node of the pool: its process and its addresses."""

    name: str
    child: Child
    data_port: int
    admin_port: int
    http_port: int


class LocalPool:
    """Processes of one pool. `start` and `stop`, or a `with` block."""

    def __init__(self, plan: PoolPlan) -> None:
        """ConfigError when the directory holds another pool than the plan's."""
        self.plan = plan
        prepare_directory(plan.directory)
        ports = free_ports(2 + plan.nodes * PORTS_PER_NODE, plan.host)
        self.port = plan.port or ports[-1]
        self.http_port = ports[-2]
        self.nodes = [
            self._node(index, *ports[index * PORTS_PER_NODE : (index + 1) * PORTS_PER_NODE])
            for index in range(plan.nodes)
        ]
        check_record(plan.directory, read_record(plan.directory), self._record)
        self.metadata = self._metadata()
        self._watcher: Client | None = None
        self._lock: DirectoryLock | None = None

    @property
    def endpoint(self) -> str:
        """HOST:PORT of the metadata service."""
        return join_endpoint(self.plan.host, self.port)

    @property
    def local_dir(self) -> Path:
        """Where the nodes' Unix sockets lie, for clients on this machine."""
        return self.plan.directory / "run"

    # --- life ---------------------------------------------------------------------------------
    def start(
        self, report: Callable[[str], None] = lambda text: None,
        given_up: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        """Start everything and wait until every slot has an owner that serves, or `given_up()`.

        Raises ConfigError when a pool runs in the directory or the port is taken, and with the end
        of the log when a process ends; RetryLater when the pool is not complete in time. What was
        started is stopped again.
        """
        self._lock = DirectoryLock(self.plan.directory, self.endpoint)
        try:
            check_free(self.plan.host, self.port)
            for node in self.nodes:
                report(f"starting {node.name}")
                self._start(node.child)
            # A worker that a publisher misses loses its slots, and a slow disk is no reason for it.
            self._wait(self._nodes_ready, START_TIMEOUT_S, given_up)
            report("starting the metadata service")
            self._start(self.metadata)
            report("waiting for the shard map")
            self.wait_complete(START_TIMEOUT_S, given_up)
            if not given_up():
                write_record(self.plan.directory, self._record)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process, cleanly if they let us, and reap it. Idempotent."""
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
        for node in self.nodes:
            node.child.terminate()  # all at once: they flush side by side
        for child in (*(node.child for node in self.nodes), self.metadata):
            child.stop()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _start(self, child: Child) -> None:
        child.start([self._lock.descriptor] if self._lock is not None else [])

    @property
    def _record(self) -> PoolRecord:
        return PoolRecord(self.plan.name, len(self.nodes), self.plan.capacity_bytes)

    def check(self) -> None:
        """Raise ConfigError when a process ended by itself."""
        for child in (self.metadata, *(node.child for node in self.nodes)):
            child.check_running()

    def add_node(self) -> LocalNode:
        """Start one more node and tell the metadata service, which starts again for that: who is in
        a pool is said at its start. The others go on. `wait_settled` tells when slots have moved.
        """
        ports = free_ports(PORTS_PER_NODE, self.plan.host)
        node = self._node(len(self.nodes), *ports)
        self.nodes.append(node)
        self._start(node.child)
        self._wait(self._nodes_ready, START_TIMEOUT_S)
        self.metadata.stop()
        self.metadata = self._metadata()
        self._start(self.metadata)
        write_record(self.plan.directory, self._record)
        return node

    # --- the map ------------------------------------------------------------------------------
    def watcher(self) -> Client:
        """Return a client of the pool's own, for looking at the map."""
        if self._watcher is None:
            self._watcher = Client(
                ConnectOptions(self.endpoint, pool=self.plan.name, bootstrap_timeout_ms=1)
            )
        return self._watcher

    def shard_map(self) -> ShardMap | None:
        """Return the newest map that arrived here."""
        return self.watcher().attachment.shard_map

    def worker_of(self, node: LocalNode) -> Worker | None:
        """Return the node's worker in the map."""
        shard_map = self.shard_map()
        workers = shard_map.workers if shard_map else ()
        return next((worker for worker in workers if worker.node_name == node.name), None)

    def wait_complete(
        self, timeout_s: float, given_up: Callable[[], bool] = lambda: False
    ) -> None:
        """Wait until all nodes are in the map, can be reached, and serve by it."""
        self._wait(self._complete, timeout_s, given_up)
        shard_map = self.shard_map()
        if shard_map is not None:
            # A node that just got its first map opens its slots a moment later.
            version = shard_map.version
            self._wait(lambda: self._served(version), timeout_s, given_up)

    def wait_settled(self, timeout_s: float) -> None:
        """Wait until all nodes own slots and no slot moves."""
        self._wait(self.is_settled, timeout_s)

    def _wait(
        self, holds: Callable[[], bool], timeout_s: float,
        given_up: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        began = time.monotonic()
        while not given_up() and not holds():
            self.check()
            waited_s = time.monotonic() - began
            if waited_s > FAILURE_PATIENCE_S:
                self._check_workers()
            if waited_s > timeout_s:
                raise RetryLater(
                    f"the pool was not complete within {timeout_s:g} s; the logs are in"
                    f" {self.plan.directory / 'logs'} and end with:\n{self._log_tails()}"
                )
            changed = self.watcher().attachment.core.changed
            with changed:
                changed.wait(WAIT_STEP_S)

    def _complete(self) -> bool:
        attachment = self.watcher().attachment
        shard_map = attachment.shard_map
        if shard_map is None:
            return False
        # By their ports too: whoever answers at our endpoint might be another pool of our name.
        active = {
            (worker.node_name, worker.port)
            for worker in shard_map.workers
            if worker.state == WorkerState.ACTIVE
        }
        wanted = {(node.name, node.data_port) for node in self.nodes}
        return active >= wanted and attachment.wait_ready(0)

    def _served(self, version: MapVersion) -> bool:
        """Return whether all workers took over this map, or a later one."""
        return all(
            applied_epoch(join_endpoint(self.plan.host, node.admin_port), version.lineage)
            >= version.epoch
            for node in self.nodes
        )

    def is_settled(self) -> bool:
        """Return whether all nodes own slots and no slot moves."""
        shard_map = self.shard_map()
        if shard_map is None or shard_map.moving or not self._complete():
            return False
        owning = {shard_map.workers[index].node_name for index in unpack_owners(shard_map.owners)}
        return owning >= {node.name for node in self.nodes}

    def _nodes_ready(self) -> bool:
        return all(
            node.child.pid == pid and workers == {"ready"}
            for node in self.nodes
            for pid, workers in (phases_of(self.plan.directory / node.name),)
        )

    def _log_tails(self) -> str:
        children = (self.metadata, *(node.child for node in self.nodes))
        return "\n".join(f"  {child.name}:\n{child.log_tail(2)}" for child in children)

    def _check_workers(self) -> None:
        """Raise ConfigError with the reason of the first node whose worker cannot start."""
        for node in self.nodes:
            if "failed" in phases_of(self.plan.directory / node.name)[1]:
                raise ConfigError(
                    f"the worker of {node.name} cannot start; its log {node.child.log} ends with:\n"
                    f"{node.child.log_tail(1)}"
                )

    # --- faults -------------------------------------------------------------------------------
    def kill(self, node: LocalNode) -> int:
        """SIGKILL a node with its workers, at once; return how many processes that ended."""
        count = len(node.child.processes())
        node.child.kill()
        return count

    def start_again(self, node: LocalNode) -> None:
        """Start a node that was killed. `wait_complete` tells when it serves."""
        self._start(node.child)

    # --- inside -------------------------------------------------------------------------------
    def _node(self, index: int, data_port: int, admin_port: int, http_port: int) -> LocalNode:
        name = f"node-{index + 1}"
        directory = self.plan.directory
        arguments = [
            "node", "--quiet", "--name", name, "--pool", self.plan.name,
            "--host", self.plan.host, "--metadata", self.endpoint,
            "--data-port", str(data_port), "--admin-port", str(admin_port),
            "--http-port", str(http_port),
            "--dir", str(directory / name), "--capacity", str(self.plan.capacity_bytes),
            "--memory", str(self.plan.memory_bytes), "--local-dir", str(self.local_dir),
            "--slots", str(self.plan.slots),
            *(["--insecure"] if self.plan.insecure else []), *self.plan.node_arguments,
        ]  # fmt: skip
        child = Child(name, arguments, directory / f"logs/{name}.log")
        return LocalNode(name, child, data_port, admin_port, http_port)

    def _metadata(self) -> Child:
        admins = ",".join(join_endpoint(self.plan.host, node.admin_port) for node in self.nodes)
        arguments = [
            "metadata", "--quiet", "--publish", "--pool", self.plan.name, "--listen", self.endpoint,
            "--nodes", admins, "--state", str(self.plan.directory / "metadata/state"),
            "--http-port", str(self.http_port), "--slots", str(self.plan.slots),
            *(["--insecure"] if self.plan.insecure else []),
            *self.plan.metadata_arguments,
        ]  # fmt: skip
        return Child("metadata", arguments, self.plan.directory / "logs/metadata.log")

    def describe(self) -> dict[str, object]:
        """Return addresses and process ids, for people and scripts."""
        return {
            "endpoint": self.endpoint,
            "pool": self.plan.name,
            "directory": str(self.plan.directory),
            "local_dir": str(self.local_dir),
            "metadata": {
                "pid": self.metadata.pid,
                "http": self.url(self.http_port),
                "log": str(self.metadata.log),
            },
            "nodes": [
                {
                    "name": node.name,
                    "pid": node.child.pid,
                    "data_port": node.data_port,
                    "admin_port": node.admin_port,
                    "http": self.url(node.http_port),
                    "log": str(node.child.log),
                    "flash_bytes": self.flash_bytes(node),
                }
                for node in self.nodes
            ],
        }

    def url(self, port: int) -> str:
        """Return the address of a process's plain HTTP port."""
        return f"http://{join_endpoint(self.plan.host, port)}"

    def flash_bytes(self, node: LocalNode) -> int:
        """Return the size of a node's file: what it was made with, whatever the plan says now."""
        try:
            return (self.plan.directory / node.name / FLASH_FILE).stat().st_size
        except OSError:
            return 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def applied_epoch(admin_endpoint: str, lineage: bytes) -> int:
    """Return the epoch of the newest map that all workers of a node took over, 0 for none."""
    with open_channel(admin_endpoint, None) as channel:
        stub = node_admin_pb2_grpc.NodeAdminStub(channel)
        try:
            facts = stub.GetFacts(node_admin_pb2.GetFactsRequest(), timeout=FACTS_TIMEOUT_S)
        except grpc.RpcError:
            return 0
    return min(
        (one.applied_epoch for one in facts.workers if one.map_lineage == lineage), default=0
    )


def phases_of(state_dir: Path) -> tuple[int, set[str]]:
    """Return the process id of a node and the phases of its workers, as its ready file says."""
    try:
        document = json.loads((state_dir / READY_FILE).read_text())
        return int(document["pid"]), {str(worker["phase"]) for worker in document["workers"]}
    except (OSError, ValueError, KeyError, TypeError):
        return 0, set()  # not written yet


def prepare_directory(directory: Path) -> None:
    """Make the directories. ConfigError when that is not possible."""
    try:
        (directory / "logs").mkdir(parents=True, exist_ok=True)
        (directory / "metadata").mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot make {error.filename}: {error.strerror}; choose another --dir, one that you"
            " can write to"
        ) from error
