"""What callers of the store see, with every order under the test's control."""

import struct
from collections.abc import Callable
from dataclasses import replace

import pytest

from memkv import checksum, keys
from memkv.limits import MIB, PINNED_FRACTION_MAX
from memkv.status import Status
from memkv.store import tombstones
from memkv.store.api import PendingPut
from memkv.store.config import TenantQuota
from memkv.store.requests import PutRequest
from memkv.tenant import Tenant
from memkv.testing.store_bench import LENGTH, SEGMENT_BYTES, Bench


def test_a_block_is_there_after_commit_and_after_power_loss_when_durable(bench: Bench) -> None:
    assert bench.get("a") is Status.MISS
    assert bench.put("a") is Status.OK
    assert bench.get("a") is Status.OK
    bench.power_loss()
    assert bench.get("a") is Status.OK


def test_the_first_put_of_a_key_wins(bench: Bench) -> None:
    first, second = bench.begin("a"), bench.begin("a")
    assert second.commit() is Status.OK
    assert first.commit() is Status.OK
    assert bench.store.wait_durable([first, second], bench.deadline_ns) == [Status.OK] * 2
    assert bench.store.begin_put(bench.tenant, bench.request("a"), 0) is Status.OK
    assert bench.counters["puts"] == 1


def test_a_durable_put_of_a_cached_block_makes_it_durable(bench: Bench) -> None:
    assert bench.begin("a").commit() is Status.OK
    request = bench.request("a", durable=True)
    assert bench.store.begin_put(bench.tenant, request, bench.deadline_ns) is Status.OK
    bench.device.faults = replace(bench.device.faults, crash_kept=0.0, crash_torn=0.0)
    bench.power_loss()
    assert bench.get("a") is Status.OK


def test_damaged_bytes_are_refused_on_commit(bench: Bench) -> None:
    put = bench.begin("a")
    put.payload[17] ^= 1
    assert put.commit() is Status.CORRUPT
    put = bench.begin("a")
    assert put.commit(received_sums=bytes(8)) is Status.CORRUPT
    assert bench.get("a") is Status.MISS
    assert bench.counters["corrupt"] == 2


def test_an_aborted_put_gives_its_buffer_back(bench: Bench) -> None:
    before = bench.store.statistics().memory_free_bytes
    bench.begin("a").abort()
    assert bench.store.statistics().memory_free_bytes == before
    assert bench.get("a") is Status.MISS


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda request: request._replace(length=0), Status.INVALID),
        (lambda request: request._replace(length=20 * MIB), Status.TOO_LARGE),
        (lambda request: request._replace(sums=b""), Status.INVALID),
        (lambda request: request._replace(root=b"short"), Status.INVALID),
        (lambda request: request._replace(block_id=b"short"), Status.INVALID),
    ],
    ids=["empty", "too large", "no sums", "short root", "short id"],
)
def test_impossible_puts_are_refused(
    bench: Bench, change: Callable[[PutRequest], PutRequest], status: Status
) -> None:
    request = change(bench.request("a"))
    assert bench.store.begin_put(bench.tenant, request, bench.deadline_ns) is status


def test_a_put_that_finds_no_buffer_is_busy(bench: Bench) -> None:
    puts: list[PendingPut] = []
    while isinstance(put := bench.store.begin_put(bench.tenant, bench.request(f"{len(puts)}"), 0),
                     PendingPut):  # fmt: skip
        puts.append(put)
    assert put is Status.BUSY
    assert 5 < len(puts) < 25
    puts[0].abort()
    bench.begin("again").abort()


def test_a_full_index_refuses_puts(bench: Bench) -> None:
    bench.store.close()
    bench.config = replace(bench.config, index_blocks_max=10)
    bench.open()
    statuses = [bench.put(f"{number}") for number in range(10)]
    assert statuses == [Status.OK] * 10
    bench.store.pump()  # a full index makes reclaim evict, whatever room flash has
    assert bench.evicted
    free = 10 - bench.store.statistics().blocks
    for number in range(free):
        assert bench.begin(f"more-{number}").commit() is Status.OK
    put = bench.store.begin_put(bench.tenant, bench.request("last"), bench.deadline_ns)
    assert put is Status.NO_SPACE


def test_blocks_expire_by_the_wall_clock_and_stay_expired(bench: Bench) -> None:
    bench.put("a", ttl_s=10)
    bench.put("b")
    bench.clock.advance_ms(9_000)
    assert bench.get("a") is Status.OK
    bench.clock.advance_ms(1_000)
    ids = keys.block_ids(["a", "b"])
    assert struct.unpack("<2i", bench.store.exists(bench.tenant, ids)) == (0, 1)
    assert bench.get("a") is Status.MISS
    bench.reopen()
    assert bench.get("a") is Status.MISS
    assert bench.get("b") is Status.OK
    assert bench.put("a") is Status.OK
    assert bench.get("a") is Status.OK


