"""Slots move between real workers with real stores, and nothing is lost or comes back."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memkv import _hotpath
from memkv.client.options import BlockHint, PutOptions
from memkv.client.requests import Requests
from memkv.client.sync import Client
from memkv.clock import deadline_after_ms
from memkv.errors import PeerGone
from memkv.keys import block_ids
from memkv.limits import KIB
from memkv.node.moves import keeper
from memkv.node.moves.peer import Peer, TakeBlock
from memkv.pattern import block, seed_of
from memkv.shardmap import WorkerState
from memkv.status import Status
from memkv.testing.moving_pool import CLOCK, SLOTS, WAIT_MS, MovingNode, MovingPool
from memkv.wire.messages import ListKind, ListPage

SIZE = 20 * KIB


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[MovingPool]:
    made = MovingPool(tmp_path)
    yield made
    made.close()


def content(key: str) -> bytes:
    return bytes(block(seed_of(key), SIZE))


def put_all(client: Client, keys: list[str], options: PutOptions | None = None) -> None:
    sources = [bytearray(content(key)) for key in keys]
    statuses = client.batch_put_from(
        keys, [_hotpath.address_of(one) for one in sources], [SIZE] * len(keys), options
    )
    assert statuses == [Status.OK] * len(keys)


def missing(client: Client, keys: list[str]) -> list[str]:
    """Get every key, check the bytes of hits, and return the misses."""
    targets = [bytearray(SIZE) for _ in keys]
    sizes = client.batch_get_into(
        keys, [_hotpath.address_of(one) for one in targets], [SIZE] * len(keys)
    )
    for key, size, target in zip(keys, sizes, targets, strict=True):
        assert size < 0 or target == content(key), "wrong bytes"
    return [key for key, size in zip(keys, sizes, strict=True) if size < 0]


def slots_of(keys: list[str]) -> list[int]:
    packed = _hotpath.slots_of(block_ids(keys, b"default"), SLOTS)
    return [int.from_bytes(packed[2 * i : 2 * i + 2], "little") for i in range(len(keys))]


def slots_held(node: MovingNode) -> set[int]:
    return {slot for slot in range(SLOTS) if node.store.list_slot(slot, 0, 1)[1]}


def own_slots(pool: MovingPool, node: MovingNode) -> set[int]:
    index = pool.the_map.index_of(node.uuid)
    assert index is not None
    return set(pool.the_map.slots_of(index))


def test_every_block_hits_while_a_pool_grows_and_previous_owners_retire(pool: MovingPool) -> None:
    first, second = pool.add("a"), pool.add("b")
    pool.settle()
    client = pool.client()
    keys = [f"block {number}" for number in range(300)]
    hints = [BlockHint(b"prefix-1", 7, b"session1")]
    put_all(client, keys[:200])
    put_all(client, keys[200:], PutOptions(ttl_s=5000, hints=hints))

    third = pool.add("c")
    pool.tick_until("slots move", lambda: bool(pool.the_map.moving))
    assert missing(client, keys) == []
    pool.tick_until("a block is copied", lambda: third.keeper.statistics().pulls.blocks > 0)
    assert missing(client, keys) == []
    pool.settle()
    assert missing(client, keys) == []

    moved = own_slots(pool, third)
    assert moved
    held = third.store.statistics().blocks
    assert held == sum(slot in moved for slot in slots_of(keys))
    for node in (first, second):
        assert slots_held(node) == own_slots(pool, node), "copied blocks are dropped"
    entries = [one for slot in moved for one in third.store.list_slot(slot, 0, 1000)[1]]
    assert {(one.depth, one.expiry_s > 0) for one in entries} == {(0, False), (7, True)}
    client.close()


def test_blocks_deleted_while_slots_move_stay_deleted(pool: MovingPool) -> None:
    pool.add("a")
    pool.settle()
    client = pool.client()
    keys = [f"block {number}" for number in range(200)]
    put_all(client, keys)
    deleted: list[str] = []
    pool.add("b")
    pool.tick_until("slots move", lambda: bool(pool.the_map.moving))
    for number, key in enumerate(keys):
        if number % 2 == 0 and client.remove(key) == Status.OK:
            deleted.append(key)
        if number % 20 == 0:
            pool.tick()
            assert set(missing(client, keys)) >= set(deleted)
    pool.settle()
    assert len(deleted) > 20
    gone = set(missing(client, keys))
    assert gone >= set(deleted)
    assert gone <= set(keys[::2]), "nothing else is lost"


def test_node_that_was_away_during_deletes_serves_the_rest_warm(pool: MovingPool) -> None:
    first = pool.add("a")
    second = pool.add("b")
    pool.settle()
    client = pool.client()
    keys = [f"block {number}" for number in range(200)]
    put_all(client, keys, PutOptions(durability="durable"))
    its = [key for key, slot in zip(keys, slots_of(keys), strict=True)
           if slot in own_slots(pool, second)]
    second.kill()
    pool.tick_until(
        "b is lost", lambda: any(w.state is WorkerState.LOST for w in pool.the_map.workers)
    )
    pool.tick_until("a owns all", lambda: own_slots(pool, first) == set(range(SLOTS)))
    applied = first.keeper.statistics
    pool.tick_until("a serves", lambda: applied().applied_epoch == pool.the_map.version.epoch)
    deleted, kept = its[::3], [key for key in its if key not in its[::3]]
    assert deleted
    assert client.batch_remove(deleted) == [Status.OK] * len(deleted)
    second.start(None)
    pool.settle()
    assert own_slots(pool, second)
    pool.tick_until("b is reached, warm", lambda: missing(client, kept) == [])
    assert missing(client, deleted) == deleted
    assert second.store.recovery.blocks >= len(kept)

    second.kill()  # what it heard outlives the next restart too
    second.start(pool.map)
    pool.settle()
    pool.tick_until("b is reached again", lambda: missing(client, kept) == [])
    assert missing(client, deleted) == deleted


def lose(pool: MovingPool, other: MovingNode) -> None:
    """Tick until one of two nodes is lost and the other owns and serves everything."""
    pool.tick_until(
        "it is lost", lambda: any(w.state is WorkerState.LOST for w in pool.the_map.workers)
    )
    pool.tick_until("one owns all", lambda: own_slots(pool, other) == set(range(SLOTS)))
    applied = other.keeper.statistics
    pool.tick_until("it serves", lambda: applied().applied_epoch == pool.the_map.version.epoch)


@pytest.mark.parametrize("believed", [False, True], ids=["as-it-is", "without-the-check"])
def test_owner_again_that_goes_by_its_old_map_is_not_believed(
    pool: MovingPool, monkeypatch: pytest.MonkeyPatch, believed: bool
) -> None:
    """A stopped supervisor: its worker goes on, is lost, and is owner again before it knows."""
    first, second = pool.add("a"), pool.add("b")
    pool.settle()
    client = pool.client()
    keys = [f"block {number}" for number in range(60)]
    put_all(client, keys)
    its = [key for key, slot in zip(keys, slots_of(keys), strict=True)
           if slot in own_slots(pool, second)]
    second.answers_polls = second.hears_maps = False
    lose(pool, first)
    assert client.batch_remove(its) == [Status.OK] * len(its)
    second.answers_polls = True
    pool.tick_until("b owns again", lambda: own_slots(pool, second) != set())
    if believed:  # negative control: the test sees what the check is for
        monkeypatch.setattr(Requests, "_by_need", lambda self, worker, keys, some: [(0, some)])
    found = client.batch_is_exist(its)
    assert missing(client, its) == ([] if believed else its)
    assert found == [int(believed)] * len(its)
    second.hears_maps = True
    second.keeper.offer(pool.the_map)
    pool.settle()
    assert missing(client, its) == its


@pytest.mark.parametrize("asks", [True, False], ids=["as-it-is", "without-asking"])
def test_node_back_without_metadata_does_not_serve_by_a_map_that_others_know_is_old(
    pool: MovingPool, monkeypatch: pytest.MonkeyPatch, asks: bool
) -> None:
    """And a client that missed the same maps asks it."""
    if not asks:  # negative control
        monkeypatch.setattr(keeper, "is_outdated", lambda *_: False)
    first, second = pool.add("a"), pool.add("b")
    pool.settle()
    client, late = pool.client(), pool.client()
    keys = [f"block {number}" for number in range(60)]
    put_all(client, keys, PutOptions(durability="durable"))
    its = [key for key, slot in zip(keys, slots_of(keys), strict=True)
           if slot in own_slots(pool, second)]
    pool.sources.pop()  # it hears of nothing any more
    kept, port = pool.the_map, second.server.port
    second.kill()
    lose(pool, first)
    assert client.batch_remove(its) == [Status.OK] * len(its)
    second.start(kept, port=port)
    wait_for("b is reached", lambda: {view.session for view in late.attachment.workers()} == {"up"})
    if not asks:
        wait_for("deleted blocks are back", lambda: missing(late, its) == [])
        return
    assert missing(late, its) == its
    first.kill()  # nobody is left to say so: it is served, or no pool could start by itself
    wait_for("b serves", lambda: missing(late, its) == [])


def wait_for(what: str, holds: Callable[[], bool]) -> None:
    deadline_ns, pause = deadline_after_ms(CLOCK, WAIT_MS), threading.Event()
    while not holds():
        assert CLOCK.monotonic_ns() < deadline_ns, f"in vain: {what}"
        pause.wait(0.01)


class CutPeer:
    """Breaks off after some pulls."""

    def __init__(self, peer: Peer, budget: list[int]) -> None:
        self._peer = peer
        self._budget = budget

    @property
    def served(self) -> tuple[int, int]:
        return self._peer.served

    def pages(self, slot: int, kind: ListKind, since_epoch: int = 0) -> Iterator[ListPage]:
        return self._peer.pages(slot, kind, since_epoch)

    def pull(self, tenant_tag: bytes, ids: list[bytes], take: TakeBlock) -> list[Status]:
        if self._budget[0] == 0:
            raise PeerGone("cut by the test")
        self._budget[0] -= 1
        return self._peer.pull(tenant_tag, ids[:2], take) + [Status.BUSY] * len(ids[2:])

    def close(self) -> None:
        self._peer.close()


def test_pull_goes_on_after_a_restart_in_its_middle(pool: MovingPool) -> None:
    pool.add("a")
    pool.settle()
    client = pool.client()
    keys = [f"block {number}" for number in range(200)]
    put_all(client, keys)
    budget = [5]
    third = MovingNode("c", pool.folder)
    third.wrap_peer = lambda peer: CutPeer(peer, budget)
    pool.nodes["c"] = third
    pool.stack.callback(third.kill)
    third.start(pool.map)
    pool.tick_until("the pull is cut", lambda: pool.the_map.moving != {} and budget == [0])
    pool.tick_until("it tries again", lambda: third.keeper.statistics().pulls.failures > 1)
    copied = third.keeper.statistics().pulls.blocks
    assert 0 < copied <= 10
    moving = [k for k, s in zip(keys, slots_of(keys), strict=True) if s in pool.the_map.moving]
    victims = moving[:10]
    third.kill()
    third.wrap_peer = lambda peer: peer
    third.start(pool.map)
    pool.tick_until(
        "deletes are taken", lambda: set(client.batch_remove(victims)) == {Status.OK}
    )
    pool.settle()
    kept = [key for key in keys if key not in victims]
    pool.tick_until("both are reached", lambda: missing(client, kept) == [])
    assert missing(client, victims) == victims
    assert third.store.statistics().blocks == len(
        [k for k, s in zip(keys, slots_of(keys), strict=True)
         if s in own_slots(pool, third) and k not in victims]
    )


def test_worker_whose_memory_is_lost_begins_cold_but_right(pool: MovingPool) -> None:
    first = pool.add("a")
    pool.settle()
    client = pool.client()
    keys = [f"block {number}" for number in range(30)]
    put_all(client, keys, PutOptions(durability="durable"))
    first.kill()
    (first.folder / "slots").unlink()
    first.start(pool.map)
    pool.settle()
    pool.tick_until("it is reached", lambda: client.put("probe", b"probe") == Status.OK)
    assert missing(client, keys) == keys
    put_all(client, keys)
    assert missing(client, keys) == []
