"""Prefetch and explained misses: the client, real workers and real stores."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from memkv import _hotpath
from memkv.client.aio_client import AsyncClient
from memkv.client.attach import Attachment
from memkv.client.options import BlockHint, ConnectOptions, PutOptions
from memkv.client.sync import Client
from memkv.integrations.hints import hints_of
from memkv.keys import block_id, slot_of
from memkv.limits import KIB, MIB
from memkv.pattern import block, seed_of
from memkv.reasons import MissReason
from memkv.shardmap.map import Move
from memkv.status import Status
from memkv.store.layout import RecordHeader
from memkv.tenant import Tenant
from memkv.testing.fake_verbs import FakeFabric, FakeVerbs
from memkv.testing.local_workers import POOL, SLOTS, LocalWorkers, StaticSource, local_workers
from memkv.testing.shared_memory import SharedMemory
from memkv.wire import session as wire_session

LENGTH = 100 * KIB
WAIT_S = 30
DRAM_BYTES = 16 * MIB
NAMES = [f"key-{number}" for number in range(400)]  # 40 MB: more than DRAM


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[LocalWorkers]:
    with local_workers(tmp_path, 2, memory_bytes=DRAM_BYTES, block_bytes_max=1 * MIB) as running:
        yield running


def stored(client: Client) -> None:
    data = bytes(LENGTH)
    address = _hotpath.address_of(data)
    for first in range(0, len(NAMES), 50):
        some = NAMES[first : first + 50]
        found = client.batch_put_from(
            some, [address] * 50, [LENGTH] * 50, PutOptions(durability="durable")
        )
        assert set(found) == {Status.OK}


def counted(pool: LocalWorkers, name: str) -> int:
    return sum(worker.store.statistics().counters[name] for worker in pool.workers)


def wait_for_prefetched(pool: LocalWorkers, names: list[str]) -> None:
    """Wait until each owner has brought its own of these into DRAM."""
    owners = [slot_of(block_id(name, b"default"), SLOTS) % 2 for name in names]
    for number, worker in enumerate(pool.workers):
        engine, core = worker.store._engine, worker.store._core
        wanted = owners.count(number)
        with engine.lock:
            assert engine.wait(
                lambda: core.counters.prefetched_blocks == wanted,  # noqa: B023  used at once
                core.now_ns() + WAIT_S * 10**9,
            )


def test_a_get_after_a_prefetch_is_served_from_dram(pool: LocalWorkers) -> None:
    client, _ = pool.client(pool.map())
    stored(client)
    wanted = NAMES[:20]  # the oldest: pushed out of DRAM by the others
    assert client.prefetch([*wanted, "absent"]) == [1] * 20 + [0]
    wait_for_prefetched(pool, wanted)
    assert client.prefetch(wanted) == [2] * 20
    before = counted(pool, "hits_flash")
    targets = [bytearray(LENGTH) for _ in wanted]
    addresses = [_hotpath.address_of(target) for target in targets]
    assert client.batch_get_into(wanted, addresses, [LENGTH] * 20) == [LENGTH] * 20
    assert counted(pool, "hits_flash") == before
    assert (client.stats().prefetched, client.stats().prefetches_dropped) == (40, 0)


def test_more_than_a_node_would_bring_is_refused_and_counted(pool: LocalWorkers) -> None:
    client, _ = pool.client(pool.map())
    stored(client)
    answers = client.prefetch(NAMES)
    assert set(answers) == {1, 2, Status.BUSY}
    assert client.stats().prefetches_dropped == answers.count(Status.BUSY)
    assert counted(pool, "prefetches_refused") >= answers.count(Status.BUSY)


def test_the_event_face_prefetches(pool: LocalWorkers) -> None:
    client, _ = pool.client(pool.map())
    client.put("there", bytes(LENGTH))
    job = client.submit_prefetch(["there", "absent"])
    readable, _, _ = select.select([client.event_fd], [], [], WAIT_S)
    assert readable
    (completion,) = client.completions()
    assert (completion.job_id, completion.results) == (job, [2, 0])


def test_the_event_face_asks_why(pool: LocalWorkers) -> None:
    client, _ = pool.client(pool.map())
    client.put("there", bytes(LENGTH))
    client.put("gone", bytes(LENGTH))
    client.remove("gone")
    job = client.submit_why(["there", "absent", "gone"])
    readable, _, _ = select.select([client.event_fd], [], [], WAIT_S)
    assert readable
    (completion,) = client.completions()
    assert (completion.job_id, completion.results) == (
        job, [MissReason.PRESENT, MissReason.NEVER_STORED, MissReason.DELETED],
    )  # fmt: skip


def test_the_asyncio_face_prefetches_and_asks_why(pool: LocalWorkers) -> None:
    async def both() -> tuple[list[int], list[MissReason]]:
        source = StaticSource()
        source.publish(pool.map())
        options = ConnectOptions("127.0.0.1:1", POOL)
        async with AsyncClient(options, Attachment(options, source)) as client:
            await client.wait_ready(WAIT_S * 1000)
            await client.put("there", bytes(LENGTH))
            return await client.prefetch(["there", "absent"]), await client.why(["absent"])

    assert asyncio.run(both()) == ([2, 0], [MissReason.NEVER_STORED])


def test_without_a_pool_nothing_is_prefetched_or_explained() -> None:
    options = ConnectOptions("127.0.0.1:1", POOL, bootstrap_timeout_ms=1)
    with Client(options, Attachment(options, StaticSource())) as client:
        assert client.prefetch(["a"]) == [Status.UNAVAILABLE]
        assert client.why(["a"]) == [MissReason.UNAVAILABLE]
        job = client.submit_why(["a"])
        (completion,) = client.completions()
        assert (completion.job_id, completion.results) == (job, [MissReason.UNAVAILABLE])


def test_misses_are_explained_over_the_wire(pool: LocalWorkers) -> None:
    client, _ = pool.client(pool.map())
    client.put("deleted", bytes(10))
    client.put("there", bytes(10))
    client.remove("deleted")
    assert client.why(["there", "deleted", "never"]) == [
        MissReason.PRESENT, MissReason.DELETED, MissReason.NEVER_STORED
    ]
    stranger, _ = pool.client(pool.map(), tenant="stranger")
    assert stranger.why(["there", "deleted"]) == [MissReason.NEVER_STORED] * 2


def test_a_node_that_is_gone_is_the_reason(pool: LocalWorkers) -> None:
    client, _ = pool.client(pool.map())
    assert client.why(["a"]) == [MissReason.NEVER_STORED]
    for worker in pool.workers:
        worker.server.stop()
    assert client.why(["a"]) == [MissReason.UNAVAILABLE]


def test_while_slots_move_both_owners_are_asked(pool: LocalWorkers) -> None:
    owners = [0] * SLOTS
    client, source = pool.client(pool.map(owners))
    client.put("stays", bytes(10))
    client.put("goes", bytes(10))
    client.remove("goes")
    moving = {slot: Move((0,), pool.epoch + 1) for slot in range(SLOTS)}
    source.publish(pool.map([1] * SLOTS, moving))
    assert client.why(["stays", "goes", "never"]) == [
        MissReason.PRESENT, MissReason.DELETED, MissReason.NEVER_STORED
    ]
    assert client.prefetch(["stays"]) == [2]


def test_an_older_node_is_not_asked_what_it_does_not_know(
    pool: LocalWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would close the connection, and every other call on it would end."""
    monkeypatch.setattr(wire_session, "PROTOCOL_MAX", 1)
    client, _ = pool.client(pool.map())
    client.put("there", bytes(10))
    assert client.prefetch(["there"]) == [Status.UNSUPPORTED]
    assert client.why(["there"]) == [MissReason.UNEXPLAINED]
    assert client.get("there") == bytes(10)
    events = [worker.server.statistics().events for worker in pool.workers]
    assert sum(event.protocol_errors for event in events) == 0


