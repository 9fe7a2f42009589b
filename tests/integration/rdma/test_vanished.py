"""A client that vanishes with work in flight: the node lets go of all of it, and others go on."""

import socket
import struct
import time
from collections.abc import Callable

import pytest

from memkv.limits import KIB, MIB, SECTOR_BYTES
from memkv.testing import wire_rdma
from memkv.testing.fake_verbs import FakeFabric, FakeVerbs
from memkv.testing.local_workers import POOL, LocalWorkers
from memkv.testing.registered import Arena, content, wait_for_lanes
from memkv.testing.waiting import at_rest, eventually, stays
from memkv.testing.wire_rdma import RdmaClient
from memkv.wire.local import LocalGetItem, Part, encode_local_get
from memkv.wire.opcodes import Flag, Opcode

SIZE = MIB
DATA = content("k", SIZE)
DEADLINE_MS = 700
SLACK_S = 10.0
RESET = struct.pack("ii", 1, 0)


def cut_connection(client: RdmaClient) -> None:
    client.lane.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.lane.close()


def cut_session(client: RdmaClient) -> None:
    client.wire.control.close()


def destroy_queue_pair(client: RdmaClient) -> None:
    client.pair.close()


def take_memory(client: RdmaClient) -> None:
    client.peer.region.close()


def vanish(client: RdmaClient) -> None:
    client.peer.close()
    client.wire.close()


def pinned_sectors(pool: LocalWorkers) -> int:
    """Return how much of DRAM somebody holds: readers, writers, puts under way."""
    arena = pool.workers[0].store._core.arena
    return arena.sectors - arena.sectors_free - arena.sectors_clean


def pinned_at_rest(pool: LocalWorkers) -> int:
    """Return `pinned_sectors` once all that was put is on flash."""
    store = pool.workers[0].store
    eventually(lambda: store.statistics().queued_puts == 0, "all puts on flash")
    return at_rest(lambda: pinned_sectors(pool))


def budget_left(pool: LocalWorkers) -> int:
    service = pool.workers[0].server._dispatcher._rdma
    assert service is not None
    return service._budget._left


def wait_for_write(fabric: FakeFabric, moved_bytes: int) -> None:
    """Wait until a node's WRITE has moved more than what was moved before."""
    eventually(lambda: fabric.moved_bytes["write"] > moved_bytes, "the beginning of the WRITE")


@pytest.mark.parametrize("is_put", [False, True], ids=["get", "put"])
@pytest.mark.parametrize(
    "end", [cut_connection, cut_session, destroy_queue_pair, take_memory, vanish],
    ids=lambda one: one.__name__,
)  # fmt: skip
def test_all_of_a_vanished_client_is_released(
    fabric: FakeFabric, pool: LocalWorkers, end: Callable[[RdmaClient], None], is_put: bool
) -> None:
    worker = pool.workers[0]
    other, _ = pool.client(pool.map(), verbs=FakeVerbs(fabric, ["other0"]))
    arena = Arena(other, 2 * MIB)
    wait_for_lanes(other)
    assert other.batch_put_from(["k"], [arena.fill(0, DATA)], [SIZE]) == [0]
    whole = budget_left(pool)
    clients = [
        RdmaClient(fabric, f"client{n}", ("127.0.0.1", worker.server.port), POOL) for n in range(2)
    ]
    ids = [wire_rdma.new_id() for _ in range(8)]
    blocks = [content(str(n), SIZE) for n in range(8)]
    for one, data in zip(ids, blocks, strict=True):
        clients[0].peer.memory[:SIZE] = data
        assert wire_rdma.put(clients[0].lane, one, data, [Part(1, 0, SIZE)]) == [0]
    before = pinned_at_rest(pool)
    fabric.hold(5)
    for client in clients:
        if is_put:
            body = wire_rdma.put_frame(client.lane, wire_rdma.new_id(), DATA, [Part(1, 0, SIZE)])
            wire_rdma.send(client.lane, Opcode.RDMA_PUT, body, 1, Flag.LAST, DEADLINE_MS)
        else:
            items = [LocalGetItem(one, (Part(1, 0, SIZE),)) for one in ids]
            wire_rdma.send(
                client.lane, Opcode.RDMA_GET, encode_local_get(items), len(items),
                deadline_ms=DEADLINE_MS,
            )  # fmt: skip
    fabric.settle()
    started = time.monotonic()
    for client in clients:
        end(client)
    fabric.release()
    ends = {client.pair.number for client in clients}

    def is_anything_left() -> bool:
        with fabric.lock:
            pairs = list(fabric.queue_pairs.values())
        peers = [one.peer for one in pairs if one.device.name == "node0"]
        return any(peer is not None and peer.queue_pair in ends for peer in peers)

    while is_anything_left():
        assert other.batch_get_into(["k"], [arena.address], [SIZE]) == [SIZE]
        assert arena.holds(0, DATA)
        assert time.monotonic() - started < DEADLINE_MS / 1000 + SLACK_S
    eventually(lambda: budget_left(pool) == whole, "the whole budget")
    assert other.stats().rdma_fallbacks == 0
    eventually(lambda: pinned_sectors(pool) == before, "all of DRAM")
    for client in clients:
        client.close()


