"""Files of this part: the publisher's state, and the last map a client or node keeps.

Every write goes to a new file that is flushed and then renamed over the old one, and the folder is
flushed too: a crash leaves the old file or the new one, whole.
"""

import base64
import binascii
import fcntl
import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from memkv import limits
from memkv.errors import ConfigError
from memkv.metadata.ownership import Tenure
from memkv.metadata.publisher import PublisherState
from memkv.shardmap import MapInvalid, ShardMap, decode_map, encode_map

STATE_FORMAT = 1


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


def encode_state(state: PublisherState) -> bytes:
    """Return the state file's bytes: one line of JSON and one with its SHA-256."""
    workers = sorted({past.worker for trail in state.trails.values() for past in trail})
    index_of = {uuid: index for index, uuid in enumerate(workers)}
    document = {
        "format": STATE_FORMAT,
        "map": base64.b64encode(encode_map(state.shard_map)).decode("ascii"),
        "workers": [uuid.hex() for uuid in workers],
        "trails": {
            str(slot): [[index_of[past.worker], int(past.settled)] for past in trail]
            for slot, trail in sorted(state.trails.items())
        },
        "epoch_times_s": {str(epoch): at for epoch, at in sorted(state.epoch_times_s.items())},
    }
    line = json.dumps(document, separators=(",", ":")).encode("ascii")
    return line + b"\n" + sha256(line).hexdigest().encode("ascii") + b"\n"


def decode_state(data: bytes) -> PublisherState:
    """Return the state. ConfigError for anything but what `encode_state` gave."""
    line, _, digest = data.partition(b"\n")
    if sha256(line).hexdigest().encode("ascii") != digest.strip():
        raise ConfigError("its checksum does not match")
    document: Mapping[str, object] = json.loads(line)
    if document.get("format") != STATE_FORMAT:
        raise ConfigError(f"its format is {document.get('format')}, this version reads 1")
    try:
        return _state_of(document)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, MapInvalid) as error:
        raise ConfigError(f"it is not a publisher's state ({error})") from error


def _state_of(document: Mapping[str, object]) -> PublisherState:
    encoded, workers = document["map"], document["workers"]
    trails, times = document["trails"], document["epoch_times_s"]
    if not (
        isinstance(encoded, str)
        and isinstance(workers, list)
        and isinstance(trails, dict)
        and isinstance(times, dict)
    ):
        raise TypeError("a field has another type")
    try:
        shard_map = decode_map(base64.b64decode(encoded, validate=True))
    except binascii.Error as error:
        raise ValueError("the map is not base64") from error
    uuids = [bytes.fromhex(text) for text in workers]
    return PublisherState(
        shard_map,
        {
            int(slot): tuple(Tenure(uuids[index], bool(settled)) for index, settled in trail)
            for slot, trail in trails.items()
        },
        {int(epoch): int(at) for epoch, at in times.items()},
    )


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
