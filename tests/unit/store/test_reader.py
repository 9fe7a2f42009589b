"""Reading: sources, sizes, deadlines, damage in DRAM and on flash."""

from dataclasses import replace

from memkv import keys
from memkv.status import Status
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
