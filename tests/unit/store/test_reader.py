"""Reading: sources, sizes, deadlines, damage in DRAM and on flash."""

import random
from dataclasses import replace
from pathlib import Path

from memkv import checksum, keys
from memkv.clock import SystemClock
from memkv.io.file_device import FileDevice
from memkv.limits import KIB, MIB
from memkv.status import Status
from memkv.store.api import PendingPut, PutRequest, open_store
from memkv.store.config import StoreConfig
from memkv.tenant import Tenant
from memkv.testing.faults import Faults
from memkv.testing.store_bench import LENGTH, Bench


def test_the_first_read_comes_from_flash_and_the_next_from_dram(bench: Bench) -> None:
    bench.put("a")
    bench.power_loss()
    reader = bench.store.new_reader()
    sources = []
    for _ in range(2):
        for _, result in reader.read(
            bench.tenant, keys.block_id("a"), None, bench.deadline_ns
        ):
            sources.append(result.source)
            assert result.header is not None
            assert (result.length, result.header.length) == (LENGTH, LENGTH)
            assert len(result.payload) == LENGTH
            result.release()
            result.release()
    assert sources == ["flash", "dram"]
    reader.close()


def test_every_item_of_a_batch_is_answered_once(bench: Bench) -> None:
    bench.fill(30)
    bench.power_loss()
    names = [f"fill-{number}" for number in range(35)]
    reader = bench.store.new_reader()
    answers = {}
    for position, result in reader.read(
        bench.tenant, keys.block_ids(names), None, bench.deadline_ns
    ):
        assert position not in answers
        answers[position] = result.status
        result.release()
    assert len(answers) == 35
    assert list(answers.values()).count(Status.OK) == 30
    reader.close()


def test_a_block_longer_than_the_buffer_is_reported_with_its_length(bench: Bench) -> None:
    bench.put("a")
    for _ in ("dram", "flash"):
        reader = bench.store.new_reader()
        ((_, result),) = reader.read(
            bench.tenant, keys.block_id("a"), [LENGTH - 1], bench.deadline_ns
        )
        assert (result.status, result.length) == (Status.BUFFER_TOO_SMALL, LENGTH)
        reader.close()
        bench.power_loss()


def test_nothing_is_read_after_the_deadline(bench: Bench) -> None:
    bench.put("a")
    bench.power_loss()
    reader = bench.store.new_reader()
    ids = keys.block_ids(["a", "b"])
    answers = list(reader.read(bench.tenant, ids, None, bench.clock.monotonic_ns()))
    assert [result.status for _, result in answers] == [Status.TIMEOUT] * 2
    reader.close()


def test_an_abandoned_read_gives_its_buffers_back(bench: Bench) -> None:
    bench.fill(6)
    bench.power_loss()
    free = bench.store.statistics().memory_free_bytes
    reader = bench.store.new_reader()
    ids = keys.block_ids([f"fill-{number}" for number in range(6)])
    answers = reader.read(bench.tenant, ids, None, bench.deadline_ns)
    next(answers)[1].release()
    del answers
    reader.close()
    statistics = bench.store.statistics()
    assert statistics.memory_free_bytes + statistics.memory_clean_bytes == free


def test_reclaim_goes_on_when_a_reader_left_reads_behind_and_is_not_used_any_more(
    bench: Bench,
) -> None:
    bench.fill(40)
    bench.reopen()
    reader = bench.store.new_reader()
    found = reader.read(
        bench.tenant, keys.block_ids([f"fill-{n}" for n in range(8)]), None, bench.deadline_ns
    )
    next(found)[1].release()
    del found
    table = bench.store._core.table
    assert sum(segment.readers for segment in table.all) > 0
    bench.fill(200, "more")  # no put is refused for want of the segment that was read
    assert bench.counters["segments_reclaimed"] > 10
    assert sum(segment.readers for segment in table.all) == 0
    [(_, result)] = reader.read(
        bench.tenant, keys.block_id("more-199"), None, bench.deadline_ns
    )
    assert result.status is Status.OK
    result.release()
    reader.close()


