"""The command `memkv node` on the raw drive, and the client that users have, in two namespaces."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memkv.client.attach import Attachment
from memkv.client.options import ConnectOptions, PutOptions
from memkv.client.sync import Client
from memkv.limits import MIB
from memkv.localpool.process import Child
from memkv.node.supervisor import READY_FILE
from memkv.pattern import block, first_wrong_byte, seed_of
from memkv.shardmap.map import MapVersion, ShardMap, Worker, pack_owners
from memkv.status import Status
from memkv.testing.guest_node import drive
from memkv.testing.local_workers import POOL, SLOTS, StaticSource
from memkv.testing.namespaces import NODE_ADDRESS, within

PORT = 7080
START_S_MAX = 200.0
BLOCKS = 6
DEADLINE_MS = 30_000


class Node:
    """The command, its supervisor and its worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.child = Child("node", [
            "node", "--quiet", "--pool", POOL, "--dir", str(folder), "--drives", str(drive(2)),
            "--memory", "128MiB", "--slots", str(SLOTS), "--host", NODE_ADDRESS, "--insecure",
            "--data-port", str(PORT), "--admin-port", str(PORT + 1), "--http-port", "0",
        ], folder / "log")  # fmt: skip

    def start(self) -> bytes:
        """Start it in its namespace; return its worker's UUID once it serves."""
        (self.folder / READY_FILE).unlink(missing_ok=True)
        with within("node"):
            self.child.start()
        pause, give_up = threading.Event(), time.monotonic() + START_S_MAX
        while not (uuid := self._uuid()):
            self.child.check_running()
            assert time.monotonic() < give_up, self.child.log_tail()
            pause.wait(0.2)
        return uuid

    def _uuid(self) -> bytes:
        try:
            text = (self.folder / READY_FILE).read_text()
        except FileNotFoundError:
            return b""
        _, _, rest = text.partition('"phase": "ready"')
        return bytes.fromhex(rest.partition('"uuid": "')[2].partition('"')[0])


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.child.stop()


def client_of(uuid: bytes) -> Client:
    """Return a client; call it, and use the client, within its namespace."""
    source = StaticSource()
    worker = Worker(uuid, 1, "node", NODE_ADDRESS, PORT)
    source.publish(
        ShardMap(MapVersion(bytes(16), 1, 1), SLOTS, (worker,), pack_owners([0] * SLOTS))
    )
    options = ConnectOptions(
        "127.0.0.1:1", POOL, "default", DEADLINE_MS, bootstrap_timeout_ms=DEADLINE_MS
    )
    client = Client(options, Attachment(options, source))
    assert client.wait_ready(DEADLINE_MS)
    return client


def test_the_command_serves_a_raw_drive_to_another_namespace_and_restarts_warm(
    node: Node,
) -> None:
    keys = [f"block {number}" for number in range(BLOCKS)]
    began = time.monotonic()
    uuid = node.start()
    print(f"\nmemkv node serves after {time.monotonic() - began:.1f} s")
    with within("client"), client_of(uuid) as client:
        for key in keys:
            data = block(seed_of(key), MIB)
            assert client.put(key, data, PutOptions(durability="durable")) == Status.OK
        assert client.get("another") is None
    node.child.kill()
    assert node.start() == uuid
    with within("client"), client_of(uuid) as client:
        for key in keys:
            got = client.get(key)
            assert got is not None
            assert len(got) == MIB
            assert first_wrong_byte(got, seed_of(key)) is None
