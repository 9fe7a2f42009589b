"""C8: the metadata service is gone, and clients and nodes go on with what they know."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memkv.client.options import ConnectOptions
from memkv.client.sync import Client
from memkv.clock import SystemClock, deadline_after_ms
from memkv.errors import MemKVError
from memkv.limits import KIB, MIB
from memkv.localpool.pool import LocalPool, PoolPlan
from memkv.metadata.watch import fetch_map
from memkv.status import Status

WAIT_MS = 60_000
ATTACH_MS_MAX = 5_000
DATA = bytes(range(256)) * KIB


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPool]:
    with LocalPool(PoolPlan(tmp_path_factory.mktemp("away"), 2, 128 * MIB, 64 * MIB)) as made:
        yield made


@pytest.fixture(autouse=True)
def whole(pool: LocalPool) -> Iterator[None]:
    """The metadata service is there before and after each test."""
    yield
    if not pool.metadata.is_running:
        pool.metadata.start()
    until(lambda: answers(pool))


def client_of(pool: LocalPool, cache_dir: Path | None = None) -> Client:
    return Client(ConnectOptions(pool.endpoint, cache_dir=cache_dir, deadline_ms=5_000))


def answers(pool: LocalPool) -> bool:
    try:
        fetch_map(pool.endpoint, pool.plan.name, timeout_s=1)
    except MemKVError:
        return False
    return True


def until(holds: Callable[[], bool]) -> None:
    clock = SystemClock()
    deadline_ns = deadline_after_ms(clock, WAIT_MS)
    while not holds():
        assert clock.monotonic_ns() < deadline_ns


def test_a_client_that_is_attached_goes_on(pool: LocalPool) -> None:
    with client_of(pool) as client:
        assert client.wait_ready(WAIT_MS)
        assert client.put("before", DATA) == Status.OK
        pool.metadata.kill()
        for n in range(20):
            assert client.put(f"during-{n}", DATA) == Status.OK
            assert client.get(f"during-{n}") == DATA
        assert client.get("before") == DATA
        assert client.remove("before") == Status.OK
        assert client.get("before") is None
        assert client.match_prefix([f"during-{n}" for n in range(20)]) == 20


def test_a_new_client_goes_by_the_map_of_an_earlier_one(pool: LocalPool, tmp_path: Path) -> None:
    with client_of(pool, tmp_path) as client:
        assert client.wait_ready(WAIT_MS)
        assert client.put("kept", DATA) == Status.OK
    pool.metadata.kill()
    with client_of(pool, tmp_path) as client:
        assert client.wait_ready(WAIT_MS)
        assert client.get("kept") == DATA
        assert client.put("new", DATA) == Status.OK
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())


def test_a_new_client_goes_by_the_kept_map_when_the_service_hangs(
    pool: LocalPool, tmp_path: Path
) -> None:
    with client_of(pool, tmp_path) as client:
        assert client.wait_ready(WAIT_MS)
        assert client.put("hangs", DATA) == Status.OK
    os.kill(pool.metadata.pid, signal.SIGSTOP)
    try:
        with client_of(pool, tmp_path) as client:
            assert client.wait_ready(WAIT_MS)
            assert client.get("hangs") == DATA
    finally:
        os.kill(pool.metadata.pid, signal.SIGCONT)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damaged_files_count_as_none(pool: LocalPool, tmp_path: Path, damage: str) -> None:
    with client_of(pool, tmp_path) as client:
        assert client.wait_ready(WAIT_MS)
    files = list(tmp_path.iterdir())
    assert {path.suffix for path in files} == {".map", ".ticket"}
    for path in files:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x10
        path.write_bytes({"cut": bytes(data[:-3]), "flipped": bytes(data), "empty": b""}[damage])
    pool.metadata.kill()
    with client_of(pool, tmp_path) as client:
        assert client.attachment.shard_map is None
        assert client.get("key") is None


def test_without_the_service_and_a_kept_map_a_start_is_not_held_up(pool: LocalPool) -> None:
    """And the client attaches soon after the service is back."""
    pool.metadata.kill()
    began = time.monotonic()
    with client_of(pool) as client:
        assert time.monotonic() - began < WAIT_MS / 1000
        assert client.get("key") is None
        assert client.put("key", DATA) == Status.UNAVAILABLE
        pool.metadata.start()
        until(lambda: answers(pool))
        assert client.wait_ready(ATTACH_MS_MAX)
        assert client.put("key", DATA) == Status.OK
        assert client.get("key") == DATA