def test_a_broken_write_gives_back_the_block_that_waited_for_the_budget(
    fabric: FakeFabric, pool: LocalWorkers
) -> None:
    """The next block of a get is read while the first is under way; when that breaks, both are let
    go, again and again."""
    worker = pool.workers[0]
    service = worker.server._dispatcher._rdma
    assert service is not None
    service._budget._left = whole = SIZE  # one block at a time
    address = ("127.0.0.1", worker.server.port)
    first = RdmaClient(fabric, "client0", address, POOL)
    ids = [wire_rdma.new_id() for _ in range(4)]
    for one in ids:
        first.peer.memory[:SIZE] = DATA
        assert wire_rdma.put(first.lane, one, DATA, [Part(1, 0, SIZE)]) == [0]
    before = pinned_at_rest(pool)
    for _ in range(30):  # 30 blocks that stay pinned are more than the rest of DRAM bears
        client = RdmaClient(fabric, "client1", address, POOL)
        fabric.hold(2)
        moved = fabric.moved_bytes["write"]
        items = [LocalGetItem(one, (Part(1, 0, SIZE),)) for one in ids]
        wire_rdma.send(client.lane, Opcode.RDMA_GET, encode_local_get(items), len(items))
        wait_for_write(fabric, moved)
        client.lane.close()
        eventually(lambda: service._budget._left == whole, "the budget")
        fabric.release()
        client.close()
    eventually(lambda: pinned_sectors(pool) == before, "all of DRAM")
    first.close()


def test_a_queue_pair_that_does_not_close_keeps_its_block(
    fabric: FakeFabric, pool: LocalWorkers
) -> None:
    """What its device may still read is not lent to others."""
    worker = pool.workers[0]
    client = RdmaClient(fabric, "client0", ("127.0.0.1", worker.server.port), POOL)
    block_id = wire_rdma.new_id()
    data = content("kept", 256 * KIB)
    client.peer.memory[: len(data)] = data
    parts = (Part(1, 0, len(data)),)
    assert wire_rdma.put(client.lane, block_id, data, parts) == [0]
    before = pinned_at_rest(pool)
    fabric.hold(1)
    body = encode_local_get([LocalGetItem(block_id, parts)])
    wire_rdma.send(client.lane, Opcode.RDMA_GET, body, 1)
    wait_for_write(fabric, 0)
    fabric.knobs.refuse_closes["node0"] = 1_000_000
    client.lane.close()
    left = budget_left(pool)
    stays(lambda: budget_left(pool) == left, "the budget that is taken")
    assert pinned_sectors(pool) >= before + len(data) // SECTOR_BYTES
    fabric.knobs.refuse_closes.clear()
    eventually(lambda: pinned_sectors(pool) == before, "the end of the pin")
    assert budget_left(pool) == left + len(data)
    fabric.release()
    client.close()
