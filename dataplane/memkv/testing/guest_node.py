"""A node on a raw drive of the virtual machine, in the namespace `node`, and clients of it.

No supervisor and no services: what imports little starts soon under emulation.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

from memkv.clock import SystemClock
from memkv.io.file_device import FileDevice
from memkv.limits import MIB
from memkv.node.config import WorkerConfig
from memkv.node.server import WorkerServer
from memkv.node.store_adapter import NodeStore
from memkv.store.api import open_store
from memkv.store.config import StoreConfig
from memkv.testing.namespaces import NODE_ADDRESS, Forked
from memkv.testing.wire_client import WireClient
from memkv.wire.ticket import AnonymousVerifier

POOL = "default/test"
WORKER_UUID = b"worker of the VM"
PORT = 7070
DRIVES = Path("/dev/disk/by-id")
WIPED_BYTES = 4 * MIB  # at each end


def drive(number: int = 0) -> Path:
    """Return a drive of the machine by its stable name."""
    [path] = DRIVES.glob(f"nvme-*_memkv{number}")
    return path


def wiped(path: Path) -> Path:
    """Take from a drive what other tests left at its ends, where a store looks; return it."""
    with path.open("r+b", buffering=0) as device:
        for where, whence in ((0, os.SEEK_SET), (-WIPED_BYTES, os.SEEK_END)):
            device.seek(where, whence)
            device.write(bytes(WIPED_BYTES))
        os.fsync(device.fileno())
    return path


class GuestNode:
    """The node, a forked process; starts and ends as often as a test likes."""

    def __init__(
        self, path: Path, *, memory_bytes: int = 64 * MIB, huge_page_bytes: int = 0,
        block_bytes_max: int = 2 * MIB,
    ) -> None:  # fmt: skip
        self._path = path
        self._config = StoreConfig(
            memory_bytes, block_bytes_max=block_bytes_max, worker_uuid=WORKER_UUID,
            huge_page_bytes=huge_page_bytes,
        )  # fmt: skip
        self._child: Forked | None = None

    def start(self) -> None:
        """Start it, and return when it serves."""
        self._child = Forked("node", self._serve)
        self._child.wait_ready()

    def stop(self) -> None:
        """End it in order."""
        if self._child is not None:
            status = self._child.stop()
            self._child = None
            assert status == 0, f"the node ended with status {status}"

    def kill(self) -> None:
        """End it at once; nothing when it does not run."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def client(self) -> WireClient:
        """Open a session from the namespace of the calling thread."""
        return WireClient((NODE_ADDRESS, PORT), POOL, now_s=SystemClock().wall_s())

    def _serve(self, ready: Callable[[], None], stopped: Callable[[], None]) -> None:
        clock = SystemClock()
        device = FileDevice.open(str(self._path))
        store = open_store(device, self._config, clock, random.SystemRandom())
        server = WorkerServer(
            NodeStore(store),
            WorkerConfig(
                POOL, WORKER_UUID, 1, NODE_ADDRESS, PORT,
                block_bytes_max=self._config.block_bytes_max,
            ),
            clock,
            # Its network is two namespaces of one machine, closed to all others.
            AnonymousVerifier(loopback=True),
        )  # fmt: skip
        server.start()
        ready()
        stopped()
        server.stop()
        store.close()
        device.close()
