"""Memory of reserved huge pages: what is said when there are none, and the real ones."""

import gc
import random
import re
from pathlib import Path

import pytest

from memkv import checksum, keys, pattern
from memkv.cli import checks
from memkv.clock import SystemClock, deadline_after_ms
from memkv.errors import ConfigError
from memkv.io.file_device import FileDevice
from memkv.io.huge_pages import (
    free_pages,
    map_huge_pages,
    page_name,
    parse_page_size,
    whole_pages,
)
from memkv.limits import GIB, MIB
from memkv.status import Status
from memkv.store.api import PendingPut, PutRequest, StoreConfig, open_store
from memkv.store.arena import Arena
from memkv.tenant import Tenant
from memkv.testing.reserved_pages import PAGE_BYTES, reserved_pages

TENANT = Tenant.named("default")


def mapping_of(page_kib: int) -> int:
    """Return the KiB of this process's memory in mappings with pages of this size."""
    text = Path("/proc/self/smaps").read_text()
    found = re.findall(r"^Size: +(\d+) kB\nKernelPageSize: +(\d+) kB$", text, re.MULTILINE)
    return sum(int(size) for size, page in found if int(page) == page_kib)


@pytest.mark.parametrize(
    ("text", "size"),
    [("2Mi", 2 * MIB), ("2MiB", 2 * MIB), ("1Gi", GIB), (" 1gi ", GIB), ("none", 0), ("None", 0)],
)
def test_sizes_are_those_of_kubernetes(text: str, size: int) -> None:
    assert parse_page_size(text) == size
    assert not size or parse_page_size(page_name(size)) == size


@pytest.mark.parametrize("text", ["", "4Mi", "2M", "yes", "2097152"])
def test_other_sizes_are_refused_with_the_right_ones(text: str) -> None:
    with pytest.raises(ValueError, match="say 2Mi, 1Gi or none"):
        parse_page_size(text)


def test_memory_is_rounded_down_to_whole_pages() -> None:
    assert whole_pages(5 * MIB, PAGE_BYTES) == 4 * MIB
    assert whole_pages(PAGE_BYTES - 1, PAGE_BYTES) == 0


def test_a_shortage_tells_how_many_are_missing_and_how_to_get_them(tmp_path: Path) -> None:
    pool = tmp_path / "hugepages-2048kB"
    pool.mkdir()
    (pool / "nr_hugepages").write_text("7\n")
    (pool / "free_hugepages").write_text("3\n")
    assert free_pages(PAGE_BYTES, tmp_path) == (3, 7)
    with pytest.raises(ConfigError) as refused:
        map_huge_pages(1 << 50, PAGE_BYTES, tmp_path)  # no machine has so many
    message = str(refused.value)
    assert "3 of 7 are free" in message
    assert f"echo {4 + (1 << 29)} > {pool}/nr_hugepages" in message
    assert "restart kubelet" in message


def test_a_size_that_the_kernel_does_not_know_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no huge pages of 1Gi.*hugepagesz=1G hugepages=1048576"):
        map_huge_pages(1 << 50, GIB, tmp_path)
    assert free_pages(GIB, tmp_path) is None


def test_an_arena_is_made_of_huge_pages_and_gives_them_back() -> None:
    with reserved_pages(4):
        before = free_pages(PAGE_BYTES)
        assert before is not None
        arena = Arena(7 * MIB, lambda handle, start: None, PAGE_BYTES)
        assert arena.sectors * 4096 == 6 * MIB
        assert mapping_of(PAGE_BYTES // 1024) == 6 * 1024
        assert free_pages(PAGE_BYTES) == (before[0] - 3, before[1])
        extent = arena.allocate(arena.sectors)
        assert extent is not None
        extent.view[:] = bytes(len(extent.view))
        extent.view.release()
        arena.view.release()
        arena.memory.close()
        assert free_pages(PAGE_BYTES) == before


def test_too_few_pages_are_an_error_and_not_a_killed_process() -> None:
    with reserved_pages(2):
        counted = free_pages(PAGE_BYTES)
        assert counted is not None
        with pytest.raises(ConfigError, match=f"{counted[0]} of {counted[1]} are free"):
            Arena((counted[0] + 1) * PAGE_BYTES, lambda handle, start: None, PAGE_BYTES)


def test_the_doctor_counts_them() -> None:
    with reserved_pages(2):
        counted = free_pages(PAGE_BYTES)
        assert counted is not None
        check = checks.huge_pages()
        assert f"{counted[0]} of {counted[1]} 2Mi" in check.found


@pytest.mark.parametrize("use_io_uring", [True, False], ids=["io_uring", "pread"])
def test_a_store_keeps_blocks_in_huge_pages(tmp_path: Path, use_io_uring: bool) -> None:
    clock, length = SystemClock(), 300_001
    config = StoreConfig(
        memory_bytes=9 * MIB, huge_page_bytes=PAGE_BYTES, block_bytes_max=MIB, segment_bytes=4 * MIB
    )
    block_id = keys.block_id("key")
    data = pattern.block(1, length)
    seal = checksum.seal(data, block_id, TENANT.tag)
    with reserved_pages(6):
        device = FileDevice.create(
            str(tmp_path / "flash"), 96 * MIB, direct=False, use_io_uring=use_io_uring
        )
        store = open_store(device, config, clock, random.SystemRandom())
        assert store.statistics().memory_bytes == 8 * MIB
        assert mapping_of(PAGE_BYTES // 1024) == 8 * 1024
        deadline_ns = deadline_after_ms(clock, 20_000)
        request = PutRequest(block_id, length, seal.root, seal.sums, durable=True)
        pending = store.begin_put(TENANT, request, deadline_ns)
        assert isinstance(pending, PendingPut)
        pending.payload[:] = data
        assert pending.commit() is Status.OK
        assert store.flush(deadline_ns)
        store.close()
        device.close()
        del pending, store
        gc.collect()  # parts of a store know each other
        assert mapping_of(PAGE_BYTES // 1024) == 0

        device = FileDevice.open(str(tmp_path / "flash"), direct=False, use_io_uring=use_io_uring)
        store = open_store(device, config, clock, random.SystemRandom())
        reader = store.new_reader()
        [(_, result)] = list(reader.read(TENANT, block_id, None, deadline_ns, verify=True))
        assert result.status is Status.OK
        assert bytes(result.payload) == data
        result.release()
        reader.close()
        store.close()
        device.close()
        del store, reader, result
        gc.collect()