def test_a_full_drive_evicts_the_oldest_and_keeps_what_is_used(bench: Bench) -> None:
    bench.put("hot")
    for number in range(150):
        assert bench.put(f"{number}") is Status.OK
        assert bench.get("hot") is Status.OK
    assert keys.block_id("0") in bench.evicted
    assert keys.block_id("hot") not in bench.evicted
    counters = bench.counters
    assert 0 < counters["reappended_bytes"] <= 0.3 * counters["put_bytes"]
    bench.power_loss()
    assert bench.get("hot") is Status.OK


def test_pinned_blocks_survive_reclaim_until_the_pin_ends(bench: Bench) -> None:
    bench.put("pinned")
    bench.put("other")
    ids = keys.block_ids(["pinned", "absent"])
    assert struct.unpack("<2i", bench.store.pin(bench.tenant, ids, 60)) == (0, Status.MISS)
    bench.fill(150)
    assert bench.get("pinned") is Status.OK
    assert bench.get("other") is Status.MISS
    bench.clock.advance_ms(60_000)
    bench.fill(150, "more")
    assert bench.get("pinned") is Status.MISS


def test_leases_hold_for_their_time_and_never_shorten_a_pin(bench: Bench) -> None:
    for name in ("leased", "pinned", "other"):
        bench.put(name)
    bench.store.pin(bench.tenant, keys.block_id("pinned"), 60)
    bench.store.lease(bench.tenant, keys.block_ids(["leased", "pinned", "absent"]), 10_000)
    bench.fill(150)
    assert bench.get("leased") is Status.OK
    assert bench.get("other") is Status.MISS
    bench.clock.advance_ms(10_000)
    bench.fill(150, "more")
    assert bench.get("leased") is Status.MISS
    assert bench.get("pinned") is Status.OK


def test_pins_take_at_most_their_part_of_the_quota(bench: Bench) -> None:
    bench.fill(40)
    statuses = [
        struct.unpack("<i", bench.store.pin(bench.tenant, keys.block_id(f"fill-{n}"), 60))[0]
        for n in range(40)
    ]
    pinned = statuses.count(Status.OK)
    quota = bench.store._core.tenants.shared_bytes
    assert statuses == [Status.OK] * pinned + [Status.QUOTA] * (40 - pinned)
    limit = quota * PINNED_FRACTION_MAX * 12 / 16  # sectors of four blocks in those of a segment
    assert pinned * 12_288 <= limit < (pinned + 1) * 12_288
    bench.store.pin(bench.tenant, keys.block_id("fill-0"), 0)
    assert struct.unpack("<i", bench.store.pin(bench.tenant, keys.block_id("fill-39"), 60)) == (0,)


def test_a_deleted_block_stays_deleted(bench: Bench) -> None:
    bench.put("a")
    bench.put("b")
    bench.delete("a", "never stored")
    assert bench.get("a") is Status.MISS
    bench.power_loss()
    assert bench.get("a") is Status.MISS
    assert bench.get("b") is Status.OK
    bench.put("a")
    bench.power_loss()
    assert bench.get("a") is Status.OK


def test_deletes_a_drive_does_not_keep_up_with_are_refused_and_do_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tombstones, "TOMBSTONES_WAITING_MAX", 100)
    bench.put("a")
    monkeypatch.setattr(bench.store._engine, "pump_once", lambda: False)  # the drive hangs
    ids = keys.block_ids([f"{number}" for number in range(60)])
    for status in (Status.TIMEOUT, Status.TIMEOUT, Status.BUSY):
        statuses = bench.store.delete(bench.tenant, ids, bench.deadline_ns)
        assert set(struct.unpack("<60i", statuses)) == {status}
    monkeypatch.undo()
    bench.store.pump()
    assert bench.get("a") is Status.OK
    bench.delete("a")
    assert bench.store._core.tombstones.waiting == 0


def test_a_delete_outlives_the_reclaim_of_its_tombstone(bench: Bench) -> None:
    bench.put("a")
    bench.delete("a")
    for round_number in range(12):
        bench.fill(25, f"round-{round_number}")
        bench.power_loss()
        assert bench.get("a") is Status.MISS
    assert bench.counters["tombstones_carried"] == 0


