"""Maps that lie to a client: wrong owners are test_client_faults.py's; here ports, versions, holes.

Real stores and servers. The client answers with misses in time or with right bytes, and hits again
as soon as a true map comes.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from memkv.client.sync import Client
from memkv.limits import KIB
from memkv.shardmap.map import UNASSIGNED, MapVersion, ShardMap, pack_owners
from memkv.status import Status
from memkv.testing.local_workers import SLOTS, LocalWorkers, StaticSource, local_workers

KEYS = [f"key-{n}" for n in range(24)]
WAIT_MS = 120_000
LOST = {Status.UNAVAILABLE, Status.TIMEOUT}


@dataclass
class Told:
    """Two workers, a client, and what it is told."""

    pool: LocalWorkers
    truth: ShardMap
    client: Client
    source: StaticSource

    def tell(self, shard_map: ShardMap) -> None:
        self.source.publish(shard_map)

    def next_map(self, **changes: object) -> ShardMap:
        """Return the truth as a newer map, with a lie in it."""
        version = self.truth.version
        newer = MapVersion(version.lineage, version.term, version.epoch + 10)
        fields = {"version": newer, **changes}
        return replace(self.truth, **fields)  # type: ignore[arg-type]  # fields of ShardMap

    def hits(self) -> int:
        """Count right answers; a wrong one ends the test."""
        found = [self.client.get(key) for key in KEYS]
        assert all(data in (None, content(key)) for key, data in zip(KEYS, found, strict=True))
        return sum(data is not None for data in found)

    def true_map_again(self) -> None:
        version = self.truth.version
        newest = MapVersion(version.lineage, version.term, version.epoch + 20)
        self.tell(replace(self.truth, version=newest))
        assert self.client.wait_ready(WAIT_MS)
        assert self.hits() == len(KEYS)


def content(key: str) -> bytes:
    return key.encode() * 4 * KIB


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    with local_workers(tmp_path, 2) as pool:
        truth = pool.map()
        client, source = pool.client(truth, deadline_ms=20_000)
        for key in KEYS:
            assert client.put(key, content(key)) == Status.OK
        yield Told(pool, truth, client, source)


def test_ports_of_each_other(told: Told) -> None:
    one, two = told.truth.workers
    lie = (replace(one, port=two.port), replace(two, port=one.port))
    told.tell(told.next_map(workers=lie))
    assert told.hits() == 0
    assert told.client.put("lost", b"x") in LOST
    assert told.client.batch_is_exist(KEYS)[0] in LOST
    assert any("the map is older than the node" in why for why in problems(told.client))
    told.true_map_again()


def problems(client: Client) -> list[str]:
    """Wait for the reasons that the keeper finds."""
    pause = threading.Event()
    for _ in range(WAIT_MS // 20):
        if any("not connected yet" not in why for why in client.attachment.problems()):
            break
        pause.wait(0.02)
    return client.attachment.problems()


@contextmanager
def stranger(answer: bytes | None) -> Iterator[int]:
    """Something else listens: it answers everyone the same, or never (None)."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                    if answer is not None:
                        taken[-1].sendall(answer)
                        taken[-1].shutdown(socket.SHUT_WR)
                except OSError:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for one in taken:
                one.close()


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(100_000), b"", None],
    ids=["HTTP", "zeros", "closes", "silent"],
)  # fmt: skip
def test_a_port_of_somebody_else(told: Told, answer: bytes | None) -> None:
    with stranger(answer) as port:
        lie = tuple(replace(worker, port=port) for worker in told.truth.workers)
        told.tell(told.next_map(workers=lie))
        assert told.hits() == 0
        assert told.client.put("lost", b"x") in LOST
    told.true_map_again()


def test_a_port_where_nobody_listens(told: Told) -> None:
    lie = tuple(replace(worker, port=1) for worker in told.truth.workers)
    told.tell(told.next_map(workers=lie))
    assert told.hits() == 0
    assert any("does not accept connections" in why for why in problems(told.client))
    told.true_map_again()


def test_an_older_map_changes_nothing(told: Told) -> None:
    version = told.truth.version
    older = MapVersion(version.lineage, version.term, version.epoch - 1)
    told.tell(replace(told.truth, version=older, owners=pack_owners([0] * SLOTS)))
    assert told.hits() == len(KEYS)


def test_another_map_of_the_same_version_drops_both(told: Told) -> None:
    """A split brain: nobody can say which is wrong, so every key misses until a newer one comes."""
    told.tell(replace(told.truth, owners=pack_owners([0] * SLOTS)))
    assert told.client.attachment.shard_map is None
    assert told.hits() == 0
    assert told.client.put("lost", b"x") == Status.UNAVAILABLE
    told.true_map_again()


@pytest.mark.parametrize("hole", ["empty", "one slot", "an owner that is not there"])
def test_a_map_with_a_hole_is_not_taken(told: Told, hole: str) -> None:
    owners = [n % 2 for n in range(SLOTS)]
    if hole == "empty":
        told.tell(told.next_map(workers=(), owners=pack_owners([UNASSIGNED] * SLOTS)))
    elif hole == "one slot":
        told.tell(told.next_map(owners=pack_owners([UNASSIGNED, *owners[1:]])))
    else:
        told.tell(told.next_map(owners=pack_owners([7, *owners[1:]])))
    assert told.client.attachment.shard_map == told.truth
    assert told.hits() == len(KEYS)


def test_a_pool_that_is_empty_on_purpose_misses_at_once(told: Told) -> None:
    nobody = pack_owners([UNASSIGNED] * SLOTS)
    told.tell(told.next_map(workers=(), owners=nobody, intentional_empty=True))
    assert told.hits() == 0
    assert told.client.put("lost", b"x") == Status.UNAVAILABLE
    assert told.client.batch_is_exist(KEYS) == [Status.UNAVAILABLE] * len(KEYS)
    assert told.client.batch_remove(KEYS) == [Status.UNAVAILABLE] * len(KEYS)
    told.true_map_again()
