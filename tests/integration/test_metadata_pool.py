"""A whole pool of real processes: a metadata service and three nodes with files as drives."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from memkv._hotpath import slots_of
from memkv.clock import SystemClock
from memkv.metadata.endpoint import open_channel
from memkv.metadata.watch import MapWatcher, WatchConfig
from memkv.node.supervisor import MAP_FILE
from memkv.shardmap import Route, ShardMap, Worker, WorkerState
from memkv.status import Status
from memkv.testing.wire_client import Block, WireClient
from memkv.wire.items import Durability
from memkv_proto import node_admin_pb2, node_admin_pb2_grpc

POOL = "default/test"
SLOTS = 64
WAIT_S = 60.0
MIB = 1 << 20

NODE_PROGRAM = """
import json, sys
from pathlib import Path
from memkv.node.node_config import DriveConfig, NodeConfig
from memkv.node.supervisor import run_node
given = json.loads(sys.argv[1])
state = Path(given.pop("state_dir"))
drive = DriveConfig(state / "drive", given.pop("capacity_bytes"))
given["metadata"] = tuple(given["metadata"])
run_node(NodeConfig(state_dir=state, drives=(drive,), **given))
"""
METADATA_PROGRAM = """
import json, sys
from pathlib import Path
from memkv.metadata.main import MetadataConfig, run_metadata
from memkv.metadata.roster import LossPolicy
from memkv.metadata.server import ServerConfig
given = json.loads(sys.argv[1])
state = Path(given["state_dir"])
follow = tuple(given.get("follow", ()))
run_metadata(MetadataConfig(
    ServerConfig(given["pool"], port=given["port"], bookmark_interval_ms=200),
    nodes=tuple(given["nodes"]), state_file=None if follow else state / "state",
    follow=follow, slots=given["slots"], moving_slots_percent_max=100, poll_interval_ms=100,
    loss=LossPolicy(grace_ms=given["grace_ms"]), http_port=0, ready_file=state / "ready.json",
))
"""


def wait_until(what: str, holds: Callable[[], Any]) -> Any:
    """Wait for a true value and return it."""
    pause, clock = threading.Event(), SystemClock()
    deadline_ns = clock.monotonic_ns() + int(WAIT_S * 1e9)
    while True:
        value = holds()
        if value:
            return value
        assert clock.monotonic_ns() < deadline_ns, f"in vain: {what}"
        pause.wait(0.02)


def read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


@dataclass
class Program:
    """A process of the pool."""

    code: str
    settings: dict[str, Any]
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        argument = json.dumps({**self.settings, "state_dir": str(self.folder)})
        self.process = subprocess.Popen([sys.executable, "-c", self.code, argument])

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(WAIT_S)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            assert self.process.wait(WAIT_S) == 0


@dataclass
class TestPool:
    """Three nodes, one publisher, one watcher."""

    __test__ = False
    root: Path
    nodes: dict[str, Program] = field(default_factory=dict)
    metadata: Program | None = None
    extra: list[Program] = field(default_factory=list)
    watcher: MapWatcher | None = None

    def start(self, names: str = "abc", *, grace_ms: int = 30_000) -> None:
        metadata_port, *admin_ports = free_ports(1 + len(names))
        endpoint = f"127.0.0.1:{metadata_port}"
        admins = [f"127.0.0.1:{port}" for port in admin_ports]
        for name, port in zip(names, admin_ports, strict=True):
            settings = {
                "name": name,
                "pool": POOL,
                "capacity_bytes": 64 * MIB,
                "memory_bytes": 32 * MIB,
                "data_port": 0,
                "admin_port": port,
                "http_port": 0,
                "metadata": [endpoint],
                "slots": SLOTS,
            }
            self.nodes[name] = Program(NODE_PROGRAM, settings, self.root / name)
            self.nodes[name].start()
        settings = {
            "pool": POOL,
            "port": metadata_port,
            "nodes": admins,
            "slots": SLOTS,
            "grace_ms": grace_ms,
        }
        self.metadata = Program(METADATA_PROGRAM, settings, self.root / "metadata")
        self.metadata.start()
        self.watcher = MapWatcher(WatchConfig([endpoint], POOL, "test"), SystemClock())
        self.watcher.start()
        assert self.watcher.wait_for_map(WAIT_S) is not None

    def stop(self) -> None:
        if self.watcher is not None:
            self.watcher.stop()
        for program in [*self.nodes.values(), *self.extra, self.metadata]:
            if program is not None:
                program.stop()

    @property
    def route(self) -> Route:
        assert self.watcher is not None
        assert self.watcher.route is not None
        return self.watcher.route

    @property
    def map(self) -> ShardMap:
        return self.route.shard_map

    def worker(self, name: str) -> Worker:
        return next(worker for worker in self.map.workers if worker.node_name == name)

    def node_json(self, name: str) -> dict[str, Any]:
        return read_json(self.nodes[name].folder / "node.json")

    def facts(self, name: str) -> node_admin_pb2.WorkerFacts:
        endpoint = self.node_json(name)["admin_endpoint"]
        with open_channel(endpoint, None) as channel:
            stub = node_admin_pb2_grpc.NodeAdminStub(channel)
            answer = stub.GetFacts(node_admin_pb2.GetFactsRequest(), timeout=WAIT_S)
        return answer.workers[0]

    def wait_applied(self, *names: str) -> None:
        """Wait until these nodes act on the newest map."""
        for name in names:
            wait_until(f"{name} applies the newest map", partial(self._has_applied, name))

    def wait_all_own_slots(self) -> None:
        """The first map may come before all nodes do; what it lacks moves to them later."""
        wait_until("all nodes own slots", self._all_own_slots)

    def _all_own_slots(self) -> bool:
        owning = {self.map.workers[owner].node_name for owner in self.map.owners}
        return owning == set(self.nodes) and not self.map.moving

    def _has_applied(self, name: str) -> bool:
        return self.facts(name).applied_epoch == self.map.version.epoch

    def client(self, worker: Worker) -> WireClient:
        now_s = SystemClock().wall_s()
        return WireClient((worker.host, worker.port), POOL, now_s=now_s)

    def put(self, block_id: bytes) -> None:
        """Store a block durably with its owner."""
        with self.client(self.owner_of(block_id)) as client:
            block = Block(block_id, content(block_id), Durability.DURABLE)
            assert client.lane().put([block]) == [Status.OK]

    def get(self, worker: Worker, block_id: bytes) -> Status:
        """Look a block up at one worker, checking its bytes."""
        with self.client(worker) as client:
            got = client.lane().get(block_id)[0]
            if got.status is Status.OK:
                assert got.payload == content(block_id)
            return got.status

    def delete(self, worker: Worker, block_id: bytes) -> int:
        with self.client(worker) as client:
            return client.delete(block_id)[0]

    def owner_of(self, block_id: bytes) -> Worker:
        owner = self.map.owner(slot_of(block_id))
        assert owner is not None
        return owner


def content(block_id: bytes) -> bytes:
    return block_id * 1000


def slot_of(block_id: bytes) -> int:
    return int.from_bytes(slots_of(block_id, SLOTS), "little")


def block_ids(count: int) -> list[bytes]:
    return [hashlib.sha256(b"block %d" % number).digest() for number in range(count)]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def fetch(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=WAIT_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[TestPool]:
    made = TestPool(tmp_path)
    yield made
    made.stop()


def test_killed_node_comes_back_warm_and_deletes_stay_deleted(pool: TestPool) -> None:
    pool.start(grace_ms=5000)  # more than a busy machine keeps a healthy worker silent
    assert [worker.state for worker in pool.map.workers] == [WorkerState.ACTIVE] * 3
    pool.wait_applied("a", "b", "c")
    ids = block_ids(60)
    for block_id in ids:
        pool.put(block_id)
    lost = pool.worker("b")
    its = [block_id for block_id in ids if pool.owner_of(block_id) == lost]
    assert len(its) > 5
    worker_pid = pool.node_json("b")["workers"][0]["pid"]

    pool.nodes["b"].kill()
    wait_until("the worker dies with its supervisor", lambda: not is_alive(worker_pid))
    wait_until("b is lost", lambda: pool.worker("b").state is WorkerState.LOST)
    pool.wait_applied("a", "c")
    deleted, *rest = its
    assert pool.delete(pool.owner_of(deleted), deleted) == Status.OK
    interim = next(b for b in block_ids(500)[60:] if slot_of(b) == slot_of(rest[0]))
    pool.put(interim)

    pool.nodes["b"].start()
    wait_until("b is back", lambda: pool.worker("b").state is WorkerState.ACTIVE)
    pool.wait_applied("b")
    back = pool.worker("b")
    assert back.uuid == lost.uuid
    assert back.incarnation > lost.incarnation
    assert {pool.owner_of(block_id).uuid for block_id in its} == {back.uuid}
    assert [pool.get(back, block_id) for block_id in rest] == [Status.OK] * len(rest)
    holders = [back, *(pool.map.workers[i] for i in pool.map.previous_owners(slot_of(deleted)))]
    assert {pool.get(holder, deleted) for holder in holders} <= {Status.MISS, Status.WRONG_OWNER}

    wait_until("all moves end", lambda: not pool.map.moving)
    assert pool.get(back, interim) is Status.OK, "copied from the stand-in"
    assert pool.get(back, deleted) is Status.MISS
    assert [pool.get(back, block_id) for block_id in rest] == [Status.OK] * len(rest)


def test_killed_worker_is_started_again_and_keeps_its_slots(pool: TestPool) -> None:
    pool.start()
    pool.wait_all_own_slots()
    pool.wait_applied("a", "b", "c")
    ids = block_ids(20)
    for block_id in ids:
        pool.put(block_id)
    before = pool.worker("a")
    owners = pool.map.owners
    os.kill(pool.node_json("a")["workers"][0]["pid"], signal.SIGKILL)
    wait_until("its new port is known", lambda: pool.worker("a").port != before.port)
    assert pool.map.owners == owners
    pool.wait_applied("a")
    mine = [block_id for block_id in ids if pool.owner_of(block_id).uuid == before.uuid]
    assert mine
    assert {pool.get(pool.worker("a"), block_id) for block_id in mine} == {Status.OK}
    assert pool.facts("a").restarts == 1


def test_pool_serves_on_without_its_publisher_and_takes_it_back(pool: TestPool) -> None:
    pool.start()
    pool.wait_applied("a", "b", "c")
    before = pool.map.version
    assert pool.metadata is not None
    pool.metadata.kill()
    for block_id in block_ids(10):
        pool.put(block_id)
        assert pool.get(pool.owner_of(block_id), block_id) is Status.OK
    pool.metadata.start()
    wait_until("the new term is seen", lambda: pool.map.version.term == before.term + 1)
    assert pool.map.version.epoch > before.epoch
    assert pool.map.version.lineage == before.lineage


def test_node_restarts_with_its_kept_map_while_metadata_is_away(pool: TestPool) -> None:
    pool.start()
    pool.wait_applied("a")
    block_id = next(b for b in block_ids(100) if pool.owner_of(b) == pool.worker("a"))
    pool.put(block_id)
    # A node serves with a map before it has written it down.
    wait_until("a has kept its map", (pool.nodes["a"].folder / MAP_FILE).exists)
    assert pool.metadata is not None
    pool.metadata.kill()
    old = pool.node_json("a")
    pool.nodes["a"].kill()
    pool.nodes["a"].start()

    def new_port() -> int:
        now = pool.node_json("a")
        return int(now["workers"][0]["port"]) if now.get("pid") != old["pid"] else 0

    port = wait_until("a listens", new_port)
    worker = Worker(pool.worker("a").uuid, 0, "a", "127.0.0.1", port)
    wait_until("a serves", lambda: pool.get(worker, block_id) is Status.OK)


def test_replica_follows_the_publisher(pool: TestPool) -> None:
    pool.start("a")
    assert pool.metadata is not None
    endpoint = f"127.0.0.1:{pool.metadata.settings['port']}"
    settings = {**pool.metadata.settings, "port": 0, "nodes": [], "follow": [endpoint]}
    replica = Program(METADATA_PROGRAM, settings, pool.root / "replica")
    pool.extra.append(replica)
    replica.start()
    ready = wait_until("it listens", lambda: read_json(replica.folder / "ready.json"))
    watcher = MapWatcher(WatchConfig([ready["endpoint"]], POOL, "second"), SystemClock())
    watcher.start()
    try:
        route = watcher.wait_for_map(WAIT_S)
        assert route is not None
        assert route.shard_map == pool.map
    finally:
        watcher.stop()


def test_draining_node_gives_its_slots_away(pool: TestPool) -> None:
    pool.start()
    spec = node_admin_pb2.NodeSpec(generation=1, state=node_admin_pb2.NODE_STATE_DRAINING)
    with open_channel(pool.node_json("c")["admin_endpoint"], None) as channel:
        stub = node_admin_pb2_grpc.NodeAdminStub(channel)
        answer = stub.Apply(node_admin_pb2.ApplyRequest(spec=spec), timeout=WAIT_S)
    assert answer.spec_generation == 1
    index = pool.map.index_of(pool.worker("c").uuid)
    assert index is not None
    wait_until("c owns nothing", lambda: not pool.map.slots_of(index))
    assert pool.worker("c").state is WorkerState.DRAINING
    wait_until("nothing is left to move", lambda: not pool.map.moving)


def test_metrics_and_probes(pool: TestPool) -> None:
    pool.start()
    pool.wait_applied("a", "b", "c")
    for block_id in block_ids(10):
        pool.put(block_id)
    port = pool.node_json("a")["http_port"]
    assert fetch(port, "/healthz") == (200, "ok\n")
    assert fetch(port, "/readyz") == (200, "ok\n")
    assert fetch(port, "/else")[0] == 404

    def put_items() -> float:
        families = text_string_to_metric_families(fetch(port, "/metrics")[1])
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == "memkv_items_total" and sample.labels["operation"] == "put"
        )

    mine = sum(1 for block_id in block_ids(10) if pool.owner_of(block_id) == pool.worker("a"))
    wait_until("the puts are counted", lambda: put_items() == mine)
    ready = read_json(pool.root / "metadata" / "ready.json")
    names = {
        family.name
        for family in text_string_to_metric_families(fetch(ready["http_port"], "/metrics")[1])
    }
    assert {"memkv_metadata_map_epoch", "memkv_metadata_workers"} <= names
    assert fetch(ready["http_port"], "/readyz") == (200, "ok\n")
