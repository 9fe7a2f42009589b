"""Files of this part: the publisher's state, and the last map a client or node keeps.

Every write goes to a new file that is flushed and then renamed over the old one, and the folder is
flushed too: a crash leaves the old file or the new one, whole.
"""

import fcntl
import os
from pathlib import Path

from memkv import limits
from memkv.errors import ConfigError
from memkv.metadata.publisher import PublisherState
from memkv.metadata.state_codec import decode_state, encode_state
from memkv.shardmap import MapInvalid, ShardMap, decode_map, encode_map


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file as one step. OSError when the disk is full or the folder not writable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_state(path: Path) -> PublisherState | None:
    """Return the stored state, None where there is none. ConfigError for a damaged file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(
            f"cannot read the state file {path}: {error.strerror}; --state names a file that this "
            "process may read and write"
        ) from error
    try:
        return decode_state(data)
    except ConfigError as error:
        raise ConfigError(
            f"the state file {path} cannot be used: {error}. Restore it from a copy; or move it "
            "away, and the pool starts a new lineage: nodes keep their blocks, and deletes that "
            "a node missed while it was away are forgotten"
        ) from error


class PublisherLock:
    """Holds a state file for one publisher on this machine. Released when the process ends."""

    def __init__(self, state_path: Path) -> None:
        """ConfigError when another process publishes from this file."""
        lock_path = state_path.with_name(state_path.name + ".lock")
        try:
            state_path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"cannot make {error.filename} for the publisher's state: {error.strerror}; choose "
                "another --state, in a folder that you can write to"
            ) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            raise ConfigError(
                f"another process publishes from {state_path}: stop it first, or run this one as a "
                "replica with --follow"
            ) from error

    def release(self) -> None:
        """Let another publisher start."""
        os.close(self._descriptor)


class StateFile:
    """The publisher's state on disk. Holds the lock from the start on.

    A write is a compare-and-swap: it replaces only what this object read or wrote last. The lock
    keeps a second publisher away; this also notices one that got round it (another machine on a
    network file system, a lock file that was removed) and a copy that somebody put back.
    """

    def __init__(self, path: Path) -> None:
        """ConfigError when another process publishes from this file."""
        self.path = path
        self._lock = PublisherLock(path)
        self._known: bytes | None = None

    def read(self) -> PublisherState | None:
        """Return the stored state, None where there is none. ConfigError for a damaged file."""
        state = read_state(self.path)
        self._known = self._content()
        return state

    def write(self, state: PublisherState) -> None:
        """Store the state; on disk when this returns. OSError: try again. ConfigError: the file is
        somebody else's now, and this process must not publish any more."""
        data = encode_state(state)
        # A write that failed late may have replaced the file all the same.
        if self._content() not in (self._known, data):
            raise ConfigError(
                f"{self.path} was changed by somebody else: another process publishes from it, or "
                "a copy was put back. Stop the other one; then start this one again"
            )
        write_durably(self.path, data)
        self._known = data

    def release(self) -> None:
        """Let another publisher start."""
        self._lock.release()

    def _content(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None


def save_map(path: Path, shard_map: ShardMap) -> None:
    """Keep a map for the next start. OSError when that is not possible; the caller goes on."""
    write_durably(path, encode_map(shard_map))


def load_map(path: Path) -> ShardMap | None:
    """Return the kept map, None where there is none or it is damaged: a start never fails here."""
    try:
        with path.open("rb") as file:
            return decode_map(file.read(limits.MAP_BYTES_MAX + 1))
    except (OSError, MapInvalid):
        return None
