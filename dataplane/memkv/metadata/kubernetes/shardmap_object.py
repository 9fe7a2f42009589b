"""MemKVShardMap: the published map of a pool as an object of Kubernetes. Pure."""

import base64
import binascii

from memkv.errors import ConfigError
from memkv.metadata.kubernetes.json_values import JsonObject, JsonValue, Reader
from memkv.metadata.publisher import PublisherState
from memkv.metadata.state_codec import decode_rest, encode_rest
from memkv.shardmap import MapInvalid, ShardMap, decode_map, encode_map

PLURAL = "memkvshardmaps"
API_PATH = "/apis/memkv.io/v1alpha1"


def collection_path(namespace: str) -> str:
    """Return where the API server serves the maps of a namespace."""
    return f"{API_PATH}/namespaces/{namespace}/{PLURAL}"


def spec_of(state: PublisherState, pool_uid: str) -> dict[str, JsonValue]:
    """Return the spec that holds a publisher's state."""
    shard_map = state.shard_map
    return {
        "poolUID": pool_uid,
        "lineage": shard_map.version.lineage.hex(),
        "term": shard_map.version.term,
        "epoch": shard_map.version.epoch,
        "slots": shard_map.slots,
        "digest": shard_map.digest.hex(),
        "map": base64.b64encode(encode_map(shard_map)).decode("ascii"),
        "state": base64.b64encode(encode_rest(state)).decode("ascii"),
    }


def map_of(manifest: JsonObject) -> ShardMap:
    """Return the map of a MemKVShardMap. ConfigError when it is damaged."""
    spec = Reader(manifest).object("spec")
    try:
        shard_map = decode_map(base64.b64decode(spec.text("map"), validate=True))
    except (MapInvalid, binascii.Error) as error:
        raise ConfigError(f"the MemKVShardMap cannot be used: {error}") from error
    if shard_map.digest.hex() != spec.text("digest"):
        raise ConfigError("the MemKVShardMap cannot be used: its map has another digest")
    return shard_map


def state_of(manifest: JsonObject) -> PublisherState:
    """Return the publisher's state in a MemKVShardMap. ConfigError when it is damaged."""
    shard_map = map_of(manifest)
    encoded = Reader(manifest).object("spec").text("state")
    if not encoded:
        raise ConfigError("the MemKVShardMap has no state to go on from")
    try:
        return decode_rest(base64.b64decode(encoded, validate=True), shard_map)
    except binascii.Error as error:
        raise ConfigError(f"the MemKVShardMap's state is not base64: {error}") from error


def pool_uid_of(manifest: JsonObject) -> str:
    """Return the UID of the pool that a MemKVShardMap belongs to."""
    return Reader(manifest).object("spec").text("poolUID")