def test_reasons_are_in_the_statistics(pool: LocalWorkers) -> None:
    client, _ = pool.client(pool.map())
    client.get("never")
    client.put("there", bytes(10))
    client.get("there")
    target = bytearray(5)
    assert client.batch_get_into(["there"], [_hotpath.address_of(target)], [5]) == [
        Status.BUFFER_TOO_SMALL
    ]
    client.reasons.note("request 1", MissReason.WRONG_NAMESPACE, 3)
    statistics = client.stats()
    assert statistics.miss_reasons == {"unexplained": 1, "wrong_format": 1}
    assert statistics.request_reasons == {"wrong_namespace": 3}
    assert client.reasons.take("request 1") == {MissReason.WRONG_NAMESPACE: 3}


def test_a_router_sees_which_node_holds_the_head_of_a_prompt(pool: LocalWorkers) -> None:
    client, _ = pool.client(pool.map())
    keys = [f"prompt-{number}" for number in range(10)]
    for key in [*keys[:6], *keys[7:]]:
        client.put(key, bytes(10))
    scores = client.match_prefix_by_node(keys)
    assert client.match_prefix(keys) == 6
    assert sum(scores.values()) == 6
    owned = [slot_of(block_id(key, b"default"), SLOTS) % 2 for key in keys[:6]]
    assert scores == {f"node-{n}": owned.count(n) for n in set(owned)}
    assert client.match_prefix_by_node(["absent", *keys]) == {}


