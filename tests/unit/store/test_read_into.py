"""Reading straight into memory that is not the store's: placed, promoted, judged, never late."""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from memkv import keys
from memkv.limits import SECTOR_BYTES
from memkv.status import Status
from memkv.store.direct import Target
from memkv.tenant import Tenant
from memkv.testing.faults import Faults
from memkv.testing.store_bench import LENGTH, Bench

ROOM = 2 * SECTOR_BYTES


@dataclass
class Memory:
    """Aligned memory of a caller, in pieces."""

    pieces: Sequence[int] = (ROOM,)
    offset: int = 0
    mapping: mmap.mmap = field(init=False)

    def __post_init__(self) -> None:
        self.mapping = mmap.mmap(-1, 16 * SECTOR_BYTES)
        self.mapping[:] = b"\xaa" * len(self.mapping)

    def target(self) -> Target:
        view, at, parts = memoryview(self.mapping), self.offset, []
        for size in self.pieces:
            parts.append(view[at : at + size])
            at += size
        return Target(parts, sum(self.pieces))

    def content(self, length: int = LENGTH) -> bytes:
        return bytes(self.mapping[self.offset : self.offset + length])


@dataclass(frozen=True)
class Read:
    """What a read of one key came to."""

    status: Status
    placed: bool
    source: str
    length: int


def read(bench: Bench, key: str, memory: Memory, *, verify: bool = False) -> Read:
    reader = bench.store.new_reader()
    ((_, result),) = reader.read_into(
        bench.tenant, keys.block_id(key), [memory.target()], bench.deadline_ns, verify
    )
    found = Read(result.status, result.placed, result.source, result.length)
    if result.status is Status.OK and not result.placed:
        memory.target().put(0, result.payload)
    result.release()
    reader.close()
    return found


@pytest.fixture
def cold(bench: Bench) -> Bench:
    """A store with block "a" on flash that nobody asked for in a long time."""
    bench.put("a")
    bench.put("b")
    bench.power_loss()
    go_on(bench)
    return bench


def go_on(bench: Bench) -> None:
    """Let so many blocks be asked for that DRAM forgets all others."""
    bench.store._core.access_clock += 10_000


def test_a_cold_block_is_placed_and_gets_no_place_in_dram(cold: Bench) -> None:
    memory = Memory()
    clean = cold.store.statistics().memory_clean_bytes
    assert read(cold, "a", memory) == Read(Status.OK, True, "flash", LENGTH)
    assert memory.content() == cold.data("a")
    assert memory.content(ROOM)[LENGTH:] == b"\xaa" * (ROOM - LENGTH)  # not a byte beyond it
    assert cold.store.statistics().memory_clean_bytes == clean
    assert cold.counters["hits_flash"] == 1


def test_a_block_that_comes_back_soon_gets_hot(cold: Bench) -> None:
    memory = Memory()
    assert read(cold, "a", memory).placed
    assert read(cold, "a", memory) == Read(Status.OK, False, "flash", LENGTH)
    assert read(cold, "a", memory) == Read(Status.OK, False, "dram", LENGTH)
    assert memory.content() == cold.data("a")
    go_on(cold)
    assert read(cold, "b", memory).placed  # once in a while is not soon
    go_on(cold)
    assert read(cold, "b", memory).placed


@pytest.mark.parametrize(
    ("memory", "placed"),
    [
        (Memory((SECTOR_BYTES, SECTOR_BYTES)), True),
        (Memory((SECTOR_BYTES, 5), 0), True),  # too small, see below
        (Memory((SECTOR_BYTES - 1, SECTOR_BYTES)), False),
        (Memory((ROOM,), 1), False),
        (Memory((ROOM,), 512), False),
        (Memory((SECTOR_BYTES, LENGTH - SECTOR_BYTES)), True),
    ],
)
def test_only_aligned_pieces_are_read_into(cold: Bench, memory: Memory, placed: bool) -> None:
    found = read(cold, "a", memory)
    if sum(memory.pieces) < LENGTH:
        assert found.status is Status.BUFFER_TOO_SMALL
        assert found.length == LENGTH
        assert not found.placed
        return
    assert found == Read(Status.OK, placed, "flash", LENGTH)
    assert memory.content() == cold.data("a")


def test_asked_to_verify_it_comes_by_way_of_dram(cold: Bench) -> None:
    memory = Memory()
    assert read(cold, "a", memory, verify=True) == Read(Status.OK, False, "flash", LENGTH)


