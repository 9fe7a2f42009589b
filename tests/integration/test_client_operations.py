"""The client against real workers and real stores: every call, every face."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Iterator

import pytest

from memkv import _hotpath
from memkv.client.aio_client import AsyncClient
from memkv.client.attach import Attachment
from memkv.client.options import BlockHint, ConnectOptions, PutOptions
from memkv.client.sync import Client
from memkv.errors import CallerError
from memkv.limits import KIB, MIB
from memkv.pattern import block, seed_of
from memkv.shardmap.map import MapVersion, ShardMap
from memkv.status import Status
from memkv.testing.local_workers import POOL, SLOTS, LocalWorkers, StaticSource, local_workers
from memkv.wire.ticket import Rights

WAIT_S = 30


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalWorkers]:
    with local_workers(tmp_path_factory.mktemp("pool"), 3) as running:
        yield running


@pytest.fixture
def client(pool: LocalWorkers) -> Iterator[Client]:
    connected, _ = pool.client(pool.map())
    yield connected
    connected.close()


def content(key: str, length: int) -> bytes:
    return bytes(block(seed_of(key), length))


def addresses(buffers: list[bytearray]) -> list[int]:
    return [_hotpath.address_of(buffer) for buffer in buffers]


@pytest.mark.parametrize("length", [1, 4 * KIB, 64 * KIB + 1, 512 * KIB, 2 * MIB])
def test_one_block_round_trip(client: Client, length: int) -> None:
    key = f"single-{length}"
    assert client.get(key) is None
    assert client.put(key, content(key, length)) == Status.OK
    assert client.get(key) == content(key, length)
    assert client.get(key) == content(key, length)
    assert client.remove(key) == Status.OK
    assert client.get(key) is None


def test_a_batch_over_all_workers(client: Client) -> None:
    keys = [f"batch-{n}" for n in range(100)]
    sizes = [(1 + n % 7) * 20 * KIB + n for n in range(100)]
    sources = [bytearray(content(key, size)) for key, size in zip(keys, sizes, strict=True)]
    assert client.batch_put_from(keys, addresses(sources), sizes) == [Status.OK] * 100
    targets = [bytearray(size) for size in sizes]
    assert client.batch_get_into(keys, addresses(targets), sizes) == sizes
    assert targets == sources
    assert client.batch_is_exist([*keys, "absent"]) == [1] * 100 + [0]
    assert client.match_prefix([*keys[:10], "absent", *keys[10:]]) == 10
    statistics = client.stats()
    assert (statistics.hits, statistics.bytes_read) == (100, sum(sizes))


def test_first_put_wins_and_second_is_a_cheap_no_op(client: Client) -> None:
    assert client.put("first", b"one" * 1000) == Status.OK
    assert client.put("first", b"two" * 1000) == Status.OK
    assert client.get("first") == b"one" * 1000


def test_scattered_memory(client: Client) -> None:
    data = bytearray(content("scattered", 700 * KIB))
    base = _hotpath.address_of(data)
    cuts = [(0, 1), (1, 300 * KIB), (300 * KIB + 1, 400 * KIB - 1)]
    ptrs, sizes = [base + at for at, _ in cuts], [size for _, size in cuts]
    assert client.batch_put_from_multi(["scattered"], [ptrs], [sizes]) == [Status.OK]
    target = bytearray(700 * KIB)
    base = _hotpath.address_of(target)
    assert client.batch_get_into_multi(
        ["scattered"], [[base + at for at, _ in cuts]], [sizes]
    ) == [700 * KIB]
    assert target == data


def test_ranges_of_one_put(client: Client) -> None:
    data = content("ranges", 1 * MIB)
    assert client.put("ranges", data) == Status.OK
    ranges = [(0, 10), (256 * KIB - 5, 10), (1 * MIB - 1, 1)]
    target = bytearray(64)
    assert client.batch_get_ranges(
        ["ranges"], [ranges], addresses([target]), [len(target)]
    ) == [21]
    assert target[:21] == b"".join(data[at : at + size] for at, size in ranges)
    beyond = client.batch_get_ranges(
        ["ranges"], [[(1 * MIB - 1, 2)]], addresses([target]), [len(target)]
    )
    assert beyond[0] < 0


def test_a_small_buffer_is_an_answer_not_a_write(client: Client) -> None:
    assert client.put("large", content("large", 100 * KIB)) == Status.OK
    target = bytearray(b"\xaa" * (200 * KIB))
    assert client.batch_get_into(["large"], addresses([target]), [50 * KIB]) == [
        Status.BUFFER_TOO_SMALL
    ]
    assert target == b"\xaa" * (200 * KIB)


def test_durable_puts_with_hints_and_expiry(client: Client) -> None:
    options = PutOptions(
        ttl_s=3600, durability="durable",
        hints=[BlockHint(b"prefix-1", depth, b"session1") for depth in range(4)],
    )
    keys = [f"durable-{n}" for n in range(4)]
    sources = [bytearray(content(key, 8 * KIB)) for key in keys]
    assert client.batch_put_from(keys, addresses(sources), [8 * KIB] * 4, options) == [0] * 4
    assert client.batch_is_exist(keys, lease_ms=1000) == [1] * 4


def test_pins(client: Client) -> None:
    assert client.put("pinned", b"x" * 5000) == Status.OK
    assert client.pin(["pinned", "not there"], 60) == [Status.OK, Status.MISS]
    assert client.unpin(["pinned"]) == [Status.OK]
    with pytest.raises(CallerError, match="at least 1 second"):
        client.pin(["pinned"], 0)


@pytest.mark.parametrize("key", ["", "x" * 513, b"", "\udcff"])
def test_keys_that_cannot_be_keys(client: Client, key: str | bytes) -> None:
    with pytest.raises(CallerError):
        client.get(key)
    with pytest.raises(CallerError):
        client.put(key, b"data")


def test_keys_need_not_be_text(client: Client) -> None:
    key = bytes(range(256)) * 2
    assert client.put(key, b"binary") == Status.OK
    assert client.get(key) == b"binary"


def test_blocks_that_cannot_be_blocks(client: Client) -> None:
    assert client.put("empty", b"") == Status.INVALID
    assert client.put("long", bytes(2 * MIB + 1)) == Status.TOO_LARGE
    assert client.batch_put_from(
        ["fine", "empty"], addresses([bytearray(10), bytearray(1)]), [10, 0]
    ) == [Status.OK, Status.INVALID]
    with pytest.raises(CallerError, match="list of keys"):
        client.batch_is_exist("one key")


def test_tenants_do_not_see_each_other(pool: LocalWorkers) -> None:
    shard_map = pool.map()
    first, _ = pool.client(shard_map, tenant="first")
    second, _ = pool.client(shard_map, tenant="second")
    assert first.put("shared name", b"of the first") == Status.OK
    assert second.get("shared name") is None
    assert second.put("shared name", b"of the second") == Status.OK
    assert first.get("shared name") == b"of the first"
    assert first.remove("shared name") == Status.OK
    assert second.get("shared name") == b"of the second"


def test_rights_are_kept(pool: LocalWorkers) -> None:
    reader, _ = pool.client(pool.map(), rights=Rights.GET)
    assert reader.put("no right", b"x") == Status.DENIED
    assert reader.remove("no right") == Status.DENIED
    assert reader.get("no right") is None


def test_the_eventfd_face(client: Client) -> None:
    keys = [f"event-{n}" for n in range(30)]
    sizes = [100 * KIB] * 30
    sources = [bytearray(content(key, 100 * KIB)) for key in keys]
    targets = [bytearray(100 * KIB) for _ in keys]
    put_job = client.submit_put_from(keys, addresses(sources), sizes)
    assert collect(client, {put_job}) == {put_job: [0] * 30}
    get_jobs = [
        client.submit_get_into([key], addresses([target]), [100 * KIB])
        for key, target in zip(keys, targets, strict=True)
    ]
    assert collect(client, set(get_jobs)) == {job: [100 * KIB] for job in get_jobs}
    assert targets == sources


def test_jobs_with_several_pieces_a_key_and_lookups(client: Client) -> None:
    keys = ["pieces-0", "pieces-1"]
    sources = [[bytearray(content(f"{key}-{n}", 90 * KIB)) for n in range(3)] for key in keys]
    targets = [[bytearray(90 * KIB) for _ in range(3)] for _ in keys]
    sizes = [[90 * KIB] * 3 for _ in keys]
    put_job = client.submit_put_from_multi(keys, [addresses(one) for one in sources], sizes)
    assert collect(client, {put_job}) == {put_job: [0, 0]}
    lookup = client.submit_is_exist([*keys, "pieces-none"], lease_ms=1_000)
    get_job = client.submit_get_into_multi(keys, [addresses(one) for one in targets], sizes)
    assert collect(client, {lookup, get_job}) == {
        lookup: [1, 1, 0], get_job: [270 * KIB, 270 * KIB],
    }  # fmt: skip
    assert targets == sources


def test_a_job_wakes_its_reader_once(client: Client) -> None:
    size = 300 * KIB
    keys = [f"once-{n}" for n in range(12)]  # over all workers and lanes
    memory = bytearray(len(keys) * size)
    base = _hotpath.address_of(memory)
    places = [base + n * size for n in range(len(keys))]
    assert client.batch_put_from(keys, places, [size] * len(keys)) == [0] * len(keys)
    for _ in range(5):
        job = client.submit_get_into(keys, places, [size] * len(keys))
        assert select.select([client.event_fd], [], [], WAIT_S)[0]
        (done,) = client.completions()
        assert (done.job_id, done.results) == (job, [size] * len(keys))
        assert not select.select([client.event_fd], [], [], 0)[0]


def test_a_job_without_anybody_to_ask_wakes_its_reader(pool: LocalWorkers) -> None:
    client, _ = pool.client(pool.map(), rights=Rights.PUT)
    client.close()
    job = client.submit_get_into(["key"], [_hotpath.address_of(bytearray(10))], [10])
    assert collect(client, {job}) == {job: [Status.UNAVAILABLE]}
    lookup = client.submit_is_exist(["key"])
    assert collect(client, {lookup}) == {lookup: [Status.UNAVAILABLE]}


def collect(client: Client, jobs: set[int]) -> dict[int, list[int]]:
    done: dict[int, list[int]] = {}
    while jobs - done.keys():
        readable, _, _ = select.select([client.event_fd], [], [], WAIT_S)
        assert readable, f"jobs {jobs - done.keys()} never ended"
        done |= {one.job_id: one.results for one in client.completions()}
    return done


def test_the_asyncio_face(pool: LocalWorkers) -> None:
    source = StaticSource()
    source.publish(pool.map())
    options = ConnectOptions("127.0.0.1:1", POOL, deadline_ms=5_000, bootstrap_timeout_ms=5_000)

    async def scenario() -> None:
        async with AsyncClient(options, Attachment(options, source)) as client:
            keys = [f"aio-{n}" for n in range(20)]
            blocks = [content(key, 300 * KIB) for key in keys]
            puts = await asyncio.gather(
                *(client.put(key, data) for key, data in zip(keys, blocks, strict=True))
            )
            assert puts == [Status.OK] * 20
            assert await asyncio.gather(*(client.get(key) for key in keys)) == blocks
            assert await client.match_prefix([*keys, "absent"]) == 20
            assert await client.batch_is_exist(keys) == [1] * 20
            task = asyncio.ensure_future(client.get(keys[0]))
            await asyncio.wait([task], timeout=0)
            task.cancel()
            assert await client.get(keys[1]) == blocks[1]
            assert await client.batch_remove(keys) == [Status.OK] * 20
            assert await client.get(keys[0]) is None

    asyncio.run(asyncio.wait_for(scenario(), WAIT_S))


def test_the_rest_of_the_asyncio_face(pool: LocalWorkers) -> None:
    """Batches over raw memory, ranges and pins: as the blocking client has them."""
    source = StaticSource()
    source.publish(pool.map())
    options = ConnectOptions("127.0.0.1:1", POOL, deadline_ms=5_000, bootstrap_timeout_ms=5_000)
    data = bytearray(content("rest", 200 * KIB))
    memory = bytearray(len(data))
    source_at, at = _hotpath.address_of(data), _hotpath.address_of(memory)

    async def scenario() -> None:
        async with AsyncClient(options, Attachment(options, source)) as client:
            assert await client.wait_ready(int(WAIT_S * 1000))
            assert client.register_buffer(at, len(memory)) == Status.OK
            assert await client.batch_put_from(["rest"], [source_at], [len(data)]) == [Status.OK]
            assert await client.batch_get_into(["rest"], [at], [len(memory)]) == [len(data)]
            assert memory == data
            halves = [[at + 100_000, at]], [[100_000, 100_000]]
            assert await client.batch_get_into_multi(["rest"], *halves) == [
                Status.BUFFER_TOO_SMALL
            ]
            ranges = [[(4096, 10), (0, 5)]]
            assert await client.batch_get_ranges(["rest"], ranges, [at], [15]) == [15]
            assert memory[:15] == data[4096:4106] + data[:5]
            assert await client.pin(["rest", "absent"], 60) == [Status.OK, Status.MISS]
            assert await client.unpin(["rest"]) == [Status.OK]
            assert client.unregister_buffer(at) == Status.OK
            with pytest.raises(CallerError, match="no registered buffer"):
                client.unregister_buffer(at)
            assert client.stats().hits == 2

    asyncio.run(asyncio.wait_for(scenario(), WAIT_S))


def test_nobody_there_is_unavailable_within_the_deadline() -> None:
    options = ConnectOptions("127.0.0.1:1", POOL, deadline_ms=200, bootstrap_timeout_ms=100)
    with Client(options) as lonely:
        assert lonely.get("anything") is None
        assert lonely.put("anything", b"data") == Status.UNAVAILABLE
        assert lonely.batch_is_exist(["a", "b"]) == [Status.UNAVAILABLE] * 2
        assert lonely.wait_ready(10) is False
        assert any("no shard map" in problem for problem in lonely.attachment.problems())


def test_a_pool_emptied_on_purpose_has_nobody_to_ask(pool: LocalWorkers) -> None:
    empty = ShardMap(
        MapVersion(bytes(16), 1, 1), SLOTS, (), b"\xff\xff" * SLOTS, intentional_empty=True
    )
    client, _ = pool.client(empty)
    keys = ["one", "two"]
    assert client.put("one", b"data") == Status.UNAVAILABLE
    assert client.get("one") is None
    assert client.batch_is_exist(keys) == [Status.UNAVAILABLE] * 2
    assert client.match_prefix(keys) == 0
    assert client.batch_remove(keys) == [Status.UNAVAILABLE] * 2
    assert client.pin(keys, 60) == [Status.UNAVAILABLE] * 2
    client.close()
