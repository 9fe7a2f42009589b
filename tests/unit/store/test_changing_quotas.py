"""C5 while quotas change: what a tenant stored within its guarantee stays, whatever others do."""

import random
import struct
from collections.abc import Sequence
from dataclasses import replace

import pytest

from memkv import keys
from memkv.limits import KIB, MIB
from memkv.status import Status
from memkv.store.api import PendingPut
from memkv.store.config import TenantQuota
from memkv.store.guarantees import SEGMENTS_MIN, fitted_bytes, fitted_segments
from memkv.tenant import Tenant
from memkv.testing.device import WriteListDevice
from memkv.testing.store_bench import LENGTH, SEGMENT_BYTES, Bench

SEGMENTS = 32
NOISE = Tenant.named("noise")
RECORD_BYTES = 12 * KIB
PER_SEGMENT = 4  # records of three sectors; the footer takes what a fifth would need


def store(seed: int = 1, segments: int = SEGMENTS, memory_bytes: int = MIB) -> Bench:
    bench = Bench()
    bench.device = WriteListDevice(seed, size_bytes=MIB + segments * SEGMENT_BYTES)
    bench.config = replace(bench.config, memory_bytes=memory_bytes, index_blocks_max=2000)
    bench.open()
    return bench


def give(bench: Bench, **segments: int) -> None:
    """Change the quotas, also for the next open."""
    quotas = tuple(TenantQuota(name, n * SEGMENT_BYTES) for name, n in segments.items())
    bench.config = replace(bench.config, quotas=quotas)
    bench.store.set_quotas(quotas)


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}-{number}" for number in range(count)]


def mixed(bench: Bench, tenants: Sequence[Tenant], each: int, others: int = 1) -> None:
    """Let blocks of all tenants lie among each other, and among noise, in shared segments."""
    for number in range(each):
        for tenant in tenants:
            assert bench.put(f"mine-{number}", tenant) is Status.OK
        for other in range(others):
            assert bench.put(f"first-{number}-{other}", NOISE) is Status.OK


def test_a_quota_given_later_keeps_what_lies_among_blocks_of_others() -> None:
    bench = store()
    guest = Tenant.named("guest")
    mixed(bench, [guest], 16)
    give(bench, guest=8)
    bench.fill(300, "noise", NOISE)
    assert bench.hits(names("mine", 16), guest) == 16
    bench.power_loss()
    assert bench.hits(names("mine", 16), guest) == 16


def test_without_a_quota_the_same_noise_takes_everything() -> None:
    bench = store()
    guest = Tenant.named("guest")
    mixed(bench, [guest], 16)
    bench.fill(300, "noise", NOISE)
    assert bench.hits(names("mine", 16), guest) == 0


def test_many_tenants_that_get_quotas_at_once_on_a_full_drive_lose_nothing() -> None:
    """More of them than there are free segments: each needs one to carry its blocks to."""
    bench = store(segments=64)
    tenants = [Tenant.named(f"tenant-{number}") for number in range(8)]
    bench.fill(250, "old", NOISE)
    mixed(bench, tenants, 9, others=2)
    give(bench, **{tenant.name: 5 for tenant in tenants})
    for turn in range(6):
        bench.fill(100, f"noise-{turn}", NOISE)
        for tenant in tenants:
            assert bench.hits(names("mine", 9), tenant) == 9, (turn, tenant.name)
    assert not bench.store._core.quotas._joining
    assert {tenant.queue for tenant in bench.store._core.tenants.all} == set(range(9))


def test_a_quota_that_grows_protects_what_comes_and_one_that_shrinks_gives_room_back() -> None:
    bench = store()
    guest = Tenant.named("guest")
    give(bench, guest=4)
    bench.fill(60, "mine", guest)  # over its guarantee, while nobody else wants the room
    give(bench, guest=16)
    bench.fill(200, "noise", NOISE)
    assert bench.hits(names("mine", 60), guest) >= 4 * (16 - 1)
    give(bench, guest=4)
    bench.fill(200, "more", NOISE)
    left = bench.hits(names("mine", 60), guest)
    assert 4 * (4 - 1) <= left <= 4 * 4


def test_a_tenant_without_a_quota_again_shares_with_everyone() -> None:
    bench = store()
    guest = Tenant.named("guest")
    give(bench, guest=8)
    bench.fill(30, "mine", guest)
    give(bench)
    assert bench.store._core.tenants.shared_bytes == (SEGMENTS - 3) * SEGMENT_BYTES
    bench.fill(200, "noise", NOISE)
    assert bench.hits(names("mine", 30), guest) == 0
    give(bench, other=4)  # takes the queue that nobody has
    bench.fill(8, "theirs", Tenant.named("other"))
    assert len(bench.store._core.tenants.queue_owners) == 2
    bench.fill(200, "again", NOISE)
    assert bench.hits(names("theirs", 8), Tenant.named("other")) == 8