def test_a_tombstone_is_carried_while_an_older_queue_holds_its_tenant(bench: Bench) -> None:
    """The tenant gets a quota: its new queue is reclaimed before the shared one it came from."""
    bench.put("a")
    bench.put("a", Tenant.named("neighbour"))  # a mixed segment stays in the shared queue
    bench.store.close()
    bench.config = replace(
        bench.config, quotas=(TenantQuota("default", 2 * SEGMENT_BYTES),)
    )
    bench.open()
    bench.delete("a")
    carried = 0
    for number in range(60):
        bench.put(f"{number}")
        bench.delete(f"{number}")
        carried = max(carried, bench.counters["tombstones_carried"])
    assert carried > 0
    bench.power_loss()
    assert bench.get("a") is Status.MISS


def test_a_tenant_within_its_quota_never_loses_blocks_to_another(bench: Bench) -> None:
    bench.store.close()
    bench.config = replace(
        bench.config, quotas=(TenantQuota("guest", 4 * SEGMENT_BYTES),)
    )
    bench.open()
    guest, noisy = Tenant.named("guest"), Tenant.named("noisy")
    bench.fill(12, "mine", guest)
    bench.fill(200, "theirs", noisy)
    assert bench.hits((f"mine-{n}" for n in range(12)), guest) == 12
    bench.power_loss()
    bench.fill(200, "later", noisy)
    assert bench.hits((f"mine-{n}" for n in range(12)), guest) == 12


def test_tenants_do_not_see_each_other(bench: Bench) -> None:
    other = Tenant.named("other")
    bench.put("a")
    assert bench.get("a", other) is Status.MISS
    assert bench.put("a", other) is Status.OK
    bench.delete("a")
    assert bench.get("a", other) is Status.OK
    bench.power_loss()
    assert bench.get("a") is Status.MISS
    assert bench.get("a", other) is Status.OK


def test_quotas_that_do_not_fit_are_cut_in_proportion_and_said(bench: Bench) -> None:
    bench.store.close()
    bench.config = replace(
        bench.config,
        quotas=(TenantQuota("a", 40 * SEGMENT_BYTES), TenantQuota("b", 12 * SEGMENT_BYTES)),
    )
    bench.open()
    statistics = bench.store.statistics()
    assert statistics.quota_bytes_max == 13 * SEGMENT_BYTES
    assert [tenant.quota_bytes // SEGMENT_BYTES for tenant in statistics.tenants] == [10, 3]


def test_statistics_count_what_is_there(bench: Bench) -> None:
    bench.fill(10)
    bench.delete("fill-0")
    statistics = bench.store.statistics()
    (tenant,) = statistics.tenants
    assert (tenant.name, tenant.blocks, tenant.flash_bytes) == ("default", 9, 9 * 12_288)
    assert statistics.blocks == 9
    assert sum(statistics.segments.values()) == 16
    before = tenant
    bench.power_loss()
    (tenant,) = bench.store.statistics().tenants
    assert (tenant.blocks, tenant.flash_bytes) == (before.blocks, before.flash_bytes)


def test_slots_are_listed_and_dropped(bench: Bench) -> None:
    names = [f"fill-{number}" for number in range(20)]
    bench.fill(20)
    bench.power_loss()
    bench.get("fill-0")
    slot = keys.slot_of(keys.block_id("fill-0"))
    cursor, listed = bench.store.list_slot(slot, 0, 100)
    assert cursor == -1
    assert [block.block_id for block in listed] == [keys.block_id("fill-0")]
    assert listed[0].length == LENGTH
    found = set()
    for name in names:
        _, listed = bench.store.list_slot(keys.slot_of(keys.block_id(name)), 0, 100)
        found |= {block.block_id for block in listed}
    assert found == {keys.block_id(name) for name in names}
    assert bench.store.drop_slots([slot]) == 1
    assert bench.get("fill-0") is Status.MISS


def test_tombstones_are_listed_by_slot_also_after_a_restart(bench: Bench) -> None:
    bench.put("a")
    bench.delete("a")
    block_id = keys.block_id("a")
    slot = keys.slot_of(block_id)
    complete, listed = bench.store.list_tombstones(slot, 0)
    assert complete
    assert [(t.tenant_tag, t.block_id) for t in listed] == [(bench.tenant.tag, block_id)]
    assert bench.store.list_tombstones(slot, listed[0].generation + 1) == (True, [])
    bench.power_loss()
    assert bench.store.list_tombstones(slot, 0)[1] == listed


def test_a_sealed_block_survives_many_incarnations(bench: Bench) -> None:
    bench.put("a")
    for _ in range(5):
        bench.reopen(clean=False)
        assert bench.get("a") is Status.OK
    assert bench.store.superblock.incarnation == 6
    assert checksum.chunk_count(LENGTH) == 1
