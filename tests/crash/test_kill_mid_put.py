"""kill -9 of a node in the middle of puts, on a real file: what it acknowledged as durable is back.

MEMKV_CRASH_KILLS says how often the node is killed: a few times in `make test`, 50 in
`make test-crash`. One life after the other uses the same file; after each restart every block of
every life is read and judged.
"""

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memkv.client.attach import Attachment
from memkv.client.options import ConnectOptions, PutOptions
from memkv.client.sync import Client
from memkv.clock import SystemClock, deadline_after_ms
from memkv.limits import KIB, MIB
from memkv.localpool.ports import free_ports
from memkv.localpool.process import Child
from memkv.node.supervisor import READY_FILE
from memkv.pattern import block
from memkv.shardmap.map import MapVersion, ShardMap, Worker, pack_owners
from memkv.status import Status
from memkv.testing.local_workers import POOL, StaticSource
from memkv.testing.oracle import ContentOracle, KnownPut, Verdict, content_seed

KILLS = int(os.environ.get("MEMKV_CRASH_KILLS", "4"))
WAIT_MS = 240_000
PUTTERS = 4
PUTS_PER_LIFE_MAX = 24
LENGTHS = (1, 4 * KIB - 1, 4 * KIB, 70_000, 300_000, MIB + 1)
LIFE_BYTES = 12 * MIB  # of flash that the puts of a life take at most, those under way included
TENANT = "default"


class Node:
    """`memkv node` on one file, without a metadata service: it serves every key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        data, admin, http = free_ports(3)
        self.port = data
        self.child = Child("node", [
            "node", "--quiet", "--pool", POOL, "--dir", str(folder), "--memory", "64MiB",
            "--capacity", str(64 * MIB + KILLS * LIFE_BYTES), "--data-port", str(data),
            "--admin-port", str(admin), "--http-port", str(http),
        ], folder / "log")  # fmt: skip

    def start(self) -> None:
        (self.folder / READY_FILE).unlink(missing_ok=True)
        self.child.start()

    def client(self) -> Client:
        """Return a client once the node serves; it needs the worker's UUID, as a map would say."""
        uuid = wait_for(self._worker_uuid)
        source = StaticSource(TENANT)
        worker = Worker(uuid, 1, "node", "127.0.0.1", self.port)
        source.publish(ShardMap(MapVersion(bytes(16), 1, 1), 64, (worker,), pack_owners([0] * 64)))
        options = ConnectOptions("127.0.0.1:1", POOL, TENANT, 10_000, bootstrap_timeout_ms=WAIT_MS)
        client = Client(options, Attachment(options, source))
        assert client.wait_ready(WAIT_MS), self.child.log_tail()
        return client

    def _worker_uuid(self) -> bytes:
        self.child.check_running()
        try:
            text = (self.folder / READY_FILE).read_text()
        except FileNotFoundError:
            return b""
        _, _, rest = text.partition('"phase": "ready"')
        return bytes.fromhex(rest.partition('"uuid": "')[2].partition('"')[0])


def wait_for(look: Callable[[], bytes]) -> bytes:
    clock, pause = SystemClock(), threading.Event()
    deadline_ns = deadline_after_ms(clock, WAIT_MS)
    while not (found := look()):
        assert clock.monotonic_ns() < deadline_ns, "the node does not serve"
        pause.wait(0.01)
    return found


class Life:
    """One life of the node: threads that put until it is killed under them."""

    def __init__(self, client: Client, oracle: ContentOracle, number: int) -> None:
        self.keys: list[str] = []
        self.cut = 0
        self._client = client
        self._oracle = oracle
        self._number = number
        self._random = random.Random(number)
        self._acknowledged = 0
        self._changed = threading.Condition()

    def run_until_killed(self, node: Node) -> None:
        putters = [threading.Thread(target=self._put_on, args=(n,)) for n in range(PUTTERS)]
        for putter in putters:
            putter.start()
        enough = self._random.randrange(1, PUTS_PER_LIFE_MAX - PUTTERS)
        with self._changed:
            in_time = self._changed.wait_for(lambda: self._acknowledged >= enough, WAIT_MS / 1000)
        node.child.kill()  # the others are in the middle of theirs
        for putter in putters:
            putter.join()
        assert in_time

    def _put_on(self, putter: int) -> None:
        for number in range(PUTS_PER_LIFE_MAX // PUTTERS * 2):
            with self._changed:
                if len(self.keys) >= PUTS_PER_LIFE_MAX:
                    return
                key = f"{self._number}-{putter}-{number}"
                length = self._random.choice(LENGTHS)
                durable = self._random.random() < 0.8
                self.keys.append(key)
                put = self._oracle.begin_put((TENANT, key), length)
            data = block(content_seed((TENANT, key), put.number), length)
            options = PutOptions(durability="durable" if durable else "cached")
            if not self._note(put, self._client.put(key, data, options), durable):
                return

    def _note(self, put: KnownPut, status: int, durable: bool) -> bool:
        with self._changed:
            put.durable = durable and status == Status.OK
            self._acknowledged += status == Status.OK
            self.cut += status != Status.OK
            self._changed.notify_all()
        return status == Status.OK


def judge(client: Client, oracle: ContentOracle, keys: list[str]) -> None:
    """No wrong byte, nothing deleted, and everything durable."""
    hits = set()
    for key in keys:
        data = client.get(key)
        if data is not None:
            assert oracle.judge((TENANT, key), data, 0) is Verdict.OK, key
            hits.add((TENANT, key))
    assert set(oracle.required(0)) <= hits, "a durable block is lost"


def delete_some(client: Client, oracle: ContentOracle, keys: list[str]) -> None:
    for key in keys:
        oracle.delete_asked((TENANT, key))
        assert client.remove(key) == Status.OK
        oracle.delete_acknowledged((TENANT, key))


@contextmanager
def living(node: Node) -> Iterator[Client]:
    node.start()
    with node.client() as client:
        yield client


@pytest.mark.slow
@pytest.mark.timeout(60 + 30 * KILLS)
def test_killed_in_mid_put_every_durable_block_is_back_and_no_byte_is_wrong(
    tmp_path: Path,
) -> None:
    node, oracle = Node(tmp_path), ContentOracle()
    keys: list[str] = []
    cut = 0
    try:
        for number in range(KILLS):
            with living(node) as client:
                judge(client, oracle, keys)
                delete_some(client, oracle, keys[-2:])
                life = Life(client, oracle, number)
                life.run_until_killed(node)
                keys += life.keys
                cut += life.cut
        with living(node) as client:
            judge(client, oracle, keys)
            assert len(oracle.required(0)) > KILLS
        assert cut > KILLS // 2, "the kills were to come in the middle of puts"
    finally:
        node.child.stop()
