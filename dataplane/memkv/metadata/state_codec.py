"""The publisher's state as bytes. Pure.

A state file holds all of it, the map included. Where the map is stored beside it in a form that
others read (MemKVShardMap), the rest alone is what `encode_rest` gives.
"""

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from hashlib import sha256

from memkv import limits
from memkv.errors import ConfigError
from memkv.metadata.ownership import Tenure
from memkv.metadata.publisher import PublisherState
from memkv.shardmap import MapInvalid, ShardMap, decode_map, encode_map

STATE_FORMAT = 1
_MALFORMED = (AttributeError, KeyError, TypeError, ValueError, IndexError, MapInvalid)


def encode_state(state: PublisherState) -> bytes:
    """Return the state file's bytes: one line of JSON and one with its SHA-256."""
    document = {
        "format": STATE_FORMAT,
        "map": base64.b64encode(encode_map(state.shard_map)).decode("ascii"),
        **_rest_of(state),
    }
    line = json.dumps(document, separators=(",", ":")).encode("ascii")
    return line + b"\n" + sha256(line).hexdigest().encode("ascii") + b"\n"


def decode_state(data: bytes) -> PublisherState:
    """Return the state. ConfigError for anything but what `encode_state` gave."""
    line, _, digest = data.partition(b"\n")
    if sha256(line).hexdigest().encode("ascii") != digest.strip():
        raise ConfigError("its checksum does not match")
    document = _checked(json.loads(line))
    try:
        encoded = document["map"]
        if not isinstance(encoded, str):
            raise TypeError("the map has another type")
        return _joined(decode_map(base64.b64decode(encoded, validate=True)), document)
    except (*_MALFORMED, binascii.Error) as error:
        raise ConfigError(f"it is not a publisher's state ({error})") from error


def encode_rest(state: PublisherState) -> bytes:
    """Return everything but the map, compressed: trails of many slots are alike."""
    document = {"format": STATE_FORMAT, **_rest_of(state)}
    return zlib.compress(json.dumps(document, separators=(",", ":")).encode("ascii"))


def decode_rest(data: bytes, shard_map: ShardMap) -> PublisherState:
    """Return the state made of a map and what `encode_rest` gave. ConfigError for anything else."""
    try:
        unpacker = zlib.decompressobj()
        line = unpacker.decompress(data, limits.STATE_BYTES_MAX)
        if not unpacker.eof:
            raise ValueError(f"more than {limits.STATE_BYTES_MAX} bytes, or cut off")
        return _joined(shard_map, _checked(json.loads(line)))
    except (*_MALFORMED, zlib.error) as error:
        raise ConfigError(f"it is not a publisher's state ({error})") from error


def _rest_of(state: PublisherState) -> dict[str, object]:
    workers = sorted({past.worker for trail in state.trails.values() for past in trail})
    index_of = {uuid: index for index, uuid in enumerate(workers)}
    return {
        "workers": [uuid.hex() for uuid in workers],
        "trails": {
            str(slot): [[index_of[past.worker], int(past.settled)] for past in trail]
            for slot, trail in sorted(state.trails.items())
        },
        "epoch_times_s": {str(epoch): at for epoch, at in sorted(state.epoch_times_s.items())},
        "tenants": sorted(tag.hex() for tag in state.tenants),
    }


def _checked(document: Mapping[str, object]) -> Mapping[str, object]:
    if document.get("format") != STATE_FORMAT:
        raise ConfigError(f"its format is {document.get('format')}, this version reads 1")
    return document


def _joined(shard_map: ShardMap, document: Mapping[str, object]) -> PublisherState:
    workers, trails, times = document["workers"], document["trails"], document["epoch_times_s"]
    tenants = document.get("tenants", [])  # states of earlier versions name none
    if not (isinstance(workers, list) and isinstance(trails, dict) and isinstance(times, dict)):
        raise TypeError("a field has another type")
    if not isinstance(tenants, list):
        raise TypeError("the tenants are no list")
    uuids = [bytes.fromhex(text) for text in workers]
    return PublisherState(
        shard_map,
        {
            int(slot): tuple(Tenure(uuids[index], bool(settled)) for index, settled in trail)
            for slot, trail in trails.items()
        },
        {int(epoch): int(at) for epoch, at in times.items()},
        frozenset(bytes.fromhex(tag) for tag in tenants),
    )
