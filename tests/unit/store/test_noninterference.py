"""C5: within its guaranteed quota, what a tenant sees does not depend on another tenant.

Every schedule of the guest is run twice, alone and beside a neighbour that uses the same keys and
fills flash, index and memory as it likes. What the guest sees must be equal, call by call.
"""

import random
import struct
from dataclasses import replace

import pytest

from memkv import keys
from memkv.limits import KIB, MIB, PINNED_FRACTION_MAX
from memkv.status import Status
from memkv.store.api import PendingPut
from memkv.store.config import TenantQuota
from memkv.tenant import Tenant
from memkv.testing.device import WriteListDevice
from memkv.testing.store_bench import SEGMENT_BYTES, Bench

GUEST, NEIGHBOUR, OTHER = (Tenant.named(name) for name in ("guest", "neighbour", "other"))
QUOTA_SEGMENTS = 6
# A segment of 16 sectors takes four records of three sectors, or tombstones; one is left open.
PUTS_MAX = 4 * (QUOTA_SEGMENTS - 1) - 4
SEGMENTS = 24
Trace = list[tuple[object, ...]]


def store(seed: int, quotas: tuple[TenantQuota, ...] | None = None) -> Bench:
    bench = Bench()
    bench.device = WriteListDevice(seed, size_bytes=MIB + SEGMENTS * SEGMENT_BYTES)
    guest = TenantQuota("guest", QUOTA_SEGMENTS * SEGMENT_BYTES)
    bench.config = replace(
        bench.config, memory_bytes=512 * KIB, index_blocks_max=400, quotas=quotas or (guest,)
    )
    bench.open()
    return bench


class Life:
    """One run of the guest's schedule, with or without others."""

    def __init__(self, seed: int, noisy: bool) -> None:
        self.bench = store(seed)
        self.plan = random.Random(seed)
        self.noise = random.Random(seed + 1)
        self.noisy = noisy
        self.puts = 0
        self.trace: Trace = []

    def run(self, steps: int) -> Trace:
        for _ in range(steps):
            if self.noisy:
                self.interfere()
            self.step()
        return self.trace

    def step(self) -> None:
        key = f"key-{self.plan.randrange(12)}"
        chance = self.plan.random()
        if chance < 0.4:
            if self.puts < PUTS_MAX:
                self.puts += 1
                self.note("put", key, self.bench.put(key, GUEST))
        elif chance < 0.7:
            self.note("get", key, self.bench.get(key, GUEST))
        elif chance < 0.8:
            ids = keys.block_ids([f"key-{n}" for n in range(12)])
            self.note("exists", self.bench.store.exists(GUEST, ids))
        elif chance < 0.85:
            ids = keys.block_id(key)
            self.note("delete", key, self.bench.store.delete(GUEST, ids, self.bench.deadline_ns))
        elif chance < 0.95:
            self.note("pin", key, self.bench.store.pin(GUEST, keys.block_id(key), 60))
        else:
            self.bench.power_loss()

    def note(self, *what: object) -> None:
        self.trace.append(what)

    def interfere(self) -> None:
        """The same keys, as other tenants; and a good deal more than flash holds."""
        for _ in range(self.noise.randrange(8)):
            tenant = self.noise.choice([NEIGHBOUR, OTHER])
            key = f"key-{self.noise.choice([self.noise.randrange(12), self.noise.getrandbits(16)])}"
            chance = self.noise.random()
            if chance < 0.8:
                self.bench.put(key, tenant)
            elif chance < 0.9:
                ids = keys.block_id(key)
                self.bench.store.delete(tenant, ids, self.bench.deadline_ns)
            else:
                self.bench.store.pin(tenant, keys.block_id(key), 60)


@pytest.mark.parametrize("first", range(0, 12, 4))
def test_a_guest_within_its_quota_sees_the_same_with_and_without_neighbours(first: int) -> None:
    for seed in range(first, first + 4):
        alone = Life(seed, noisy=False).run(60)
        beside = Life(seed, noisy=True)
        assert beside.run(60) == alone, f"seed {seed}"


def test_the_neighbours_of_the_schedules_do_fill_the_drive() -> None:
    life = Life(3, noisy=True)
    life.run(60)
    assert len(set(life.bench.evicted)) > 20


def small_blocks(bench: Bench, tenant: Tenant, count: int) -> None:
    """Blocks of the same size on flash, but many: what matters here is the index."""
    for number in range(count):
        bench.put(f"small-{number}", tenant)
        bench.store.pump()  # a put that is refused does not drive the store


