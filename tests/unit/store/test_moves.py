"""What the store does for slots that move: purges, floors, copies that come too late."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from memkv import checksum, keys, pattern
from memkv._hotpath import slots_of
from memkv.clock import SystemClock, deadline_after_ms
from memkv.io.file_device import FileDevice
from memkv.limits import MIB
from memkv.status import Status
from memkv.store import tombstones
from memkv.store.api import PendingPut, PutRequest, Store, StoreConfig, open_store
from memkv.tenant import TaggedTenant, Tenant

CLOCK = SystemClock()
TENANT, OTHER = Tenant.named("default"), Tenant.named("other")
CONFIG = StoreConfig(
    memory_bytes=24 * MIB, block_bytes_max=1 * MIB, segment_bytes=4 * MIB, slots=16
)
LENGTH = 5_000
WAIT_MS = 20_000


@pytest.fixture
def device(tmp_path: Path) -> Iterator[FileDevice]:
    made = FileDevice.create(str(tmp_path / "flash"), 96 * MIB, direct=False)
    yield made
    made.close()


def opened(device: FileDevice, config: StoreConfig = CONFIG) -> Store:
    return open_store(device, config, CLOCK, random.SystemRandom())


def block_id(number: int) -> bytes:
    return keys.block_id(f"key {number}")


def slot_of(number: int) -> int:
    return int.from_bytes(slots_of(block_id(number), CONFIG.slots), "little")


def begin(
    store: Store, number: int, tenant: Tenant | TaggedTenant = TENANT, *,
    expiry_s: int = 0, since: int | None = None,
) -> PendingPut | Status:
    data = pattern.block(number, LENGTH)
    seal = checksum.seal(data, block_id(number), tenant.tag)
    request = PutRequest(
        block_id(number), LENGTH, seal.root, seal.sums, durable=True, expiry_s=expiry_s,
        unless_deleted_since=since,
    )  # fmt: skip
    pending = store.begin_put(tenant, request, deadline_after_ms(CLOCK, WAIT_MS))
    if isinstance(pending, PendingPut):
        pending.payload[:] = data
    return pending


def put(store: Store, number: int, tenant: Tenant = TENANT) -> None:
    pending = begin(store, number, tenant)
    assert isinstance(pending, PendingPut)
    assert pending.commit() is Status.OK
    waited = store.wait_durable([pending], deadline_after_ms(CLOCK, WAIT_MS))
    assert waited == [Status.OK]


def present(store: Store, numbers: range, tenant: Tenant = TENANT) -> list[int]:
    found = store.exists(tenant, b"".join(block_id(number) for number in numbers))
    return [number for at, number in enumerate(numbers) if found[4 * at]]


def delete(store: Store, number: int) -> None:
    done = store.delete(TENANT, block_id(number), deadline_after_ms(CLOCK, WAIT_MS))
    assert done == bytes(4)


def test_purged_slot_stays_purged_with_its_floor_and_comes_back_without(
    device: FileDevice,
) -> None:
    numbers = range(60)
    store = opened(device)
    for number in numbers:
        put(store, number)
    floors = store.purge_slots([slot_of(0)])
    kept = [number for number in numbers if slot_of(number) != slot_of(0)]
    assert len(kept) < 60
    assert present(store, numbers) == kept
    late = 1000 + next(n for n in range(100) if slot_of(1000 + n) == slot_of(0))
    put(store, late)
    store.close(clean=False)

    store = opened(device, replace(CONFIG, slot_floors=floors))
    assert present(store, numbers) == kept
    assert present(store, range(late, late + 1)) == [late], "put after the purge"
    store.close()

    store = opened(device)  # why callers must keep floors
    assert present(store, numbers) == list(numbers)
    store.close()


def test_purged_tenant_stays_purged_and_others_stay(device: FileDevice) -> None:
    store = opened(device)
    for number in range(10):
        put(store, number)
        put(store, number, OTHER)
    assert store.purge_tenant(Tenant.named("nobody").tag) > 0
    floor = store.purge_tenant(TENANT.tag)
    put(store, 3)
    assert present(store, range(10)) == [3]
    assert present(store, range(10), OTHER) == list(range(10))
    store.close()

    store = opened(device, replace(CONFIG, tenant_floors={TENANT.tag: floor}))
    assert present(store, range(10)) == [3]
    assert present(store, range(10), OTHER) == list(range(10))
    store.close()


def test_copy_of_what_was_deleted_since_is_refused_at_both_ends(device: FileDevice) -> None:
    store = opened(device)
    delete(store, 1)
    since = store.generation
    for number in (1, 2, 3):
        pending = begin(store, number, TaggedTenant(TENANT.tag), since=since)
        assert isinstance(pending, PendingPut), "deleted before, or never"
        if number == 2:
            delete(store, 2)
        assert pending.commit() is (Status.MISS if number == 2 else Status.OK)
    assert begin(store, 2, since=since) is Status.MISS
    assert begin(store, 1, since=since) is Status.OK
    assert present(store, range(1, 4)) == [1, 3]
    put(store, 2)  # a real put is news, not a copy
    assert present(store, range(1, 4)) == [1, 2, 3]
    store.close()


def test_copy_into_a_slot_or_tenant_purged_since_is_refused(device: FileDevice) -> None:
    store = opened(device)
    since = store.generation
    pending = begin(store, 1, since=since)
    store.purge_slots([slot_of(1)])
    assert isinstance(pending, PendingPut)
    assert pending.commit() is Status.MISS
    since = store.generation
    store.purge_tenant(TENANT.tag)
    assert begin(store, 1, since=since) is Status.MISS
    assert isinstance(begin(store, 1, OTHER, since=since), PendingPut)
    store.close()


def test_copy_is_refused_when_deletes_since_were_forgotten(
    device: FileDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tombstones, "TOMBSTONES_KEPT_MAX", 3)
    store = opened(device)
    since = store.generation
    for number in range(4):
        delete(store, number)
    assert begin(store, 77, since=since) is Status.MISS
    assert isinstance(begin(store, 78, since=store.generation), PendingPut)
    assert store.list_tombstones(slot_of(0), 0)[0] is False
    store.close(clean=False)

    store = opened(device)  # recovery meets the youngest first, and keeps those
    kept = {one.block_id for slot in range(16) for one in store.list_tombstones(slot, 0)[1]}
    assert kept == {block_id(number) for number in (1, 2, 3)}
    store.close()


def test_copy_keeps_its_expiry_and_an_expired_one_is_refused(device: FileDevice) -> None:
    store = opened(device)
    now_s = CLOCK.wall_s()
    assert begin(store, 1, expiry_s=now_s - 1) is Status.MISS
    pending = begin(store, 1, expiry_s=now_s + 1000)
    assert isinstance(pending, PendingPut)
    assert pending.commit() is Status.OK
    _, (listed,) = store.list_slot(slot_of(1), 0, 10)
    assert listed.expiry_s == now_s + 1000
    store.close()


def test_tombstones_of_earlier_lives_are_not_claimed_to_be_complete(device: FileDevice) -> None:
    store = opened(device)
    delete(store, 1)
    assert store.list_tombstones(slot_of(1), 0)[0] is True
    store.close()
    store = opened(device)
    began = store.generation
    complete, (found,) = store.list_tombstones(slot_of(1), 0)
    assert not complete
    assert found.block_id == block_id(1)
    assert store.list_tombstones(slot_of(1), began) == (True, [])
    store.close()


def test_background_reads_leave_dram_as_it_is(device: FileDevice) -> None:
    store = opened(device)
    put(store, 1)
    store.close()
    store = opened(device)
    reader = store.new_reader()
    for background, source in ((True, "flash"), (True, "flash"), (False, "flash"), (True, "dram")):
        deadline_ns = deadline_after_ms(CLOCK, WAIT_MS)
        ((_, result),) = reader.read(
            TENANT, block_id(1), None, deadline_ns, verify=True, background=background
        )
        assert (result.status, result.source) == (Status.OK, source)
        result.release()
    reader.close()
    store.close()