def test_deletes_hold_over_changes_of_the_queue() -> None:
    """A delete must lie behind the put that it kills, whichever queue each went to."""
    guest = Tenant.named("guest")
    for seed in range(20):
        plan, bench = random.Random(seed), store(seed)
        alive: set[str] = set()
        for _ in range(60):
            key, chance = f"key-{plan.randrange(8)}", plan.random()
            if chance < 0.4:
                assert bench.put(key, guest) is Status.OK
                alive.add(key)
            elif chance < 0.7:
                ids = keys.block_id(key)
                assert bench.store.delete(guest, ids, bench.deadline_ns) == struct.pack("<i", 0)
                alive.discard(key)
            elif chance < 0.85:
                give(bench, **plan.choice([{}, {"guest": 3}, {"noise": 4}, {"guest": 4}]))
            else:
                bench.put(f"{plan.getrandbits(20)}", NOISE)
            if plan.random() < 0.15:
                bench.power_loss()
            found = {f"key-{n}" for n in range(8) if bench.get(f"key-{n}", guest) is Status.OK}
            assert found == alive, seed


@pytest.mark.parametrize("seed", range(12))
def test_noise_never_takes_a_block_of_a_tenant_within_its_guarantee(seed: int) -> None:
    """Quotas come, grow, shrink to what is used and go on; drives fill and lose power. Each of the
    guests stores what its smallest guarantee of the run holds."""
    plan, bench = random.Random(seed), store(seed, segments=48)
    guests = [Tenant.named(f"guest-{number}") for number in range(3)]
    least = 6
    stored: dict[str, set[str]] = {guest.name: set() for guest in guests}
    bench.fill(plan.randrange(200), "old", NOISE)
    mixed(bench, guests, 6)
    for guest in guests:
        stored[guest.name] |= set(names("mine", 6))
    give(bench, **{guest.name: least for guest in guests})
    for _ in range(12):
        bench.fill(plan.randrange(120), f"noise-{plan.getrandbits(30)}", NOISE)
        guest = plan.choice(guests)
        if len(stored[guest.name]) < PER_SEGMENT * (least - 2):
            key = f"later-{len(stored[guest.name])}"
            assert bench.put(key, guest) is Status.OK
            stored[guest.name].add(key)
        if plan.random() < 0.4:
            give(bench, **{g.name: plan.randrange(least, 12) for g in guests})
        if plan.random() < 0.2:
            bench.power_loss()
        for guest in guests:
            assert bench.hits(stored[guest.name], guest) == len(stored[guest.name])


def test_a_quota_is_in_force_after_the_next_open_too() -> None:
    bench = store()
    give(bench, guest=5)
    bench.reopen()
    (guest,) = (t for t in bench.store.statistics().tenants if t.name == "guest")
    assert guest.quota_bytes == 5 * SEGMENT_BYTES


def test_memory_that_is_guaranteed_holds_what_others_cannot_push_out() -> None:
    guest = Tenant.named("guest")
    hot = names("hot", 8)
    for guaranteed in (False, True):
        bench = store(memory_bytes=512 * KIB, segments=48)
        if guaranteed:
            bench.store.set_quotas([TenantQuota("guest", memory_bytes=8 * RECORD_BYTES)])
        for key in hot:
            assert bench.put(key, guest) is Status.OK
        bench.fill(100, "noise", NOISE)
        bench.hits(names("noise", 60), NOISE)
        before = bench.counters["hits_dram"]
        assert bench.hits(hot, guest) == 8
        served = bench.counters["hits_dram"] - before
        assert served == (8 if guaranteed else 0)
        bench.store._core.arena.check_invariants()


def test_memory_that_is_guaranteed_and_not_used_yet_is_not_given_to_puts_of_others() -> None:
    bench = store(memory_bytes=512 * KIB)
    bench.store.set_quotas([TenantQuota("guest", memory_bytes=16 * RECORD_BYTES)])
    flood: list[PendingPut] = []
    while not isinstance(
        put := bench.store.begin_put(
            NOISE, bench.request(f"flood-{len(flood)}", NOISE), bench.deadline_ns
        ),
        Status,
    ):
        flood.append(put)
    assert put is Status.BUSY
    mine = [bench.begin(f"mine-{number}", Tenant.named("guest")) for number in range(16)]
    for pending in [*flood, *mine]:
        pending.abort()
    bench.store._core.arena.check_invariants()


@pytest.mark.parametrize(
    ("wanted", "usable", "segments"),
    [
        ([], 10, []),
        ([1], 10, [SEGMENTS_MIN]),
        ([25, 30], 10, [3, 3]),
        ([0, 41], 10, [0, 5]),
        ([100, 100], 10, [5, 5]),
        ([300, 100], 10, [7, 2]),
        ([900, 10], 10, [9, 0]),  # a tenth of a segment is nothing that could be kept
        ([10] * 20, 10, [0] * 20),
    ],
)
def test_quotas_are_fitted_into_whole_segments(
    wanted: list[int], usable: int, segments: list[int]
) -> None:
    found = fitted_segments(wanted, usable * 10, 10)
    assert found == segments
    assert sum(found) <= usable


def test_memory_is_fitted_to_the_byte() -> None:
    assert fitted_bytes([3, 4], 7) == [3, 4]
    assert fitted_bytes([30, 10], 20) == [15, 5]
    assert fitted_bytes([30, 10], -5) == [0, 0]
    assert LENGTH < RECORD_BYTES
