"""A pool of real processes that grows, loses a node, gets it back and loses its metadata service.

Every block that was durable goes on being hit, and no deleted block comes back.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from memkv import _hotpath
from memkv.client.options import ConnectOptions, PutOptions
from memkv.client.sync import Client
from memkv.clock import SystemClock, deadline_after_ms
from memkv.limits import KIB, MIB
from memkv.localpool.pool import LocalNode, LocalPool, PoolPlan
from memkv.metadata.watch import drop_tenant
from memkv.pattern import block, seed_of
from memkv.shardmap import WorkerState
from memkv.status import Status

SIZE = 16 * KIB
BLOCKS = 400
SLOTS = 256  # each of them is a few round trips of a move
WAIT_S = 120.0
CLOCK = SystemClock()
DURABLE = PutOptions(durability="durable")


def content(key: str) -> bytes:
    return bytes(block(seed_of(key), SIZE))


def wait_until(what: str, holds: Callable[[], bool]) -> None:
    deadline_ns, pause = deadline_after_ms(CLOCK, int(WAIT_S * 1000)), threading.Event()
    while not holds():
        assert CLOCK.monotonic_ns() < deadline_ns, f"in vain: {what}"
        pause.wait(0.02)


@dataclass
class Ledger:
    """What a client stored, what it deleted, and what must hold of both."""

    client: Client
    stored: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)

    def put(self, keys: list[str], options: PutOptions = DURABLE) -> None:
        sources = [bytearray(content(key)) for key in keys]
        addresses = [_hotpath.address_of(one) for one in sources]
        sizes = [SIZE] * len(keys)

        def stored() -> bool:  # a drive that others keep busy may take longer than a deadline
            return set(self.client.batch_put_from(keys, addresses, sizes, options)) == {0}

        wait_until("everything is stored", stored)
        self.stored |= set(keys)

    def delete(self, keys: list[str]) -> None:
        """Try to delete; a delete that is not acknowledged says nothing about the block."""
        for key, status in zip(keys, self.client.batch_remove(keys), strict=True):
            assert status in (Status.OK, Status.UNAVAILABLE)
            self.stored.discard(key)
            if status == Status.OK:
                self.deleted.add(key)

    def look_up(self, keys: set[str]) -> dict[str, int]:
        ordered = sorted(keys)
        targets = [bytearray(SIZE) for _ in ordered]
        addresses = [_hotpath.address_of(one) for one in targets]
        sizes = self.client.batch_get_into(ordered, addresses, [SIZE] * len(ordered))
        for key, size, target in zip(ordered, sizes, targets, strict=True):
            assert size < 0 or bytes(target) == content(key), f"wrong bytes of {key}"
        return dict(zip(ordered, sizes, strict=True))

    def check_deleted(self) -> None:
        if self.deleted:
            back = [key for key, size in self.look_up(self.deleted).items() if size >= 0]
            assert not back, "deleted blocks are back"

    def check(self) -> None:
        """No stored block is a miss, no deleted one a hit."""
        lost = {key: size for key, size in self.look_up(self.stored).items() if size < 0}
        assert not lost, "stored blocks are missed"
        self.check_deleted()

    def wait_warm(self) -> None:
        """Wait for sessions to come back, too."""
        wait_until("everything hits", lambda: min(self.look_up(self.stored).values()) >= 0)
        self.check_deleted()


def make_pool(directory: Path, nodes: int) -> LocalPool:
    # Tests wait for a node to be lost; one that is starved by a busy machine must not be.
    grace = ("--loss-grace", "8s")
    plan = PoolPlan(directory, nodes, 64 * MIB, 32 * MIB, slots=SLOTS, metadata_arguments=grace)
    return LocalPool(plan)


def attach(pool: LocalPool, tenant: str = "default", cache_dir: Path | None = None) -> Client:
    options = ConnectOptions(
        pool.endpoint, pool.plan.name, tenant, deadline_ms=30_000, bootstrap_timeout_ms=30_000,
        cache_dir=cache_dir,
    )  # fmt: skip
    return Client(options)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[LocalPool]:
    with make_pool(tmp_path / "pool", 3) as made:
        yield made


def state_of(pool: LocalPool, node: LocalNode) -> WorkerState | None:
    worker = pool.worker_of(node)
    return worker.state if worker is not None else None


def slots_of(pool: LocalPool, node: LocalNode) -> set[int]:
    shard_map, worker = pool.shard_map(), pool.worker_of(node)
    assert shard_map is not None
    index = shard_map.index_of(worker.uuid) if worker is not None else None
    return set(shard_map.slots_of(index)) if index is not None else set()


def test_blocks_stay_and_deletes_hold_while_a_pool_grows_and_nodes_come_back(
    pool: LocalPool, tmp_path: Path
) -> None:
    with attach(pool, cache_dir=tmp_path / "kept") as client:
        ledger = Ledger(client)
        keys = [f"block {number}" for number in range(BLOCKS)]
        ledger.put(keys)
        ledger.check()

        fourth = pool.add_node()
        wait_until("slots move", lambda: slots_of(pool, fourth) != set())
        victims = iter(keys[::5])
        rounds = 0
        while not pool.is_settled() or rounds < 5:
            ledger.delete([key for key in (next(victims, ""),) if key])
            ledger.check()
            pool.check()
            rounds += 1
        pool.wait_settled(WAIT_S)
        ledger.check()
        share = len(slots_of(pool, fourth)) / SLOTS
        assert 0.15 < share < 0.3
        assert ledger.deleted

        second = pool.nodes[1]
        its = its_keys(pool, client, second, sorted(ledger.stored))
        assert len(its) > 20
        pool.kill(second)
        wait_until("it is lost", lambda: state_of(pool, second) is WorkerState.LOST)
        wait_until(
            "its deletes are taken", lambda: set(client.batch_remove(its[:10])) == {Status.OK}
        )
        ledger.stored -= set(its)
        ledger.deleted |= set(its[:10])
        ledger.check()
        pool.start_again(second)
        pool.wait_settled(WAIT_S)
        ledger.stored |= set(its[10:])
        ledger.wait_warm()

        pool.metadata.kill()  # C8: everyone goes on with what they know
        ledger.check()
        ledger.put([f"later {number}" for number in range(20)])
        ledger.delete(keys[1:3])
        with attach(pool, cache_dir=tmp_path / "kept") as another:
            Ledger(another, set(ledger.stored), set(ledger.deleted)).wait_warm()
        pool.kill(second)
        pool.start_again(second)
        ledger.wait_warm()
        term = term_of(client)
        pool.metadata.start()
        wait_until("the client is attached again", lambda: term_of(client) > term)
        pool.wait_settled(WAIT_S)
        ledger.wait_warm()


def term_of(client: Client) -> int:
    shard_map = client.attachment.shard_map
    assert shard_map is not None
    return shard_map.version.term


def its_keys(pool: LocalPool, client: Client, node: LocalNode, keys: list[str]) -> list[str]:
    ticket = client.attachment.core.ticket
    assert ticket is not None
    hashed = client.attachment.core.hash(keys)
    assert hashed is not None
    mine = slots_of(pool, node)
    return [key for position, key in enumerate(keys) if hashed.slot_of(position) in mine]


def test_pool_that_is_opened_with_more_nodes_moves_slots_to_them(tmp_path: Path) -> None:
    keys = [f"block {number}" for number in range(BLOCKS)]
    with make_pool(tmp_path, 2) as pool, attach(pool) as client:
        Ledger(client).put(keys)
    with make_pool(tmp_path, 3) as pool:
        pool.wait_settled(WAIT_S)
        assert 0.25 < len(slots_of(pool, pool.nodes[2])) / SLOTS < 0.4
        with attach(pool) as client:
            ledger = Ledger(client, set(keys))
            ledger.wait_warm()
            assert its_keys(pool, client, pool.nodes[2], keys)


def test_blocks_of_a_dropped_tenant_never_come_back(tmp_path: Path) -> None:
    keys = [f"block {number}" for number in range(100)]
    with (
        make_pool(tmp_path, 2) as pool,
        attach(pool, "team-a") as dropped,
        attach(pool, "team-b") as other,
    ):
        for client in (dropped, other):
            Ledger(client).put(keys)
        second = pool.nodes[1]
        pool.kill(second)  # it does not hear of it; the drop waits until it cannot be asked
        version = drop_tenant(pool.endpoint, pool.plan.name, "team-a")
        assert version.epoch > 1
        assert state_of(pool, second) is WorkerState.LOST
        assert set(dropped.batch_is_exist(keys)) == {0}
        pool.start_again(second)
        pool.wait_settled(WAIT_S)
        Ledger(other, set(keys)).wait_warm()
        assert set(dropped.batch_is_exist(keys)) == {0}
        Ledger(dropped).put(["anew"])
        assert dropped.get("anew") == content("anew")
    with make_pool(tmp_path, 2) as pool, attach(pool, "team-a") as dropped:
        wait_until("it is there again", lambda: dropped.get("anew") == content("anew"))
        assert set(dropped.batch_is_exist(keys)) == {0}
