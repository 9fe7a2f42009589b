"""What is stored beside a map in a MemKVShardMap survives whole or is refused."""

import random

import pytest

from memkv.errors import ConfigError
from memkv.metadata.kubernetes.shardmap_object import map_of, spec_of, state_of
from memkv.metadata.ownership import Tenure
from memkv.metadata.publisher import PublisherState
from memkv.metadata.state_codec import decode_rest, encode_rest
from memkv.shardmap import MapVersion, Move, ShardMap, Worker, pack_owners

STATE_CHARACTERS_MAX = 786_432  # of `state` in the CRD
MAP_CHARACTERS_MAX = 1_048_576  # of `map`


def state_of_size(slots: int, workers: int, trail: int) -> PublisherState:
    source = random.Random(7)
    names = [source.randbytes(16) for _ in range(workers)]
    members = tuple(
        Worker(uuid, n, f"node-{n}.example", "10.0.0.1", 7070)
        for n, uuid in enumerate(sorted(names))
    )
    owners = pack_owners(source.randrange(workers) for _ in range(slots))
    shard_map = ShardMap(MapVersion(b"L" * 16, 3, 9), slots, members, owners, {0: Move((1,), 8)})
    trails = {
        slot: tuple(Tenure(source.choice(names), bool(source.randrange(2))) for _ in range(trail))
        for slot in range(slots)
    }
    return PublisherState(shard_map, trails, {8: 1_700_000_000}, frozenset({b"t" * 16}))


def test_rest_of_a_state_round_trips() -> None:
    state = state_of_size(64, 4, 3)
    assert decode_rest(encode_rest(state), state.shard_map) == state


def test_every_cut_or_flipped_rest_is_refused_or_the_same() -> None:
    state = state_of_size(4, 2, 1)
    data = encode_rest(state)
    damaged = [data[:cut] for cut in range(len(data))]
    damaged += [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(2, len(data))]
    for piece in damaged:
        with pytest.raises(ConfigError):
            decode_rest(piece, state.shard_map)


def test_object_round_trips_and_names_its_map() -> None:
    state = state_of_size(1024, 8, 2)
    spec = spec_of(state, "pool-uid")
    assert state_of({"spec": spec}) == state
    assert map_of({"spec": spec}) == state.shard_map
    assert (spec["term"], spec["epoch"], spec["slots"]) == (3, 9, 1024)


@pytest.mark.parametrize(
    ("field", "value"), [("map", "AAAA"), ("map", "?"), ("digest", "00"), ("state", "AAAA")]
)
def test_damaged_object_is_refused(field: str, value: str) -> None:
    spec = {**spec_of(state_of_size(4, 2, 1), "pool-uid"), field: value}
    with pytest.raises(ConfigError):
        state_of({"spec": spec})


def test_largest_pool_fits_the_object() -> None:
    """16384 slots, 4096 workers, full trails of random owners: nothing compresses worse."""
    spec = spec_of(state_of_size(16_384, 4096, 8), "pool-uid")
    assert len(str(spec["map"])) < MAP_CHARACTERS_MAX
    assert len(str(spec["state"])) < STATE_CHARACTERS_MAX
