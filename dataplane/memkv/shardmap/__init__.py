"""The shard map: the value, its builder, its encoding, and what clients do with it."""

from memkv.shardmap.builder import Candidate, Scores, build_owners
from memkv.shardmap.cache import MapCache, MapCacheStatistics, Offer, OwnerHint, Route
from memkv.shardmap.codec import decode_map, encode_map, map_from_proto, map_to_proto
from memkv.shardmap.map import (
    UNASSIGNED,
    MapInvalid,
    MapVersion,
    Move,
    ShardMap,
    Worker,
    WorkerState,
    pack_owners,
    unpack_owners,
)

__all__ = [
    "Candidate",
    "MapCache",
    "MapCacheStatistics",
    "MapInvalid",
    "MapVersion",
    "Move",
    "Offer",
    "OwnerHint",
    "Route",
    "ShardMap",
    "UNASSIGNED",
    "Worker",
    "WorkerState",
    "Scores",
    "build_owners",
    "decode_map",
    "encode_map",
    "map_from_proto",
    "map_to_proto",
    "pack_owners",
    "unpack_owners",
]
