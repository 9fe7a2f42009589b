"""A file system that fills up under a node whose file was not preallocated.

Our own files are allocated whole before the first write; this is a sparse file that somebody made.
Puts that cannot be written are refused or lost in the open; what was acknowledged as durable stays.
"""

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memkv.clock import SystemClock
from memkv.io.file_device import FileDevice
from memkv.limits import MIB
from memkv.node.store_adapter import NodeStore
from memkv.status import Status
from memkv.store.api import StoreConfig, open_store
from memkv.testing.running_worker import RunningWorker, running_worker
from memkv.testing.wire_client import Block
from memkv.wire.items import Durability

DISK = 48 * MIB
CAPACITY = 256 * MIB
BLOCKS = 100  # of 1 MiB: twice what the disk holds


@pytest.fixture
def disk() -> Iterator[Path]:
    """A small file system of its own. Skips where none can be mounted."""
    folder = Path(tempfile.mkdtemp(prefix="memkv-disk-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        if mounted.returncode:
            pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
        yield folder
    finally:
        if not mounted.returncode:
            # Lazily: a closed ring lets go of its file a moment later.
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        shutil.rmtree(folder)


@contextmanager
def worker_on(path: Path, *, clean: bool = True) -> Iterator[RunningWorker]:
    # Buffered, for older kernels have no O_DIRECT on such a file system.
    device = FileDevice.open(str(path), direct=False)
    store = open_store(device, StoreConfig(24 * MIB, 2 * MIB), SystemClock(), random.SystemRandom())
    try:
        with running_worker(NodeStore(store), block_bytes_max=2 * MIB) as worker:
            yield worker
            assert worker.server.statistics().events.internal_errors == 0
    finally:
        store.close(clean=clean)
        device.close()


@pytest.mark.parametrize("clean", [True, False], ids=["closed", "killed"])
def test_what_was_acknowledged_outlives_a_disk_that_fills_up(disk: Path, clean: bool) -> None:
    path = disk / "sparse"
    with path.open("wb") as file:
        file.truncate(CAPACITY)
    kept: list[Block] = []
    refused: set[Status] = set()
    with worker_on(path, clean=clean) as worker:
        lane = worker.client().lane()
        for _ in range(BLOCKS):
            block = Block(os.urandom(32), os.urandom(MIB), Durability.DURABLE)
            [status] = lane.put([block])
            if status is Status.OK:
                kept.append(block)
            else:
                refused.add(status)
        assert 5 < len(kept) < DISK // MIB
        assert refused <= {Status.NO_SPACE, Status.BUSY, Status.UNAVAILABLE, Status.TIMEOUT}
        for block in kept:
            assert lane.get(block.block_id)[0].payload == block.data
        small = Block(os.urandom(32), b"cached", Durability.CACHED)
        assert lane.put([small])[0] in (Status.OK, *refused)
    with worker_on(path) as worker:
        lane = worker.client().lane()
        assert [lane.get(block.block_id)[0].payload == block.data for block in kept] == (
            [True] * len(kept)
        )
