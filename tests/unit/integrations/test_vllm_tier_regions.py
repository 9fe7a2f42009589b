"""Files behind memory: what the kernel lists, and what of it can be opened."""

import mmap
import os
from pathlib import Path

from memkv._hotpath import address_of
from memkv.integrations.vllm_tier.regions import Span, spans_of

PAGE = mmap.PAGESIZE
LISTED = """\
10000-14000 rw-s 00001000 00:1a 77 /dev/shm/cache one.mmap
14000-18000 rw-s 00005000 00:1a 77 /dev/shm/cache one.mmap
18000-1a000 rw-s 00000000 00:1a 78 /dev/shm/two.mmap
1a000-1c000 rw-p 00000000 00:1a 78 /dev/shm/two.mmap
1c000-1d000 rw-p 00000000 00:00 0
1e000-1f000 rw-s 00000000 00:01 9 /dev/zero (deleted)
""".splitlines()
ONE = "/dev/shm/cache one.mmap"


def test_memory_is_cut_where_files_change() -> None:
    assert spans_of(0x10000, 0xD000, LISTED) == [
        Span(0x10000, 0x8000, ONE, 0x1000, 77),
        Span(0x18000, 0x2000, "/dev/shm/two.mmap", 0, 78),
        Span(0x1A000, 0x3000),
    ]


def test_a_part_of_a_mapping_begins_further_in_its_file() -> None:
    assert spans_of(0x13000, 0x2000, LISTED) == [Span(0x13000, 0x2000, ONE, 0x4000, 77)]
    assert spans_of(0x1D000, 0x1000, LISTED) == []


def test_a_mapping_of_this_process_is_found_and_opened(tmp_path: Path) -> None:
    path = tmp_path / "cache.mmap"
    path.write_bytes(bytes(4 * PAGE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 3 * PAGE, offset=PAGE) as mapping:
        address = address_of(mapping)
        (span,) = spans_of(address + PAGE, 2 * PAGE)
        assert (span.path, span.offset, span.size_bytes) == (str(path), 2 * PAGE, 2 * PAGE)
        fd = span.open()
        assert fd is not None
        try:
            os.pwrite(fd, b"seen", span.offset)
        finally:
            os.close(fd)
        assert mapping[PAGE : PAGE + 4] == b"seen"


def test_a_file_without_its_name_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "cache.mmap"
    path.write_bytes(bytes(PAGE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), PAGE) as mapping:
        path.unlink()
        (span,) = spans_of(address_of(mapping), PAGE)
        assert span.open() is None
        path.write_bytes(b"another")
        assert Span(span.address, PAGE, str(path), 0, span.inode).open() is None


def test_private_memory_has_no_file() -> None:
    with mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as mapping:
        spans = spans_of(address_of(mapping), PAGE)
        assert [(span.size_bytes, span.path, span.open()) for span in spans] == [(PAGE, "", None)]
