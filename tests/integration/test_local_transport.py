"""Blocks through shared memory: a client and workers on this machine, real files and sockets."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from memkv.client.aio_client import AsyncClient
from memkv.client.attach import Attachment
from memkv.client.options import LOCAL_OFF, PutOptions
from memkv.client.sync import Client
from memkv.limits import GIB, KIB, MIB
from memkv.node.connection import Connection
from memkv.pattern import block, seed_of
from memkv.shardmap.map import ShardMap
from memkv.status import Status
from memkv.testing.local_workers import (
    LocalWorkers,
    StaticSource,
    local_workers,
    open_breaker,
)
from memkv.testing.shared_memory import SharedMemory
from memkv.testing.waiting import eventually
from memkv.wire.opcodes import Opcode

ROOM = 52 * MIB
KINDS = ("sealed memfd", "unsealed memfd", "file")


def content(key: str, size: int) -> bytes:
    return bytes(block(seed_of(key), size))


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[LocalWorkers]:
    with local_workers(tmp_path, 1, memory_bytes=32 * MIB) as pool:
        yield pool
    (tmp_path / "flash-0").unlink()  # pytest keeps directories, and drives are large


@pytest.fixture
def large_pool(tmp_path: Path) -> Iterator[LocalWorkers]:
    """A worker that takes the largest blocks."""
    with local_workers(
        tmp_path, 1, capacity_bytes=2 * GIB, memory_bytes=96 * MIB, block_bytes_max=16 * MIB
    ) as pool:
        yield pool
    (tmp_path / "flash-0").unlink()


@pytest.fixture
def small_pool(tmp_path: Path) -> Iterator[LocalWorkers]:
    """A worker whose DRAM holds a fraction of its flash."""
    with local_workers(tmp_path, 1, memory_bytes=24 * MIB, block_bytes_max=MIB) as pool:
        yield pool
    (tmp_path / "flash-0").unlink()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def shared(
    client: Client, stack: ExitStack, directory: Path, kind: str = KINDS[0], size: int = ROOM,
    fd_offset: int = 0,
) -> SharedMemory:
    path = directory / "shared" if kind == "file" else None
    memory = SharedMemory(size, path=path, sealed=kind == KINDS[0], fd_offset=fd_offset)
    stack.callback(memory.close)
    assert client.register_buffer(memory.address, size, fd=memory.fd, fd_offset=fd_offset) == 0
    return memory


def served(pool: LocalWorkers, opcode: Opcode) -> int:
    statistics = pool.workers[0].server.statistics()
    return sum(count for (op, _), count in statistics.items.items() if op == opcode)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_every_size_go_out_and_come_back(
    large_pool: LocalWorkers, stack: ExitStack, tmp_path: Path, kind: str
) -> None:
    pool = large_pool
    client, _ = pool.client(pool.map(), deadline_ms=20_000)
    memory = shared(client, stack, tmp_path, kind, fd_offset=64 * KIB)
    sizes = [1, 4095, 4096, 4097, 64 * KIB, 256 * KIB + 1, 2 * MIB, 16 * MIB]
    for size in sizes:
        key = f"{kind}/{size}"
        memory.write(0, content(key, size))
        assert client.batch_put_from([key], [memory.address], [size]) == [0]
        memory.write(0, bytes(min(size, MIB)))
        # Misaligned for a drive, and room behind the block that must stay as it is.
        at = 17 * MIB + 13
        memory.write(at + size, b"\x77" * 100)
        # One small block alone would go the short way over TCP.
        places = [memory.address + at, memory.address + 34 * MIB]
        assert client.batch_get_into([key] * 2, places, [size] * 2) == [size] * 2
        assert memory.read(at, size) == memory.read(34 * MIB, size) == content(key, size)
        assert memory.read(at + size, 100) == b"\x77" * 100
    assert served(pool, Opcode.LOCAL_GET) == 2 * served(pool, Opcode.LOCAL_PUT) == 2 * len(sizes)
    assert served(pool, Opcode.GET) == served(pool, Opcode.PUT) == 0
    statistics = client.stats()
    assert statistics.local_keys == 3 * len(sizes)
    assert statistics.local_fallbacks == 0
    mapped = pool.workers[0].server.statistics().local_mapped_bytes
    assert mapped == (ROOM if kind == KINDS[0] else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_scatter_lists(pool: LocalWorkers, stack: ExitStack, tmp_path: Path, kind: str) -> None:
    client, _ = pool.client(pool.map(), deadline_ms=20_000)
    memory = shared(client, stack, tmp_path, kind)
    size = 600 * KIB
    cuts = [0, 1, 4 * KIB, 4 * KIB, 300_000, size]  # pieces of many lengths, an empty one too
    data = content("scattered", size)
    for number, (a, b) in enumerate(itertools.pairwise(cuts)):
        memory.write(number * MIB + number, data[a:b])
    pieces = [memory.address + n * MIB + n for n in range(len(cuts) - 1)]
    lengths = [b - a for a, b in itertools.pairwise(cuts)]
    assert client.batch_put_from_multi(["scattered"], [pieces], [lengths]) == [0]
    memory.write(0, bytes(8 * MIB))
    backwards = [memory.address + (7 - n) * MIB + n for n in range(len(lengths))]
    assert client.batch_get_into_multi(["scattered"], [backwards], [lengths]) == [size]
    got = [memory.read((7 - n) * MIB + n, length) for n, length in enumerate(lengths)]
    assert b"".join(got) == data
    assert served(pool, Opcode.LOCAL_GET) == served(pool, Opcode.LOCAL_PUT) == 1


def test_a_batch_mixes_shared_and_other_memory(
    pool: LocalWorkers, stack: ExitStack, tmp_path: Path
) -> None:
    client, _ = pool.client(pool.map())
    memory = shared(client, stack, tmp_path)
    with SharedMemory(MIB) as other:  # not registered
        keys = [f"mixed-{n}" for n in range(20)]
        size = 40 * KIB
        places = [
            (memory if n % 2 else other).address + n * size for n in range(len(keys))
        ]
        for n, key in enumerate(keys):
            (memory if n % 2 else other).write(n * size, content(key, size))
        assert client.batch_put_from(keys, places, [size] * 20) == [0] * 20
        memory.write(0, bytes(MIB))
        other.write(0, bytes(MIB))
        assert client.batch_get_into(keys, places, [size] * 20) == [size] * 20
        for n, key in enumerate(keys):
            assert (memory if n % 2 else other).read(n * size, size) == content(key, size)
    assert client.stats().local_keys == 20
    assert client.stats().local_fallbacks == 0


def test_misses_small_buffers_and_first_puts(
    pool: LocalWorkers, stack: ExitStack, tmp_path: Path
) -> None:
    client, _ = pool.client(pool.map())
    memory = shared(client, stack, tmp_path)
    memory.write(0, content("first", 100_000))
    memory.write(MIB, content("second", 100_000))
    places, sizes = [memory.address, memory.address + MIB], [100_000] * 2
    options = PutOptions(durability="durable")
    assert client.batch_put_from(["same", "same"], places, sizes, options) == [0, 0]
    got = client.batch_get_into(
        ["absent", "same", "same"], [p + 2 * MIB for p in (*places, memory.address + 2 * MIB)],
        [100_000, 99_999, 100_000],
    )  # fmt: skip
    assert got == [Status.MISS, Status.BUFFER_TOO_SMALL, 100_000]
    assert memory.read(4 * MIB, 100_000) == content("first", 100_000)


def test_flash_is_read_into_the_clients_memory(
    small_pool: LocalWorkers, stack: ExitStack, tmp_path: Path
) -> None:
    pool = small_pool
    client, _ = pool.client(pool.map(), deadline_ms=20_000)
    memory = shared(client, stack, tmp_path)
    size = MIB - 4000  # the last page is partial
    keys = [f"flash-{n}" for n in range(70)]  # more than DRAM holds
    for key in keys:
        memory.write(0, content(key, size))
        assert client.batch_put_from(
            [key], [memory.address], [size], PutOptions(durability="durable")
        ) == [0]
    store = pool.workers[0].store
    before = store.statistics().counters
    for first in range(0, len(keys), 10):
        some = keys[first : first + 10]
        places = [memory.address + n * MIB for n in range(10)]
        assert client.batch_get_into(some, places, [size] * 10) == [size] * 10
        for n, key in enumerate(some):
            assert memory.read(n * MIB, size) == content(key, size)
    after = store.statistics().counters
    assert after["hits_flash"] - before["hits_flash"] >= 20
    # A block that comes back at once is kept in DRAM, and read from there after that.
    for _ in range(3):
        assert client.batch_get_into([keys[0]], [memory.address], [size]) == [size]
    assert store.statistics().counters["hits_dram"] > after["hits_dram"]
    # What cannot be read straight (not aligned) comes by way of DRAM.
    assert client.batch_get_into([keys[5]], [memory.address + 1], [size]) == [size]
    assert memory.read(1, size) == content(keys[5], size)


def test_damage_on_flash_is_a_miss(
    small_pool: LocalWorkers, stack: ExitStack, tmp_path: Path
) -> None:
    pool = small_pool
    client, _ = pool.client(pool.map(), deadline_ms=20_000)
    memory = shared(client, stack, tmp_path)
    size = MIB
    keys = [f"rot-{n}" for n in range(60)]
    for key in keys:
        memory.write(0, content(key, size))
        options = PutOptions(durability="durable")
        assert client.batch_put_from([key], [memory.address], [size], options) == [0]
    flash = tmp_path / "flash-0"
    with flash.open("r+b") as file:
        image = file.read()
        for key in keys[:12]:  # a byte of the payload of each, in the middle
            at = image.find(content(key, size)[: 4 * KIB])
            if at >= 0:
                file.seek(at + MIB // 2)
                file.write(bytes([image[at + MIB // 2] ^ 1]))
    wrong = 0
    for key in keys:
        memory.write(0, b"\x11" * 100)
        status = client.batch_get_into([key], [memory.address], [size])[0]
        wrong += status < 0
        assert status in (size, Status.CORRUPT, Status.MISS)
        if status == size:
            assert memory.read(0, size) == content(key, size)
    assert wrong >= 1  # those that were read from flash
    assert client.stats().corrupt >= wrong


def test_unregistered_memory_goes_over_tcp_and_still_hits(
    pool: LocalWorkers, stack: ExitStack, tmp_path: Path
) -> None:
    client, _ = pool.client(pool.map())
    memory = shared(client, stack, tmp_path)
    memory.write(0, content("kept", MIB))
    assert client.batch_put_from(["kept"], [memory.address], [MIB]) == [0]
    assert client.unregister_buffer(memory.address) == 0
    server = pool.workers[0].server
    assert client.batch_get_into(["kept"], [memory.address + MIB], [MIB]) == [MIB]
    assert memory.read(MIB, MIB) == content("kept", MIB)
    assert served(pool, Opcode.LOCAL_GET) == 0
    assert served(pool, Opcode.GET) == 1
    eventually(lambda: server.statistics().local_regions == 0, "the end of the region")
    assert server.statistics().local_mapped_bytes == 0


def test_regions_registered_before_the_worker_is_there(
    pool: LocalWorkers, stack: ExitStack, tmp_path: Path
) -> None:
    client, source = pool.client(pool.map([0] * 64))
    source.publish(replace_port(pool, 1))  # nobody answers there
    memory = shared(client, stack, tmp_path, size=MIB)
    source.publish(pool.map())
    eventually(
        lambda: all(s.local.lanes is not None for s in client.attachment.core.sessions()),
        "local lanes",
    )
    memory.write(0, b"x" * 1000)
    assert client.batch_put_from(["later"], [memory.address], [1000]) == [0]
    assert served(pool, Opcode.LOCAL_PUT) == 1


def test_memory_that_a_worker_does_not_take_goes_over_tcp_with_the_reason(
    pool: LocalWorkers, stack: ExitStack, tmp_path: Path
) -> None:
    client, _ = pool.client(pool.map())
    memory = stack.enter_context(SharedMemory(MIB))
    device = os.open("/dev/zero", os.O_RDWR)
    assert client.register_buffer(memory.address, MIB, fd=device) == 0
    os.close(device)
    memory.write(0, content("anyway", 300_000))
    assert client.batch_put_from(["anyway"], [memory.address], [300_000]) == [0]
    session = client.attachment.core.sessions()[0]
    assert "no regular file" in session.local.last_error
    (problem,) = client.attachment.problems()
    assert "so its blocks go over TCP" in problem
    assert "no regular file" in problem
    assert (client.stats().local_keys, client.stats().local_fallbacks) == (0, 1)
    # Memory that is not what its fd says: the bytes placed are not those the client sees.
    client.unregister_buffer(memory.address)
    assert client.attachment.problems() == [], "nothing to share, nothing to complain of"
    with SharedMemory(MIB) as other:
        assert client.register_buffer(memory.address, MIB, fd=other.fd) == 0
        half = memory.address + MIB // 2
        assert client.batch_get_into(["anyway"], [half], [300_000]) == [300_000]  # asked again
        assert memory.read(MIB // 2, 300_000) == content("anyway", 300_000)
        assert client.stats().corrupt == 1
        assert client.batch_put_from(["never"], [memory.address], [300_000]) == [Status.CORRUPT]
        assert client.batch_is_exist(["never"]) == [0]


def replace_port(pool: LocalWorkers, port: int) -> ShardMap:
    shard_map = pool.map()
    workers = tuple(replace(worker, port=port) for worker in shard_map.workers)
    return ShardMap(shard_map.version, shard_map.slots, workers, shard_map.owners)


@pytest.mark.parametrize("local_dir", [LOCAL_OFF, "given", "elsewhere"])
def test_the_directory_decides(
    pool: LocalWorkers, stack: ExitStack, tmp_path: Path, local_dir: str
) -> None:
    source = StaticSource()
    source.publish(pool.map())
    client, _ = pool.client(pool.map())
    given = {"given": str(tmp_path / "run"), "elsewhere": str(tmp_path)}.get(local_dir, local_dir)
    options = replace(client.attachment.core.options, local_dir=given)
    mine = stack.enter_context(Client(options, Attachment(options, source)))
    assert mine.attachment.problems() == []
    memory = shared(mine, stack, tmp_path, size=MIB)
    memory.write(0, b"y" * 5000)
    assert mine.batch_put_from(["there"], [memory.address], [5000]) == [0]
    assert served(pool, Opcode.LOCAL_PUT) == (local_dir == "given")
    problems = mine.attachment.problems()
    if local_dir == "elsewhere":
        assert f"there is no socket {tmp_path}/" in problems[0]
        assert "MEMKV_LOCAL_DIR" in problems[0]
    else:
        assert problems == []


def test_idle_lanes_come_back_without_a_call(
    pool: LocalWorkers, stack: ExitStack, tmp_path: Path
) -> None:
    """The keeper looks at idle lanes: no call pays for finding out that a lane is gone."""
    client, _ = pool.client(pool.map())
    shared(client, stack, tmp_path, size=MIB)
    server = pool.workers[0].server
    wanted = client.attachment.core.options.local_lanes

    def connections() -> set[Connection]:  # lanes, and the one that tells of regions
        return {c for c in list(server._connections.values()) if c.is_local}

    eventually(lambda: len(connections()) == wanted + 1, "all lanes")
    before = connections()
    for connection in before:
        connection.cut()
    eventually(lambda: len(connections() - before) >= wanted, "new lanes")
    assert client.stats().local_keys == client.stats().local_fallbacks == 0


def test_lost_lanes_cost_a_fallback_and_come_back(
    pool: LocalWorkers, stack: ExitStack, tmp_path: Path
) -> None:
    client, _ = pool.client(pool.map())
    memory = shared(client, stack, tmp_path, size=4 * MIB)
    memory.write(0, content("back", MIB))
    assert client.batch_put_from(["back"], [memory.address], [MIB]) == [0]
    side = client.attachment.core.sessions()[0].local
    lanes = side.lanes
    assert lanes is not None
    eventually(lambda: lanes.group.lanes_open == lanes.group.lanes_max, "all lanes")
    group, wanted = lanes.group, lanes.group.statistics().lanes_lost + lanes.group.lanes_max
    server = pool.workers[0].server
    for connection in list(server._connections.values()):
        if connection.is_local:
            connection.cut()
    eventually(lambda: group.reap() >= 0 and group.statistics().lanes_lost >= wanted, "the cut")
    before = client.stats().local_fallbacks
    assert client.batch_get_into(["back"], [memory.address + MIB], [MIB]) == [MIB]
    assert client.stats().local_fallbacks >= before
    eventually(lambda: lanes.group.lanes_open == lanes.group.lanes_max, "new lanes")
    counted = served(pool, Opcode.LOCAL_GET)
    assert client.batch_get_into(["back"], [memory.address + 2 * MIB], [MIB]) == [MIB]
    assert served(pool, Opcode.LOCAL_GET) == counted + 1
    assert memory.read(2 * MIB, MIB) == content("back", MIB)


def test_the_end_of_a_session_unmaps(pool: LocalWorkers, stack: ExitStack, tmp_path: Path) -> None:
    server = pool.workers[0].server
    client, _ = pool.client(pool.map())
    memory = shared(client, stack, tmp_path, size=MIB)
    other, _ = pool.client(pool.map())
    assert server.statistics().local_regions == 1
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        other.register_buffer(memory.address, MIB, fd=memory.fd)
        other.unregister_buffer(memory.address)
    eventually(lambda: server.statistics().local_regions == 1, "the end of the others' regions")
    client.close()
    eventually(lambda: server.statistics().local_regions == 0, "the end of the client's region")
    assert server.statistics().local_mapped_bytes == 0
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 8  # connections, not regions
    with open("/proc/self/maps", encoding="utf-8") as maps:
        assert sum("memkv-test" in line for line in maps) == 1  # the test's own


def test_the_asyncio_face_uses_it_too(
    pool: LocalWorkers, stack: ExitStack, tmp_path: Path
) -> None:
    async def run() -> None:
        source = StaticSource()
        source.publish(pool.map())
        plain, _ = pool.client(pool.map())
        options = plain.attachment.core.options
        attachment = await asyncio.get_running_loop().run_in_executor(
            None, Attachment, options, source
        )
        with SharedMemory(MIB) as memory:
            async with AsyncClient(options, attachment) as client:
                client.register_buffer(memory.address, MIB, fd=memory.fd)
                session = attachment.core.sessions()[0]
                eventually(lambda: session.local.lanes is not None, "local lanes")
                memory.write(0, content("aio", 300_000))
                half = memory.address + MIB // 2
                assert await client.batch_put_from(["aio"], [memory.address], [300_000]) == [0]
                assert await client.batch_get_into(["aio"], [half], [300_000]) == [300_000]
                assert memory.read(MIB // 2, 300_000) == content("aio", 300_000)

    asyncio.run(run())
    assert served(pool, Opcode.LOCAL_GET) == 1


def test_single_gets_through_shared_memory_close_the_breaker_again(
    pool: LocalWorkers, stack: ExitStack, tmp_path: Path
) -> None:
    """The short way asked for the breaker's one probe, and then left the get to the long way."""
    client, _ = pool.client(pool.map())
    memory = shared(client, stack, tmp_path)
    session = client.attachment.core.sessions()[0]
    memory.write(0, content("k", MIB))
    assert client.batch_put_from(["k"], [memory.address], [MIB]) == [0]
    open_breaker(session)
    assert client.batch_get_into(["k"], [memory.address], [MIB]) == [MIB]
    assert session.breaker_state == "closed"