# --- hints ------------------------------------------------------------------------------------
CHAIN = [f"hinted-{number}".encode() for number in range(4)]
HINTS = hints_of(CHAIN, session=b"chat 1")


def headers(pool: LocalWorkers, salt: bytes) -> list[RecordHeader]:
    """Return what the stores keep of CHAIN."""
    found = []
    for key in CHAIN:
        for worker in pool.workers:
            reader = worker.store.new_reader()
            deadline_ns = worker.store._core.now_ns() + WAIT_S * 10**9
            ids = block_id(key, salt)
            for _, result in reader.read(Tenant.named("default"), ids, None, deadline_ns):
                if result.header is not None:
                    found.append(result.header)
                    core = worker.store._core
                    handle = core.index.find(core.tenants.named("default").number, ids)
                    assert core.index.depth(handle) == result.header.depth
                result.release()
            reader.close()
    return found


def check_hints(pool: LocalWorkers, salt: bytes) -> None:
    kept = [BlockHint(h.prefix_id, h.depth, h.session_id) for h in headers(pool, salt)]
    assert kept == HINTS


@pytest.mark.parametrize("way", ["tcp", "shared memory", "rdma"])
def test_hints_reach_record_and_index_by_every_way(tmp_path: Path, way: str) -> None:
    fabric = FakeFabric()
    devices = FakeVerbs(fabric, ["node0"]) if way == "rdma" else None
    with local_workers(tmp_path, 2, verbs=devices) as pool:
        verbs = FakeVerbs(fabric, ["client0"]) if way == "rdma" else None
        client, _ = pool.client(pool.map(), verbs=verbs)
        with SharedMemory(4 * LENGTH) as memory:
            if way != "tcp":
                client.register_buffer(
                    memory.address, 4 * LENGTH,
                    fd=memory.fd if way == "shared memory" else None,
                )
            memory.write(0, bytes(block(seed_of("x"), 4 * LENGTH)))
            ptrs = [memory.address + n * LENGTH for n in range(4)]
            found = client.batch_put_from(CHAIN, ptrs, [LENGTH] * 4, PutOptions(hints=HINTS))
            assert found == [Status.OK] * 4
            statistics = client.stats()
            client.close()
        assert statistics.local_keys == (4 if way == "shared memory" else 0)
        assert statistics.rdma_keys == (4 if way == "rdma" else 0)
        check_hints(pool, b"default")
