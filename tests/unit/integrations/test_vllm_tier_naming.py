"""Names of chunks: the same bytes get the same key, anything else another one."""

from dataclasses import dataclass, replace
from typing import Any

import pytest

from memkv.errors import CallerError
from memkv.integrations.vllm_tier.naming import CacheShape, ChunkNames, split
from memkv.limits import KIB, MIB


@dataclass(frozen=True)
class Group:
    group_id: int = 0
    tokens_per_block: int = 16
    layer_names: tuple[str, ...] = ("layers.0.attn", "layers.1.attn")


SHAPE = CacheShape(
    groups=(Group(),), kv_dtype="bfloat16", tokens_per_hash=16, blocks_per_chunk=16,
    row_bytes=2 * MIB, parallel=(("tp", 1), ("pp", 1)), order="0.32-LBNHC",
)
CHUNK = bytes(range(32)) + bytes(4)


def names(
    shape: CacheShape = SHAPE, model: str = "llama", revision: str = "r1",
    hashing: str | None = "vllm/sha256/0",
) -> ChunkNames:
    return ChunkNames(shape, model, revision, lambda: hashing)


def test_engines_with_the_same_bytes_agree() -> None:
    assert names().keys(CHUNK) == names().keys(CHUNK)
    assert names().kind(0).namespace.block_tokens == 256


@pytest.mark.parametrize("change", [
    {"groups": (Group(tokens_per_block=32),)},
    {"groups": (Group(layer_names=("layers.0.attn",)),)},
    {"groups": (Group(), Group(group_id=1))},
    {"kv_dtype": "float8_e4m3fn"},
    {"tokens_per_hash": 32},
    {"blocks_per_chunk": 8},
    {"row_bytes": 2 * MIB + 4 * KIB},
    {"parallel": (("tp", 2), ("pp", 1))},
    {"parallel": ()},
    {"order": "0.33-LBNHC"},
    {"order": "0.32-LBHNC"},
], ids=str)
def test_every_field_of_the_shape_changes_the_key(change: dict[str, Any]) -> None:
    assert names(replace(SHAPE, **change)).keys(CHUNK) != names().keys(CHUNK)


@pytest.mark.parametrize("other", [
    names(model="mistral"), names(revision="r2"), names(hashing="vllm/sha256/1"),
], ids=["model", "revision", "hashing"])
def test_what_is_not_of_the_shape_changes_it_too(other: ChunkNames) -> None:
    assert other.keys(CHUNK) != names().keys(CHUNK)


def test_hash_and_group_are_of_the_key() -> None:
    shape = replace(SHAPE, groups=(Group(), Group(1)))
    second = CHUNK[:-1] + b"\1"
    assert split(second) == (bytes(range(32)), 1)
    assert names(shape).keys(CHUNK) != names(shape).keys(second)
    assert names(shape).keys(CHUNK) != names(shape).keys(b"\xff" + CHUNK[1:])


def test_a_row_longer_than_a_block_has_several_keys() -> None:
    long = names(replace(SHAPE, row_bytes=40 * MIB))
    assert len(long.keys(CHUNK)) == len(set(long.keys(CHUNK))) == 3
    parts = long.kind(0).parts(split(CHUNK)[0], [(1 << 30, 40 * MIB)])
    assert [part.key for part in parts] == long.keys(CHUNK)
    assert sum(length for part in parts for _, length in part.pieces) == 40 * MIB


def test_a_pool_may_take_only_shorter_blocks() -> None:
    shorter = ChunkNames(SHAPE, "llama", "r1", lambda: "vllm/sha256/0", MIB)
    assert len(shorter.keys(CHUNK)) == 2
    assert not set(shorter.keys(CHUNK)) & set(names().keys(CHUNK))


def test_nothing_is_named_before_hashes_are_known() -> None:
    unknown = names(hashing=None)
    assert not unknown.is_known
    with pytest.raises(RuntimeError, match="hashes"):
        unknown.keys(CHUNK)
    assert names().is_known


def test_a_group_that_the_engine_did_not_announce_is_refused() -> None:
    with pytest.raises(CallerError, match=r"the engine has \[0\]"):
        names().keys(CHUNK[:-1] + b"\7")


def test_the_layout_says_what_people_look_for() -> None:
    layout = names().kind(0).namespace.layout
    assert layout.startswith("vllm:chunk/0.32-LBNHC/tp1.pp1/blocks16/hash16/row2097152/groups-")
    assert "/any/" in names(replace(SHAPE, parallel=())).kind(0).namespace.layout
