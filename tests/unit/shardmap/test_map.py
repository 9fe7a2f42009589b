"""A map is one value with one digest, and every broken invariant is named."""

from dataclasses import replace
from typing import Any

import pytest

from memkv.errors import CallerError
from memkv.shardmap import (
    MapInvalid,
    MapVersion,
    Move,
    ShardMap,
    Worker,
    WorkerState,
    decode_map,
    encode_map,
    map_to_proto,
    pack_owners,
)
from memkv_proto import metadata_pb2 as pb

LINEAGE = bytes(range(16))


def worker(number: int, **changes: Any) -> Worker:
    base = Worker(
        uuid=bytes([number]) * 16,
        incarnation=number,
        node_name=f"node-{number}",
        host="127.0.0.1",
        port=7070 + number,
    )
    return replace(base, **changes)


def make_map(**changes: Any) -> ShardMap:
    base: dict[str, Any] = {
        "version": MapVersion(LINEAGE, 1, 5),
        "slots": 4,
        "workers": (worker(1), worker(2), worker(3)),
        "owners": pack_owners([0, 1, 2, 0]),
        "moving": {1: Move((0,), 4)},
        "fenced": {2: 5},
        "tenant_generations": {b"t" * 16: 1},
    }
    return ShardMap(**{**base, **changes})


def test_map_answers_who_owns_and_whom_to_ask_next() -> None:
    shard_map = make_map()
    shard_map.validate()
    assert shard_map.owner(1) == worker(2)
    assert shard_map.previous_owners(1) == (0,)
    assert shard_map.previous_owners(0) == ()
    assert shard_map.slots_of(0) == (0, 3)
    assert shard_map.index_of(worker(3).uuid) == 2
    assert shard_map.index_of(bytes(16)) is None


def test_lost_previous_owner_is_not_asked() -> None:
    lost = worker(1, state=WorkerState.LOST)
    shard_map = make_map(
        workers=(lost, worker(2), worker(3)),
        owners=pack_owners([1, 1, 2, 2]),
        moving={1: Move((0,), 4)},
    )
    shard_map.validate()
    assert shard_map.previous_owners(1) == ()


BROKEN: list[tuple[str, dict[str, Any], str]] = [
    ("short-lineage", {"version": MapVersion(b"x", 1, 5)}, "lineage"),
    ("term-over-wire", {"version": MapVersion(LINEAGE, 1 << 32, 5)}, "term"),
    ("epoch-zero", {"version": MapVersion(LINEAGE, 1, 0), "moving": {}, "fenced": {}}, "epoch"),
    ("no-slots", {"slots": 0, "owners": b""}, "0 slots"),
    ("replicas", {"replicas": 2}, "replicas"),
    ("short-table", {"owners": pack_owners([0, 1, 2])}, "bytes of owners"),
    ("unassigned", {"owners": pack_owners([0, 1, 0xFFFF, 0])}, "without an owner"),
    ("foreign-index", {"owners": pack_owners([0, 1, 3, 0])}, "worker 3"),
    ("no-workers", {"workers": (), "moving": {}}, "no workers"),
    ("empty-with-workers", {"intentional_empty": True}, "names workers"),
    ("order", {"workers": (worker(2), worker(1), worker(3))}, "order"),
    ("twice", {"workers": (worker(1), worker(1), worker(3))}, "order"),
    ("port", {"workers": (worker(1), worker(2, port=0), worker(3))}, "port"),
    ("no-host", {"workers": (worker(1), worker(2, host=""), worker(3))}, "host"),
    ("weight", {"workers": (worker(1), worker(2, weight=0.0), worker(3))}, "weight"),
    ("nan", {"workers": (worker(1), worker(2, weight=float("nan")), worker(3))}, "weight"),
    (
        "lost-owner",
        {"workers": (worker(1, state=WorkerState.LOST), worker(2), worker(3))},
        "lost worker",
    ),
    ("moving-slot", {"moving": {4: Move((0,), 4)}}, "moving slot 4"),
    ("moving-none", {"moving": {1: Move((), 4)}}, "0 previous"),
    ("moving-many", {"moving": {1: Move((0, 2, 3, 4), 4)}}, "4 previous"),
    ("moving-twice", {"moving": {1: Move((0, 0), 4)}}, "twice"),
    ("moving-unknown", {"moving": {1: Move((3,), 4)}}, "no worker"),
    ("moving-self", {"moving": {1: Move((1,), 4)}}, "previous one"),
    ("moving-future", {"moving": {1: Move((0,), 6)}}, "since epoch 6"),
    ("fenced-slot", {"fenced": {4: 1}}, "fenced slot"),
    ("fenced-future", {"fenced": {2: 6}}, "fenced in epoch"),
    ("tag", {"tenant_generations": {b"t": 1}}, "tenant tag"),
    ("generation", {"tenant_generations": {b"t" * 16: 0}}, "generation"),
]


