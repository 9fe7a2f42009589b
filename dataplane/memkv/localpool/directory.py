"""The directory of a local pool: what it was made with, and whether it runs now.

    pool.json   what the pool was made with; reopening it with anything else is refused
    pool.lock   held while a process of the pool runs; says who and where
    node-N/     state and flash of a node;  metadata/  the map;  logs/  of all processes

The lock's descriptor is given to the pool's processes: when the one that started them was killed,
a new pool waits until the last of them has ended.
"""

import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from memkv.errors import ConfigError
from memkv.metadata.files import write_durably

RECORD_FILE = "pool.json"
LOCK_FILE = "pool.lock"
FLASH_FILE = "flash.data"
LOCK_PATIENCE_S = 10.0  # nodes of a killed pool flush and end within that
LOCK_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class PoolRecord:
    """What a pool was made with. Capacity is of each node."""

    name: str
    nodes: int
    capacity_bytes: int


def read_record(directory: Path) -> PoolRecord | None:
    """Return what the pool in a directory was made with; None where there is none."""
    path = directory / RECORD_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return PoolRecord(str(found["name"]), int(found["nodes"]), int(found["capacity_bytes"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): restore it from a copy, or choose another --dir"
        ) from error


def write_record(directory: Path, record: PoolRecord) -> None:
    """Keep what a pool is made with."""
    document = {
        "name": record.name, "nodes": record.nodes, "capacity_bytes": record.capacity_bytes
    }  # fmt: skip
    write_durably(directory / RECORD_FILE, (json.dumps(document) + "\n").encode())


def check_record(directory: Path, found: PoolRecord | None, wanted: PoolRecord) -> None:
    """Raise ConfigError when a directory holds a pool that this would break."""
    if found is None:
        return
    if found.name != wanted.name:
        raise ConfigError(
            f"{directory} holds the pool {found.name}, not {wanted.name}: say --pool {found.name},"
            " or choose another --dir"
        )
    if found.nodes > wanted.nodes:
        raise ConfigError(
            f"{directory} holds a pool of {found.nodes} nodes, and {wanted.nodes} cannot serve"
            f" their blocks: say --nodes {found.nodes}, or choose another --dir"
        )


def missing_bytes(directory: Path, nodes: int, capacity_bytes: int) -> int:
    """Return how much the nodes' files will still take; those that are there keep their size."""
    missing = 0
    for number in range(1, nodes + 1):
        try:
            found = (directory / f"node-{number}" / FLASH_FILE).stat()
            missing += max(0, found.st_size - found.st_blocks * 512)
        except FileNotFoundError:
            missing += capacity_bytes
    return missing


class DirectoryLock:
    """Held by one local pool at a time. Released when the last process that has it ends."""

    def __init__(self, directory: Path, endpoint: str) -> None:
        """ConfigError naming the pool that runs there."""
        path = directory / LOCK_FILE
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not self._lock_patiently():
            owner = os.pread(self.descriptor, 200, 0).decode(errors="replace").strip()
            os.close(self.descriptor)
            raise ConfigError(
                f"a pool runs in {directory} already ({owner or 'starting just now'}): use it,"
                " stop it with Ctrl-C or SIGTERM, or choose another --dir"
            )
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, f"process {os.getpid()}, endpoint {endpoint}\n".encode(), 0)

    def _lock_patiently(self) -> bool:
        """Wait only for processes whose pool is gone: one that lives keeps the lock."""
        give_up = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > give_up or owner_lives(self.descriptor):
                    return False
            time.sleep(LOCK_POLL_S)

    def release(self) -> None:
        """Close our descriptor; children that still run keep theirs. Idempotent."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def owner_lives(descriptor: int) -> bool:
    """Return whether the process named in the lock file exists."""
    words = os.pread(descriptor, 200, 0).decode(errors="replace").replace(",", " ").split()
    if len(words) < 2 or not words[1].isdigit():
        return False
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # of another user, so it exists
    return True
