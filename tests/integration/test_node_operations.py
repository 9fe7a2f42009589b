"""Every operation against a worker's server over real sockets."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from memkv import limits
from memkv.node.ownership import Ownership
from memkv.shardmap import MapVersion, Move, ShardMap, Worker, pack_owners
from memkv.status import Status
from memkv.tenant import tenant_tag
from memkv.testing.memory_store import MemoryStore
from memkv.testing.running_worker import WORKER_UUID, RunningWorker, running_worker
from memkv.testing.wire_client import Block, Lane, RequestFailed
from memkv.wire.items import Durability, RangesItem
from memkv.wire.messages import ListRequest, decode_statuses, encode_keys, unpack_statuses
from memkv.wire.opcodes import Flag, Opcode
from memkv.wire.ticket import CLIENT_RIGHTS, Rights

KIB = 1024
OTHER_UUID = b"worker uuid 0002"


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(params=["plain", "encrypted"])
def worker(store: MemoryStore, request: pytest.FixtureRequest) -> Iterator[RunningWorker]:
    with running_worker(store, encrypted=request.param == "encrypted") as running:
        yield running
    assert store.pinned == 0
    assert store.puts_open == 0
    assert running.server.statistics().events.internal_errors == 0


def blocks_of(*lengths: int, durability: int = Durability.CACHED) -> list[Block]:
    return [Block(os.urandom(32), os.urandom(length), durability) for length in lengths]


def ids_of(blocks: list[Block]) -> bytes:
    return b"".join(block.block_id for block in blocks)


def test_what_was_put_is_got(worker: RunningWorker) -> None:
    client = worker.client()
    lane = client.lane()
    blocks = blocks_of(1, 4 * KIB, 256 * KIB, 256 * KIB + 1, 16 * KIB * KIB)
    assert lane.put(blocks) == [Status.OK] * 5
    got = lane.get(ids_of(blocks) + os.urandom(32))
    assert [got[i].payload for i in range(5)] == [block.data for block in blocks]
    assert got[5].status is Status.MISS
    assert client.exists(ids_of(blocks) + os.urandom(32)) == [1] * 5 + [0]


def test_a_whole_batch_of_1024(worker: RunningWorker) -> None:
    client = worker.client()
    lane = client.lane()
    blocks = blocks_of(*[100] * limits.ITEMS_PER_FRAME_MAX)
    assert set(lane.put(blocks)) == {Status.OK}
    got = lane.get(ids_of(blocks), 100)
    assert [got[i].payload for i in range(1024)] == [block.data for block in blocks]
    assert client.exists(ids_of(blocks)) == [1] * 1024


def test_first_put_wins(worker: RunningWorker) -> None:
    lane = worker.client().lane()
    first, second = blocks_of(1000, 2000)
    second = Block(first.block_id, second.data)
    assert lane.put([first, second]) == [Status.OK, Status.OK]
    assert lane.get(first.block_id)[0].payload == first.data


def test_tenants_do_not_see_each_other(worker: RunningWorker) -> None:
    [block] = blocks_of(100)
    assert worker.client("tenant-a").lane().put([block]) == [Status.OK]
    other = worker.client("tenant-b")
    assert other.exists(block.block_id) == [0]
    assert other.lane().get(block.block_id)[0].status is Status.MISS
    assert other.delete(block.block_id) == [0]
    assert worker.client("tenant-a").exists(block.block_id) == [1]


def test_buffer_too_small_reports_the_length(worker: RunningWorker) -> None:
    lane = worker.client().lane()
    [block] = blocks_of(5000)
    lane.put([block])
    [got] = lane.get(block.block_id, 4999).values()
    assert (got.status, got.result.length, got.payload) == (Status.BUFFER_TOO_SMALL, 5000, b"")


def test_express_lane_takes_and_gives_small_payloads_only(worker: RunningWorker) -> None:
    client = worker.client()
    express, bulk = client.lane(express=True), client.lane()
    small, large = blocks_of(64 * KIB, 64 * KIB + 1)
    assert express.put([small, large]) == [Status.OK, Status.INVALID]
    assert bulk.put([large]) == [Status.OK]
    got = express.get(ids_of([small, large]))
    assert got[0].payload == small.data
    assert (got[1].status, got[1].result.length) == (Status.BUFFER_TOO_SMALL, 64 * KIB + 1)


def test_many_small_blocks_on_an_express_lane(worker: RunningWorker) -> None:
    express = worker.client().lane(express=True)
    blocks = blocks_of(*[64 * KIB] * 40)
    assert set(express.put(blocks)) == {Status.OK}
    assert len(express.get(ids_of(blocks))) == 40


def test_ranges_are_parts_of_one_block_with_sums_of_their_own(worker: RunningWorker) -> None:
    lane = worker.client().lane()
    [block] = blocks_of(600 * KIB)
    lane.put([block])
    ranges = ((0, 10), (300 * KIB, 100 * KIB), (600 * KIB - 1, 1))
    items = [
        RangesItem(block.block_id, ranges),
        RangesItem(block.block_id, ((600 * KIB, 1),)),
        RangesItem(os.urandom(32), ((0, 1),)),
    ]
    got = lane.get_ranges(items)
    assert got[0].payload == b"".join(block.data[start : start + n] for start, n in ranges)
    assert len(got[0].result.sums) == 8 * len(ranges)
    assert [got[1].status, got[2].status] == [Status.INVALID, Status.MISS]


def test_durable_put_waits_for_its_flush(worker: RunningWorker, store: MemoryStore) -> None:
    blocks = blocks_of(10, 10, durability=Durability.DURABLE) + blocks_of(10)
    assert worker.client().lane().put(blocks) == [Status.OK] * 3
    assert store.waited_durable == 2


def test_verify_flag_reaches_the_store(worker: RunningWorker, store: MemoryStore) -> None:
    worker.client().lane().get(os.urandom(32), flags=Flag.VERIFY)
    assert store.reads_verified == 1


def test_delete_and_pin(worker: RunningWorker) -> None:
    client = worker.client()
    blocks = blocks_of(10, 10)
    client.lane().put(blocks)
    assert client.pin(ids_of(blocks), 60) == [0, 0]
    assert client.delete(blocks[0].block_id) == [0]
    assert client.exists(ids_of(blocks)) == [0, 1]
    assert client.pin(ids_of(blocks), 60) == [Status.MISS, 0]


def test_stat_tells_who_the_worker_is_and_what_it_holds(worker: RunningWorker) -> None:
    client = worker.client()
    client.lane().put(blocks_of(10))
    facts = client.stat()
    assert facts["worker_uuid"] == WORKER_UUID.hex()
    assert [facts[key] for key in ("incarnation", "blocks", "sessions", "lanes")] == [1] * 4
    assert facts["map"]["epoch"] == 0
    assert {"bytes", "capacity_bytes"} <= set(facts)


def test_list_pages_through_a_slot(worker: RunningWorker) -> None:
    peer = worker.client(rights=Rights.PEER | Rights.PUT)
    blocks = blocks_of(*[10] * 5)
    peer.lane().put(blocks)
    first = peer.list_page(ListRequest(0, limit=3))
    rest = peer.list_page(ListRequest(0, cursor=first.next_cursor, limit=3))
    assert rest.next_cursor == 0
    listed = {entry.block_id for entry in first.entries + rest.entries}
    assert listed == {block.block_id for block in blocks}


# --- refusals ---------------------------------------------------------------------------------
def test_rights_are_checked_for_each_operation(worker: RunningWorker) -> None:
    nobody = worker.client(rights=Rights.NONE)
    lane = nobody.lane()
    assert lane.put(blocks_of(100, 200)) == [Status.DENIED] * 2
    for request in (
        lambda: lane.get(os.urandom(32)),
        lambda: lane.get_ranges([RangesItem(os.urandom(32), ((0, 1),))]),
        lambda: nobody.exists(os.urandom(32)),
        lambda: nobody.delete(os.urandom(32)),
        lambda: nobody.pin(os.urandom(32), 1),
        lambda: nobody.list_page(ListRequest(0)),
    ):
        with pytest.raises(RequestFailed) as caught:
            request()
        assert caught.value.status is Status.DENIED
    assert nobody.stat()


@pytest.mark.parametrize("status", [Status.BUSY, Status.NO_SPACE, Status.QUOTA])
def test_refused_block_is_dropped_and_the_lane_goes_on(
    worker: RunningWorker, store: MemoryStore, status: Status
) -> None:
    lane = worker.client().lane()
    store.put_answer = status
    assert lane.put(blocks_of(1_000_000, 5)) == [status] * 2
    store.put_answer = None
    assert lane.put(blocks_of(1_000_000)) == [Status.OK]


def test_block_of_no_bytes_and_over_the_pools_limit(store: MemoryStore) -> None:
    with running_worker(store, block_bytes_max=1000) as worker:
        client = worker.client()
        assert client.granted.block_length_max == 1000
        blocks = blocks_of(0, 1000, 1001)
        answer = client.lane().put(blocks)
        assert answer == [Status.INVALID, Status.OK, Status.TOO_LARGE]
        assert client.exists(ids_of(blocks)) == [0, 1, 0]


def test_bytes_that_do_not_match_their_sums_never_become_visible(worker: RunningWorker) -> None:
    client = worker.client()
    lane = client.lane()
    blocks = blocks_of(1000, 1000)
    frames = lane.put_frames(blocks)
    frames[0] = frames[0][:-1] + bytes([frames[0][-1] ^ 1])
    lane.send(b"".join(frames))
    assert lane.receive_statuses() == [Status.CORRUPT, Status.OK]
    assert client.exists(ids_of(blocks)) == [0, 1]


def test_sums_made_for_another_tenant_are_refused(worker: RunningWorker) -> None:
    lane = worker.client().lane()
    lane.send(b"".join(lane.put_frames(blocks_of(1000), tag=bytes(16))))
    assert lane.receive_statuses() == [Status.INVALID]


def test_deadline_in_the_past(worker: RunningWorker) -> None:
    client = worker.client()
    lane = client.lane()
    [block] = blocks_of(1000)
    assert lane.put([block], deadline_ms=0) == [Status.TIMEOUT]
    assert client.exists(block.block_id) == [0]
    with pytest.raises(RequestFailed) as caught:
        lane.get(block.block_id, deadline_ms=0)
    assert caught.value.status is Status.TIMEOUT
    with pytest.raises(RequestFailed) as caught:
        client.statuses(Opcode.EXISTS, block.block_id, deadline_ms=0)
    assert caught.value.status is Status.TIMEOUT
    assert lane.put([block]) == [Status.OK]


def test_over_credit_is_busy_but_one_large_request_always_passes(store: MemoryStore) -> None:
    with running_worker(store, credit_bytes=1000) as worker:
        lane = worker.client().lane()
        assert lane.put(blocks_of(2000)) == [Status.OK]
        assert lane.put(blocks_of(600, 600, 300)) == [Status.OK, Status.BUSY, Status.OK]
        assert lane.put(blocks_of(600)) == [Status.OK]


# --- the map ----------------------------------------------------------------------------------
def map_of(owners: tuple[int, ...], moving: dict[int, Move]) -> ShardMap:
    workers = (
        Worker(WORKER_UUID, 1, "here", "127.0.0.1", 7070),
        Worker(OTHER_UUID, 1, "there", "10.1.2.3", 7071),
    )
    return ShardMap(MapVersion(b"lineage 00000001", 4, 7), 2, workers, pack_owners(owners), moving)


def blocks_by_slot(shard_map: ShardMap, slot: int) -> Block:
    mine = Ownership(WORKER_UUID, shard_map)
    while True:
        [block] = blocks_of(100)
        refused = mine.refused(block.block_id, True)
        if (0 in refused) is (slot == 1):
            return block


def test_wrong_owner_tells_where_to_go(worker: RunningWorker) -> None:
    shard_map = map_of((0, 1), {})
    worker.server.set_map(shard_map)
    client = worker.client()
    assert (client.granted.map_term, client.granted.map_epoch) == (4, 7)
    lane = client.lane()
    mine, other = (blocks_by_slot(shard_map, slot) for slot in (0, 1))
    ids = ids_of([other, mine])
    frames = lane.put_frames([other, mine])
    lane.send(b"".join(frames))
    answer = lane.answer()
    statuses = decode_statuses(answer.header, answer.body)
    assert unpack_statuses(statuses.values) == (Status.WRONG_OWNER, Status.OK)
    [hint] = statuses.hints
    assert (hint.index, hint.host, hint.port, hint.worker_uuid) == (0, "10.1.2.3", 7071, OTHER_UUID)
    got = lane.get(ids)
    assert got[0].status is Status.WRONG_OWNER
    assert got[0].result.hint == hint
    assert got[1].payload == mine.data
    for opcode in (Opcode.EXISTS, Opcode.DELETE, Opcode.PIN):
        answered = client.statuses(opcode, ids)
        assert unpack_statuses(answered.values)[0] == Status.WRONG_OWNER
        assert answered.hints == [hint]


def test_previous_owner_still_reads_and_deletes(worker: RunningWorker) -> None:
    shard_map = map_of((0, 1), {})
    block = blocks_by_slot(shard_map, 0)
    client = worker.client()
    lane = client.lane()
    lane.put([block])
    worker.server.set_map(map_of((1, 1), {0: Move((0,), 7)}))
    assert lane.get(block.block_id)[0].payload == block.data
    assert lane.put([block]) == [Status.WRONG_OWNER]
    assert client.exists(block.block_id) == [1]
    assert client.delete(block.block_id, map_epoch=7) == [0]
    assert client.exists(block.block_id) == [0]


def test_delete_by_a_map_from_before_the_move_is_done_but_not_acknowledged(
    worker: RunningWorker,
) -> None:
    shard_map = map_of((0, 1), {})
    block = blocks_by_slot(shard_map, 0)
    client = worker.client()
    client.lane().put([block])
    for owners, previous in (((1, 1), 0), ((0, 1), 1)):
        worker.server.set_map(map_of(owners, {0: Move((previous,), 7)}))
        answered = client.statuses(Opcode.DELETE, block.block_id, map_epoch=6)
        assert unpack_statuses(answered.values) == (Status.WRONG_OWNER,)
        [hint] = answered.hints
        assert hint.map_epoch == 7
        assert hint.worker_uuid == (WORKER_UUID if previous else OTHER_UUID)
        assert client.exists(block.block_id) == [0]
    worker.server.set_map(map_of((0, 1), {0: Move((1,), 6)}))
    assert client.delete(block.block_id, map_epoch=6) == [0]


def test_worker_behind_takes_no_deletes_and_shows_no_slots(worker: RunningWorker) -> None:
    shard_map = map_of((0, 1), {})
    block = blocks_by_slot(shard_map, 0)
    worker.server.set_map(shard_map)
    client = worker.client(rights=CLIENT_RIGHTS | Rights.PEER)
    lane = client.lane()
    lane.put([block])
    with pytest.raises(RequestFailed, match="older shard map") as failed:
        client.delete(block.block_id, map_epoch=8)
    assert failed.value.status is Status.BUSY
    assert client.exists(block.block_id) == [1]
    with pytest.raises(RequestFailed, match="older shard map"):
        client.list_page(ListRequest(0), map_epoch=8)
    with pytest.raises(RequestFailed, match="older shard map"):
        lane.pull(block.block_id, map_epoch=8)
    assert [one.payload for one in lane.pull(block.block_id, map_epoch=7)] == [block.data]


def test_pull_gives_all_that_is_stored_and_needs_the_peer_right(worker: RunningWorker) -> None:
    [block] = blocks_of(300_000)
    lane = worker.client(rights=CLIENT_RIGHTS | Rights.PEER, tenant="memkv-peer").lane()
    worker.client().lane().put([block])
    found, missing = lane.pull(block.block_id + bytes(32), tag=tenant_tag("default"))
    if missing.status is Status.OK:
        found, missing = missing, found
    assert missing.status is Status.MISS
    assert found.payload == block.data
    with pytest.raises(RequestFailed, match="peer right"):
        worker.client().lane().pull(block.block_id)
    express = worker.client(rights=Rights.PEER).lane(express=True)
    with pytest.raises(RequestFailed, match="bulk lane"):
        express.pull(block.block_id)


def test_copy_is_taken_only_on_its_way_to_this_worker(worker: RunningWorker) -> None:
    shard_map = map_of((0, 1), {})
    block = blocks_by_slot(shard_map, 0)
    lane = worker.client().lane()
    copy = replace(block, durability=Durability.COPY)
    assert lane.put([copy]) == [Status.MISS]
    worker.server.set_map(shard_map)
    assert lane.put([copy]) == [Status.MISS]
    worker.server.set_map(map_of((0, 1), {0: Move((1,), 7)}), {0: 5})
    assert lane.put([copy], map_epoch=6) == [Status.MISS], "found before the slot moved here"
    assert lane.put([copy], map_epoch=7) == [Status.OK]
    assert lane.get(block.block_id)[0].payload == block.data


def test_worker_behind_the_map_that_a_read_needs_has_nothing_to_say(worker: RunningWorker) -> None:
    shard_map = map_of((0, 1), {})
    block = blocks_by_slot(shard_map, 0)
    worker.server.set_map(shard_map)
    client = worker.client()
    lanes = [client.lane(), client.lane(express=True)]
    lanes[0].put([block])
    for lane in lanes:
        assert lane.get(block.block_id, map_epoch=7)[0].payload == block.data
        assert lane.get(block.block_id, map_epoch=8)[0].status is Status.WRONG_OWNER
    assert client.exists(block.block_id, map_epoch=7) == [1]
    assert client.exists(block.block_id, map_epoch=8) == [Status.WRONG_OWNER]


def test_requests_by_a_newer_map_are_counted(worker: RunningWorker) -> None:
    client = worker.client()
    client.request(Opcode.EXISTS, encode_keys(0, bytes(32)), 1, map_epoch=5)
    assert worker.server.statistics().events.map_behind == 1


# --- many at once -----------------------------------------------------------------------------
def test_pipelined_requests_are_answered_in_order(worker: RunningWorker) -> None:
    lane = worker.client().lane()
    blocks = blocks_of(*[3000] * 20)
    lane.send(b"".join(b"".join(lane.put_frames([block])) for block in blocks))
    assert [lane.receive_statuses() for _ in blocks] == [[Status.OK]] * 20
    lane.send(b"".join(lane.get_frame(block.block_id) for block in blocks))
    got = [lane.receive_items()[0].payload for _ in blocks]
    assert got == [block.data for block in blocks]


def test_many_sessions_at_once_each_get_their_own_bytes(worker: RunningWorker) -> None:
    def one(number: int) -> int:
        client = worker.client()
        lanes = [client.lane(), client.lane(), client.lane(express=True)]
        wrong = 0
        for _ in range(5):
            for lane in lanes:
                blocks = blocks_of(*[1000 * (number + 1)] * 4)
                assert set(lane.put(blocks)) == {Status.OK}
                got = lane.get(ids_of(blocks))
                wrong += sum(got[i].payload != block.data for i, block in enumerate(blocks))
                assert client.exists(ids_of(blocks)) == [1] * 4
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(one, range(8))) == 0
    statistics = worker.server.statistics()
    assert statistics.items[Opcode.GET, Status.OK] == 8 * 5 * 3 * 4
    assert statistics.requests(Opcode.PUT) == 8 * 5 * 3
    assert (statistics.sessions, statistics.lanes, statistics.connections) == (8, 24, 32)


def test_counters_follow_what_happened(worker: RunningWorker) -> None:
    lane: Lane = worker.client().lane()
    [block] = blocks_of(5000)
    lane.put([block])
    lane.get(block.block_id + bytes(32))
    worker.server.stop()  # a request is counted after its response is out
    statistics = worker.server.statistics()
    assert (statistics.bytes_in, statistics.bytes_out) == (5000, 5000)
    assert statistics.items[Opcode.GET, Status.MISS] == 1
    assert statistics.items[Opcode.PUT, Status.OK] == 1
    assert statistics.requests(Opcode.HELLO) == 2