def test_reads_that_a_real_thread_left_behind_are_taken_back_by_the_writer(tmp_path: Path) -> None:
    """Many readers that drop every call in the middle, beside puts that need their segments."""
    device = FileDevice.create(str(tmp_path / "drive"), 9 * MIB, direct=False)
    config = StoreConfig(memory_bytes=8 * MIB, block_bytes_max=64 * KIB, segment_bytes=512 * KIB)
    store = open_store(device, config, SystemClock(), random.Random(1))
    tenant, clock = Tenant.named("default"), SystemClock()
    data = bytes(32 * KIB)

    def put(number: int) -> None:
        block_id = keys.block_id(f"{number}")
        seal = checksum.seal(data, block_id, tenant.tag)
        request = PutRequest(block_id, len(data), seal.root, seal.sums, durable=True)
        pending = store.begin_put(tenant, request, clock.monotonic_ns() + 10**10)
        assert isinstance(pending, PendingPut), (number, pending)
        pending.payload[:] = data
        assert pending.commit() is Status.OK
        assert store.wait_durable([pending], clock.monotonic_ns() + 10**10) == [Status.OK]

    readers = [store.new_reader() for _ in range(4)]
    for number in range(900):
        put(number)
        ids = keys.block_ids([f"{number - back}" for back in range(150, 158)])
        found = readers[number % 4].read(tenant, ids, None, clock.monotonic_ns() + 10**9)
        for _, result in found:
            result.release()
            break
        del found
    for reader in readers:
        reader.close()
    store.close()
    device.close()


def test_more_blocks_than_memory_are_read_as_the_caller_releases_them(bench: Bench) -> None:
    bench.fill(30)
    bench.power_loss()
    assert bench.store.statistics().memory_bytes < 30 * 12_288
    reader = bench.store.new_reader()
    ids = keys.block_ids([f"fill-{number}" for number in range(30)])
    statuses = []
    for _, result in reader.read(bench.tenant, ids, None, bench.deadline_ns):
        statuses.append(result.status)
        result.release()
    assert statuses == [Status.OK] * 30
    reader.close()


def test_damage_in_dram_is_healed_from_flash_when_asked_to_verify(bench: Bench) -> None:
    bench.put("a")
    reader = bench.store.new_reader()
    ((_, result),) = reader.read(bench.tenant, keys.block_id("a"), None, bench.deadline_ns)
    result.payload[100] ^= 1
    result.release()
    reader.close()
    assert bench.get("a", verify=True) is Status.OK
    assert bench.counters["corrupt"] == 1


def test_damage_on_flash_is_a_counted_miss_and_the_block_can_be_put_again(bench: Bench) -> None:
    bench.put("a")
    at = bench.device.image.index(bench.data("a"))
    bench.device.image[at - 4096 + 20] ^= 1
    bench.config = replace(bench.config, memory_bytes=bench.config.memory_bytes)
    bench.reopen()
    assert bench.get("a") in (Status.CORRUPT, Status.MISS)
    assert bench.get("a") is Status.MISS
    assert bench.put("a") is Status.OK
    assert bench.get("a") is Status.OK


def test_a_transient_read_error_is_read_again(bench: Bench) -> None:
    bench.put("a")
    bench.reopen()
    bench.store.pump()
    bench.device.faults = Faults(fail_at=bench.device.operations + 1)
    assert bench.get("a") is Status.OK
    assert bench.counters["rereads"] == 1


def test_a_lasting_read_error_drops_the_block(bench: Bench) -> None:
    bench.put("a")
    bench.reopen()
    bench.store.pump()
    bench.device.faults = Faults(fail_at=bench.device.operations + 1, fail_for_good=True)
    assert bench.get("a") is Status.CORRUPT
    bench.device.faults = Faults()
    bench.device._broken_kind = ""
    assert bench.get("a") is Status.MISS
    assert bench.counters["read_errors"] == 1
