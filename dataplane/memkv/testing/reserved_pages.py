"""Reserves huge pages of this machine for a test, and gives them back."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memkv.io.huge_pages import free_pages
from memkv.limits import MIB

PAGE_BYTES = 2 * MIB
SETTING = Path("/proc/sys/vm/nr_hugepages")
LOCK = Path("/tmp/memkv-test-hugepages.lock")


@contextmanager
def reserved_pages(count: int) -> Iterator[None]:
    """Have `count` huge pages of 2 MiB free, beside those that others use.

    Skips the test, with the reason, where they cannot be had. One test of a machine at a time.
    """
    if os.geteuid() != 0 or not os.access(SETTING, os.W_OK):
        pytest.skip(f"huge pages are reserved by root only, through {SETTING}")
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = int(SETTING.read_text())
        try:
            SETTING.write_text(str(before + count))
            counted = free_pages(PAGE_BYTES)
            if counted is None or counted[0] < count:
                pytest.skip(f"the kernel found no {count} huge pages of 2 MiB: {counted}")
            yield
        finally:
            SETTING.write_text(str(before))