def test_a_small_buffer_says_the_length_and_an_absent_block_is_a_miss(cold: Bench) -> None:
    small = Memory((100,))
    assert read(cold, "a", small) == Read(Status.BUFFER_TOO_SMALL, False, "dram", LENGTH)
    assert read(cold, "absent", Memory()).status is Status.MISS
    reader = cold.store.new_reader()
    ((_, result),) = reader.read_into(
        Tenant.named("stranger"), keys.block_id("a"), [Memory().target()], cold.deadline_ns
    )
    assert result.status is Status.MISS
    reader.close()


@pytest.mark.parametrize("at", [4, 20, 60, 100, 400])
def test_a_damaged_header_is_no_hit_and_what_was_read_is_wiped(cold: Bench, at: int) -> None:
    start = cold.device.image.index(cold.data("a")) - SECTOR_BYTES
    cold.device.image[start + at] ^= 1
    memory = Memory()
    assert read(cold, "a", memory).status in (Status.CORRUPT, Status.MISS)
    assert memory.content(SECTOR_BYTES) == bytes(SECTOR_BYTES)
    assert memory.content(ROOM)[SECTOR_BYTES:] == b"\xaa" * SECTOR_BYTES
    assert read(cold, "a", memory).status is Status.MISS


def test_a_record_of_another_tenant_in_its_place_is_never_given(cold: Bench) -> None:
    other = Tenant.named("other")
    cold.put("secret", other)
    image = cold.device.image
    mine = image.index(cold.data("a")) - SECTOR_BYTES
    theirs = image.index(cold.data("secret")) - SECTOR_BYTES
    image[mine : mine + 3 * SECTOR_BYTES] = image[theirs : theirs + 3 * SECTOR_BYTES]
    memory = Memory()
    assert read(cold, "a", memory).status in (Status.CORRUPT, Status.MISS)
    assert cold.data("secret")[:SECTOR_BYTES] not in bytes(memory.mapping)
    assert memory.content(SECTOR_BYTES) == bytes(SECTOR_BYTES)


def test_a_transient_error_is_read_again(cold: Bench) -> None:
    cold.store.pump()
    cold.device.faults = Faults(fail_at=cold.device.operations + 1)
    memory = Memory()
    assert read(cold, "a", memory) == Read(Status.OK, True, "flash", LENGTH)
    assert memory.content() == cold.data("a")
    assert cold.counters["rereads"] == 1


def test_an_iterator_that_is_dropped_has_finished_with_the_memory(cold: Bench) -> None:
    memories = [Memory(), Memory()]
    reader = cold.store.new_reader()
    results: Iterator[object] = reader.read_into(
        cold.tenant, keys.block_ids(["a", "b"]), [m.target() for m in memories], cold.deadline_ns
    )
    next(results)
    results.close()  # type: ignore[attr-defined]  # a generator
    assert not reader._flights
    for memory in memories:
        memory.mapping[:] = bytes(len(memory.mapping))
    reader.close()
    assert all(memory.content(ROOM) == bytes(ROOM) for memory in memories)
    statistics = cold.store.statistics()
    assert statistics.memory_free_bytes + statistics.memory_clean_bytes == _free(cold)


def _free(bench: Bench) -> int:
    """What is free when nothing is used: all but the reserve of reclaim."""
    reserve = bench.store._core.reserve
    assert reserve is not None
    return bench.store.statistics().memory_bytes - reserve.sectors * SECTOR_BYTES


def test_after_the_deadline_nothing_begins_and_what_flies_is_waited_for(cold: Bench) -> None:
    memory = Memory()
    reader = cold.store.new_reader()
    ((_, result),) = reader.read_into(
        cold.tenant, keys.block_id("a"), [memory.target()], cold.clock.monotonic_ns()
    )
    assert result.status is Status.TIMEOUT
    assert memory.content(ROOM) == b"\xaa" * ROOM
    go_on(cold)
    deadline_ns = cold.deadline_ns
    results = reader.read_into(
        cold.tenant, keys.block_ids(["a", "b"]), [memory.target(), memory.target()], deadline_ns
    )
    next(results)
    cold.clock.advance_ms(2_000)
    late = [result.status for _, result in results]
    assert late in ([Status.TIMEOUT], [Status.OK])
    assert not reader._flights
    reader.close()
