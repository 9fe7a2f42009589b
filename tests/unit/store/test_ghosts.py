"""Why a block is not there: every reason with the real store, and how much is remembered."""

import struct
from dataclasses import replace

import pytest

from memkv import keys
from memkv.reasons import MissReason
from memkv.status import Status
from memkv.store.api import PendingPut
from memkv.store.ghosts import Ghosts
from memkv.tenant import Tenant
from memkv.testing.faults import Faults
from memkv.testing.store_bench import Bench


def why(bench: Bench, *names: str, tenant: Tenant | None = None) -> list[MissReason]:
    packed = bench.store.why(tenant or bench.tenant, keys.block_ids(names))
    return [MissReason(value) for (value,) in struct.iter_unpack("<i", packed)]


def test_a_block_that_is_there_needs_no_reason(bench: Bench) -> None:
    bench.put("a")
    assert why(bench, "a", "b") == [MissReason.PRESENT, MissReason.NEVER_STORED]
    assert why(bench, "a", tenant=Tenant.named("stranger")) == [MissReason.NEVER_STORED]


def test_evicted(bench: Bench) -> None:
    bench.put("a")
    bench.fill(150)
    assert bench.evicted
    assert why(bench, "a") == [MissReason.EVICTED]


def test_expired_whoever_notices_it(bench: Bench) -> None:
    bench.put("read", ttl_s=10)
    bench.put("asked", ttl_s=10)
    bench.clock.advance_ms(10_000)
    assert bench.get("read") is Status.MISS
    assert why(bench, "read", "asked") == [MissReason.EXPIRED] * 2


def test_deleted_and_stored_again(bench: Bench) -> None:
    bench.put("a")
    bench.delete("a", "never")
    assert why(bench, "a", "never") == [MissReason.DELETED, MissReason.NEVER_STORED]
    bench.put("a")
    assert why(bench, "a") == [MissReason.PRESENT]


def test_not_admitted_for_want_of_memory(bench: Bench) -> None:
    puts: list[PendingPut] = []
    while isinstance(
        put := bench.store.begin_put(bench.tenant, bench.request(f"{len(puts)}"), 0), PendingPut
    ):
        puts.append(put)
    assert put is Status.BUSY
    assert why(bench, f"{len(puts)}") == [MissReason.NOT_ADMITTED]
    for one in puts:
        one.abort()


def test_not_admitted_by_a_full_index(bench: Bench) -> None:
    bench.store.close()
    bench.config = replace(bench.config, index_blocks_max=10)
    bench.open()
    waiting = [bench.begin(f"{number}") for number in range(10)]
    assert [put.commit() for put in waiting] == [Status.OK] * 10
    put = bench.store.begin_put(bench.tenant, bench.request("last"), bench.deadline_ns)
    assert put is Status.NO_SPACE
    assert why(bench, "last") == [MissReason.NOT_ADMITTED]


def test_damaged_on_flash(bench: Bench) -> None:
    bench.put("a")
    bench.reopen()
    at = bench.device.image.index(bench.data("a"))
    bench.device.image[at + 20] ^= 1
    assert bench.get("a") is Status.CORRUPT
    assert why(bench, "a") == [MissReason.CORRUPT]


def test_lost_with_a_part_of_the_drive(bench: Bench) -> None:
    bench.put("a")
    bench.reopen()
    bench.store.pump()
    bench.device.faults = Faults(fail_at=bench.device.operations + 1, fail_for_good=True)
    assert bench.get("a") is Status.CORRUPT
    assert why(bench, "a") == [MissReason.LOST]


def test_lost_because_it_could_not_be_written(bench: Bench) -> None:
    bench.store.pump()
    bench.device.faults = Faults(fail_at=bench.device.operations + 1)
    assert bench.put("a") is Status.UNAVAILABLE
    assert why(bench, "a") == [MissReason.LOST]


def test_asking_why_leaves_recency_as_it_is(bench: Bench) -> None:
    bench.put("a")
    core = bench.store._core
    handle = core.index.find(core.tenants.named("default").number, keys.block_id("a"))
    before = core.index.stamp(handle), core.access_clock
    why(bench, "a")
    assert (core.index.stamp(handle), core.access_clock) == before


# --- the memory itself ------------------------------------------------------------------------
def ids(count: int) -> list[bytes]:
    return [keys.block_id(f"{number}") for number in range(count)]


def test_the_oldest_are_forgotten_first() -> None:
    ghosts = Ghosts(3)
    for block_id in ids(3):
        ghosts.note(0, block_id, MissReason.EVICTED)
    assert ghosts.is_complete
    ghosts.note(0, ids(4)[3], MissReason.EXPIRED)
    assert not ghosts.is_complete
    assert [ghosts.reason_of(0, block_id) for block_id in ids(4)] == [
        MissReason.NEVER_STORED, MissReason.EVICTED, MissReason.EVICTED, MissReason.EXPIRED
    ]
    assert len(ghosts) == 3


def test_what_left_again_is_remembered_from_then_on() -> None:
    ghosts = Ghosts(3)
    first, second, third, fourth = ids(4)
    for block_id in (first, second, first):
        ghosts.note(0, block_id, MissReason.EVICTED)
    ghosts.note(0, first, MissReason.DELETED)
    assert ghosts.reason_of(0, first) is MissReason.DELETED
    ghosts.note(0, third, MissReason.EVICTED)  # in the place of `second`
    assert ghosts.reason_of(0, second) is MissReason.NEVER_STORED
    assert ghosts.reason_of(0, first) is MissReason.DELETED
    ghosts.note(0, fourth, MissReason.EVICTED)
    assert ghosts.reason_of(0, first) is MissReason.DELETED
    assert len(ghosts) == 3


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_it_never_grows_beyond_its_limit(count: int) -> None:
    ghosts = Ghosts(7)
    for number in range(count):
        ghosts.note(number % 3, keys.block_id(f"{number % 50}"), MissReason.EVICTED)
        assert len(ghosts) <= 7
    assert len(ghosts._ring) <= 7


def test_tenants_have_reasons_of_their_own() -> None:
    ghosts = Ghosts()
    (block_id,) = ids(1)
    ghosts.note(1, block_id, MissReason.EVICTED)
    assert ghosts.reason_of(2, block_id) is MissReason.NEVER_STORED
