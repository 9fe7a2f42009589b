"""What a keeper lets its server serve by, and in which order it gets there. Steps are by hand."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from memkv.clock import SystemClock
from memkv.errors import PeerGone
from memkv.node.moves.keeper import MoveKeeper
from memkv.node.moves.memory import MoveMemory, load_memory
from memkv.node.moves.peer import Peer, TakeBlock
from memkv.shardmap import MapVersion, Move, ShardMap, Worker, pack_owners
from memkv.status import Status
from memkv.store.api import PendingPut
from memkv.store.requests import PutRequest
from memkv.tenant import TenantScope
from memkv.wire.messages import ListKind, ListPage

LINEAGE, ME, TAG = b"L" * 16, b"\x01" * 16, b"t" * 16
WORKERS = tuple(Worker(bytes([n]) * 16, 1, f"n{n}", "127.0.0.1", 7070 + n) for n in (1, 2))


def make_map(epoch: int, generations: Mapping[bytes, int] | None = None) -> ShardMap:
    version = MapVersion(LINEAGE, 1, epoch)
    owners = pack_owners([0, 1])
    return ShardMap(version, 2, WORKERS, owners, tenant_generations=generations or {})


@dataclass
class NotedStore:
    """Notes in one list what is purged and which map is served."""

    events: list[tuple[str, object]] = field(default_factory=list)
    generation: int = 100

    def purge_slots(self, slots: Iterable[int]) -> dict[int, int]:
        self.events += [("purge slot", slot) for slot in slots]
        return dict.fromkeys(slots, self.generation)

    def purge_tenant(self, tenant_tag: bytes) -> int:
        self.events.append(("purge tenant", tenant_tag))
        return self.generation

    def exists(self, tenant: TenantScope, ids: bytes, now_s: int | None = None) -> bytes:
        raise NotImplementedError

    def begin_put(
        self, tenant: TenantScope, request: PutRequest, deadline_ns: int
    ) -> PendingPut | Status:
        raise NotImplementedError

    def delete_tagged(self, tenant_tag: bytes, ids: bytes, deadline_ns: int) -> bytes:
        raise NotImplementedError

    def serve(self, seen: ShardMap, opened: Mapping[int, int], copies_from_epoch: int) -> None:
        owned = [slot for slot in range(seen.slots) if seen.owner_index(slot) == 0]
        self.events.append(("serve", (seen.version.epoch, owned, copies_from_epoch)))


def nobody(worker: Worker, version: MapVersion) -> Peer:
    raise PeerGone("away")


@pytest.fixture
def store() -> NotedStore:
    return NotedStore()


def make_keeper(store: NotedStore, state_file: Path, memory: MoveMemory) -> MoveKeeper:
    return MoveKeeper(ME, store, nobody, store.serve, state_file, memory, SystemClock())


def test_dropped_tenant_is_gone_before_its_map_is_served(
    store: NotedStore, tmp_path: Path
) -> None:
    """Else another worker could copy a block of it after having forgotten its own."""
    keeper = make_keeper(store, tmp_path / "slots", MoveMemory(LINEAGE, 8, heard={0: 8}))
    keeper.offer(make_map(8))
    assert keeper.step()
    store.events.clear()
    keeper.offer(make_map(9, {TAG: 1}))
    assert store.events == [("purge tenant", TAG), ("serve", (9, [0], 9))]
    assert keeper.step()
    kept = load_memory(tmp_path / "slots")
    assert kept is not None
    assert kept.tenants == {TAG: (1, 100)}
    store.events.clear()
    keeper.offer(make_map(10, {TAG: 1}))
    assert store.events == [("serve", (10, [0], 9))]


def test_first_map_of_a_life_is_served_after_others_were_asked(
    store: NotedStore, tmp_path: Path
) -> None:
    keeper = make_keeper(store, tmp_path / "slots", MoveMemory(LINEAGE, 8, heard={0: 8}))
    keeper.offer(make_map(8))
    assert store.events == [("serve", (8, [], 8))]
    assert keeper.step()
    assert ("serve", (8, [0], 8)) in store.events


def test_map_older_than_one_that_an_earlier_life_served_by_is_refused(
    store: NotedStore, tmp_path: Path
) -> None:
    memory = MoveMemory(LINEAGE, 8, heard={0: 8}, history=((8, 50),))
    keeper = make_keeper(store, tmp_path / "slots", memory)
    assert not keeper.offer(make_map(7))
    assert keeper.offer(make_map(8))


class Forgetful(Peer):
    """Does not know all deletes any more; a newer map comes while it says so."""

    served = (1, 8)

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self._meanwhile = meanwhile

    def pages(self, slot: int, kind: ListKind, since_epoch: int = 0) -> Iterator[ListPage]:
        self._meanwhile()
        yield ListPage(kind, 0, (), complete=False)

    def pull(self, tenant_tag: bytes, ids: list[bytes], take: TakeBlock) -> list[Status]:
        raise NotImplementedError

    def close(self) -> None: ...


def test_slot_forgotten_while_a_newer_map_came_in_is_opened_empty(
    store: NotedStore, tmp_path: Path
) -> None:
    moving = {0: Move((1,), 9)}
    maps = iter([replace(make_map(10), moving=moving)])
    keeper: MoveKeeper

    def offer_next() -> None:
        for shard_map in maps:
            keeper.offer(shard_map)

    memory = MoveMemory(LINEAGE, 8, heard={0: 8})
    keeper = MoveKeeper(
        ME, store, lambda *_: Forgetful(offer_next), store.serve, tmp_path / "slots", memory,
        SystemClock(),
    )  # fmt: skip
    keeper.offer(replace(make_map(9), moving=moving))
    keeper.step()
    assert keeper.step()
    assert store.events[-1] == ("serve", (10, [0], 9))
    assert keeper.statistics().applied_epoch == 10