@pytest.mark.parametrize(
    ("changes", "named"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN]
)
def test_broken_invariant_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(MapInvalid, match=named):
        make_map(**changes).validate()


def test_map_emptied_on_purpose_is_valid() -> None:
    empty = make_map(
        workers=(), owners=pack_owners([0xFFFF] * 4), moving={}, intentional_empty=True
    )
    empty.validate()
    assert empty.owner(0) is None


CHANGES: list[dict[str, Any]] = [
    {"version": MapVersion(LINEAGE, 1, 6)},
    {"version": MapVersion(LINEAGE, 2, 5)},
    {"version": MapVersion(bytes(16), 1, 5)},
    {"owners": pack_owners([0, 1, 2, 1])},
    {"moving": {}},
    {"moving": {1: Move((0, 2), 4)}},
    {"moving": {1: Move((0,), 3)}},
    {"fenced": {}},
    {"fenced": {2: 4}},
    {"tenant_generations": {b"t" * 16: 2}},
    {"workers": (worker(1), worker(2), worker(3, port=1))},
    {"workers": (worker(1), worker(2), worker(3, incarnation=9))},
    {"workers": (worker(1), worker(2), worker(3, state=WorkerState.DRAINING))},
    {"workers": (worker(1), worker(2), worker(3, failure_domain="rack"))},
    {"workers": (worker(1), worker(2), worker(3, weight=2.0))},
]


def test_digest_covers_every_field() -> None:
    digests = {make_map(**changes).digest for changes in CHANGES}
    assert len(digests) == len(CHANGES)
    assert make_map().digest not in digests
    assert make_map() == make_map()
    assert hash(make_map()) == hash(make_map())


@pytest.mark.parametrize("changes", [{}, *CHANGES])
def test_encoding_round_trips(changes: dict[str, Any]) -> None:
    shard_map = make_map(**changes)
    decoded = decode_map(encode_map(shard_map))
    assert decoded == shard_map
    assert decoded.workers == shard_map.workers
    assert dict(decoded.moving) == dict(shard_map.moving)


def test_any_flipped_bit_is_refused_or_changes_nothing() -> None:
    """Bits that protobuf ignores may flip; the map that comes out is the one that went in."""
    encoded = encode_map(make_map())
    for position in range(len(encoded) * 8):
        flipped = bytearray(encoded)
        flipped[position // 8] ^= 1 << position % 8
        try:
            decoded = decode_map(bytes(flipped))
        except MapInvalid:
            continue
        assert decoded == make_map()


def test_what_is_no_map_is_refused() -> None:
    for data in (b"", b"\xff" * 40, encode_map(make_map())[:-1], bytes(5 << 20)):
        with pytest.raises(MapInvalid):
            decode_map(data)


def message_with(**changes: Any) -> bytes:
    message = map_to_proto(make_map())
    for name, value in changes.items():
        setattr(message, name, value)
    return message.SerializeToString()


def test_unknown_slot_hash_is_refused_with_the_fix() -> None:
    with pytest.raises(MapInvalid, match="upgrade this side"):
        decode_map(message_with(slot_hash="xxh3-64-v2"))


def test_entry_listed_twice_is_refused() -> None:
    message = map_to_proto(make_map())
    message.moving.append(pb.MovingSlot(slot=1, previous_owners=[2], since_epoch=4))
    with pytest.raises(MapInvalid, match="twice"):
        decode_map(message.SerializeToString())


def test_unknown_worker_state_is_refused() -> None:
    message = map_to_proto(make_map())
    message.workers[0].state = pb.WORKER_STATE_UNSPECIFIED
    with pytest.raises(MapInvalid, match="worker state"):
        decode_map(message.SerializeToString())


def test_versions_order_by_term_then_epoch_within_a_lineage() -> None:
    old, new = MapVersion(LINEAGE, 1, 9), MapVersion(LINEAGE, 2, 3)
    assert new.newer_than(old)
    assert not old.newer_than(new)
    assert not old.newer_than(old)
    with pytest.raises(CallerError, match="lineages"):
        old.newer_than(MapVersion(bytes(16), 1, 9))