def test_a_full_index_takes_from_whoever_is_over_its_share_of_it() -> None:
    bench = store(1)
    bench.store.close()
    bench.config = replace(bench.config, index_blocks_max=60)
    bench.open()
    for number in range(16):
        assert bench.put(f"mine-{number}", GUEST) is Status.OK
    guest = next(t for t in bench.store.statistics().tenants if t.name == "guest")
    assert guest.blocks == 16
    small_blocks(bench, NEIGHBOUR, 300)
    assert bench.evicted
    assert bench.hits((f"mine-{n}" for n in range(16)), GUEST) == 16


def test_nobody_gives_a_segment_while_only_a_full_open_one_is_over() -> None:
    """All flash is promised away; a tenant without a quota has one segment open, over its zero."""
    quotas = tuple(
        TenantQuota(name, segments * SEGMENT_BYTES)
        for name, segments in (("guest", QUOTA_SEGMENTS), ("second", SEGMENTS - 3 - QUOTA_SEGMENTS))
    )
    bench = store(2, quotas)
    second = Tenant.named("second")
    # Within each guarantee to the last segment: four records fill one, and one more stays open.
    for number in range(4 * QUOTA_SEGMENTS):
        assert bench.put(f"mine-{number}", GUEST) is Status.OK
    for number in range(4 * (SEGMENTS - 3 - QUOTA_SEGMENTS)):
        assert bench.put(f"theirs-{number}", second) is Status.OK
    for number in range(20):
        bench.put(f"noise-{number}", NEIGHBOUR)
    bench.store.pump()
    assert bench.hits((f"mine-{n}" for n in range(4 * QUOTA_SEGMENTS)), GUEST) == 24
    theirs = 4 * (SEGMENTS - 3 - QUOTA_SEGMENTS)
    assert bench.hits((f"theirs-{n}" for n in range(theirs)), second) == theirs


def test_a_quota_that_is_no_whole_segments_is_rounded_up() -> None:
    quota = TenantQuota("guest", QUOTA_SEGMENTS * SEGMENT_BYTES - SEGMENT_BYTES // 2)
    bench = store(3, (quota,))
    assert bench.store._core.tenants.queue_guarantees[1] == QUOTA_SEGMENTS * SEGMENT_BYTES
    for number in range(4 * QUOTA_SEGMENTS):
        assert bench.put(f"mine-{number}", GUEST) is Status.OK
    bench.fill(200, "noise", NEIGHBOUR)
    assert bench.hits((f"mine-{n}" for n in range(4 * QUOTA_SEGMENTS)), GUEST) == 24


def test_pins_of_tenants_without_a_quota_share_that_of_the_shared_queue() -> None:
    bench = store(4)
    many = [Tenant.named(f"tenant-{number}") for number in range(6)]
    pinned = 0
    for number in range(8):
        for tenant in many:
            assert bench.put(f"{number}", tenant) is Status.OK
            (status,) = struct.unpack(
                "<i", bench.store.pin(tenant, keys.block_id(f"{number}"), 60)
            )
            pinned += status == Status.OK
    shared = bench.store._core.tenants.shared_bytes
    limit = shared * PINNED_FRACTION_MAX * bench.store._core.table.filled_fraction(0)
    assert pinned * 3 * 4 * KIB <= limit < (pinned + 1) * 3 * 4 * KIB
    bench.fill(100)  # and reclaim goes on


def test_a_flood_of_one_queue_does_not_hold_back_another() -> None:
    """A write of each queue in turn: the guest's put is among the first that go to the drive."""
    bench = store(5)
    flood = [bench.begin(f"flood-{number}", NEIGHBOUR) for number in range(25)]
    mine = bench.begin("mine", GUEST)
    for put in flood:
        assert put.commit() is Status.OK
    assert mine.commit() is Status.OK
    bench.store._core.reclaim.step()
    bench.store.pump()  # free segments first
    flood = [bench.begin(f"again-{number}", NEIGHBOUR) for number in range(25)]
    mine = bench.begin("mine too", GUEST)
    for put in [*flood, mine]:
        assert put.commit() is Status.OK
    first = bench.store._core.log.poll(2)
    offsets = {mine.put.sector * 4 * KIB}
    assert offsets <= {request.offset for request in first}
    for request in first:
        request.complete(request.size_bytes)
    assert isinstance(mine, PendingPut)
