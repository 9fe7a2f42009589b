"""Names of blocks: whatever changes the bytes changes the key, and nothing else does."""

import dataclasses
import json
from pathlib import Path
from typing import Any, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memkv.errors import CallerError
from memkv.integrations.keys import (
    BLOCK_HASH_BYTES_MAX,
    Adapter,
    AdapterSource,
    Axis,
    Namespace,
    Rank,
    block_key,
    block_keys,
    differing,
    layout_name,
)
from memkv.keys import block_id
from memkv.limits import NAMESPACE_BYTES_MAX, USER_KEY_BYTES_MAX

ADAPTER = Adapter("sql", AdapterSource.CONTENTS, bytes(range(32)))
BASE = Namespace(
    model="meta/llama-3-8b", revision="5f0b02c", kv_dtype="bfloat16", layout="L32.K2.T.H8.D128",
    block_tokens=16, hashing="vllm/sha256_cbor/0", ranks=(Rank("tp", 1, 4), Rank("pp", 0, 2)),
    adapter=ADAPTER, cache_salt=b"alice",
)
HASH = bytes(range(100, 132))


def flipped(value: object) -> Any:
    """Return another value of the same kind; TypeError for a kind that no field has yet, so that
    whoever adds one says here how it changes."""
    match value:
        case AdapterSource():
            return AdapterSource.PATH if value is not AdapterSource.PATH else AdapterSource.NUMBER
        case int():
            return value + 1
        case str():
            return value + "x"
        case bytes():
            return value[:-1] + bytes([value[-1] ^ 1])
        case tuple():
            return (*value, Rank("cp", 0, 2))
        case Adapter():
            return None
    raise TypeError(f"no other value of {value!r} is known")


def changed_fields() -> list[tuple[str, Namespace]]:
    """Return BASE with each of its fields changed, and each field of its parts."""
    found = [
        (field.name, dataclasses.replace(BASE, **{field.name: flipped(getattr(BASE, field.name))}))
        for field in dataclasses.fields(Namespace)
    ]
    for field in dataclasses.fields(Adapter):
        other = dataclasses.replace(ADAPTER, **{field.name: flipped(getattr(ADAPTER, field.name))})
        found.append((f"adapter.{field.name}", dataclasses.replace(BASE, adapter=other)))
    first, second = BASE.ranks
    for field in dataclasses.fields(Rank):
        moved = dataclasses.replace(first, **{field.name: flipped(getattr(first, field.name))})
        found.append((f"ranks.{field.name}", dataclasses.replace(BASE, ranks=(moved, second))))
    return found


CHANGED = changed_fields()


@pytest.mark.parametrize(("name", "other"), CHANGED, ids=[name for name, _ in CHANGED])
def test_every_field_that_changes_gives_another_key(name: str, other: Namespace) -> None:
    assert other.digest != BASE.digest
    assert block_key(other, HASH) != block_key(BASE, HASH)
    assert block_id(block_key(other, HASH)) != block_id(block_key(BASE, HASH))
    assert differing(other.encoding, BASE.encoding) == [name.partition(".")[0]]


def test_all_changed_namespaces_differ_from_each_other() -> None:
    assert len({other.digest for _, other in CHANGED} | {BASE.digest}) == len(CHANGED) + 1


def test_a_salt_never_stands_for_an_adapter() -> None:
    named = dataclasses.replace(BASE, cache_salt=b"", adapter=Adapter.of_path("sql", "sql"))
    salted = dataclasses.replace(BASE, cache_salt=b"sql", adapter=None)
    assert named.digest != salted.digest


def test_adapters_of_one_name_differ_by_what_they_are_made_of(tmp_path: Path) -> None:
    paths = [tmp_path / name / "adapter.safetensors" for name in ("a", "b", "copy")]
    for path, content in zip(paths, (b"one", b"two", b"one"), strict=True):
        path.parent.mkdir()
        path.write_bytes(content)
    one, two, copy = (Adapter.of_files("sql", [path]) for path in paths)
    assert one.digest == copy.digest
    found = [one, two, Adapter.of_path("sql", "/a"), Adapter.of_path("sql", "/b"),
             Adapter.of_number("sql", 1), Adapter.of_number("sql", 2)]
    assert len({dataclasses.replace(BASE, adapter=each).digest for each in found}) == len(found)


def test_the_same_digest_from_another_source_is_another_adapter() -> None:
    as_path = Adapter.of_path("sql", "1")
    as_number = Adapter.of_number("sql", 1)
    assert as_path.digest == as_number.digest
    assert (dataclasses.replace(BASE, adapter=as_path).digest
            != dataclasses.replace(BASE, adapter=as_number).digest)


def test_files_of_an_adapter_count_by_name_not_by_order_or_folder(tmp_path: Path) -> None:
    weights, config = tmp_path / "weights", tmp_path / "config"
    weights.write_bytes(b"w")
    config.write_bytes(b"c")
    assert (Adapter.of_files("x", [weights, config]) == Adapter.of_files("x", [config, weights]))
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    (swapped / "weights").write_bytes(b"c")
    (swapped / "config").write_bytes(b"w")
    other = Adapter.of_files("x", sorted(swapped.iterdir()))
    assert other != Adapter.of_files("x", [weights, config])


def test_the_order_of_ranks_does_not_count() -> None:
    turned = dataclasses.replace(BASE, ranks=tuple(reversed(BASE.ranks)))
    assert turned.digest == BASE.digest


TEXT = st.text(max_size=20)


@given(TEXT, TEXT, TEXT, TEXT)
def test_text_that_moves_between_neighbours_changes_the_digest(
    model: str, revision: str, more: str, salt: str
) -> None:
    one = dataclasses.replace(BASE, model="m" + model + more, revision=revision,
                              cache_salt=salt.encode())
    other = dataclasses.replace(BASE, model="m" + model, revision=more + revision,
                                cache_salt=salt.encode())
    assert (one.digest == other.digest) == (not more or (one.model, one.revision)
                                            == (other.model, other.revision))


@given(st.binary(max_size=200))
def test_no_bytes_make_the_comparison_of_encodings_fail(other: bytes) -> None:
    assert differing(BASE.encoding, other)


def test_keys_of_a_batch_are_those_of_single_blocks() -> None:
    hashes = [bytes([n]) * 32 for n in range(5)]
    assert block_keys(BASE, hashes, 3) == [block_key(BASE, each, 3) for each in hashes]
    assert block_key(BASE, HASH, 0) != block_key(BASE, HASH, 1)


def test_the_longest_hash_makes_the_longest_key() -> None:
    assert len(block_key(BASE, bytes(BLOCK_HASH_BYTES_MAX))) == USER_KEY_BYTES_MAX


@pytest.mark.parametrize("block_hash", [b"", bytes(473)], ids=["empty", "long"])
def test_hashes_that_fit_no_key_are_refused(block_hash: bytes) -> None:
    with pytest.raises(CallerError, match="bytes; 1 to 472"):
        block_key(BASE, block_hash)


@pytest.mark.parametrize("group", [-1, 1 << 32])
def test_groups_that_fit_no_key_are_refused(group: int) -> None:
    with pytest.raises(CallerError, match="32-bit"):
        block_key(BASE, HASH, group)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "needs at least"),
        ({"kv_dtype": ""}, "needs at least"),
        ({"layout": ""}, "needs at least"),
        ({"block_tokens": 0}, "32-bit count"),
        ({"block_tokens": 1 << 32}, "32-bit count"),
        ({"ranks": (Rank("tp", 0, 2), Rank("tp", 1, 2))}, "one rank"),
        ({"cache_salt": bytes(NAMESPACE_BYTES_MAX)}, "shorten"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_namespaces_that_name_nothing_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CallerError, match=message):
        dataclasses.replace(BASE, **changes)


def test_adapters_and_ranks_that_name_nothing_are_refused() -> None:
    with pytest.raises(CallerError, match="32 bytes"):
        Adapter("x", AdapterSource.CONTENTS, b"short")
    for axis, index, count in (("", 0, 1), ("tp", 2, 2), ("tp", -1, 2), ("tp", 0, 1 << 32)):
        with pytest.raises(CallerError, match="no rank"):
            Rank(axis, index, count)


AXES = [Axis("L", 32), Axis("K", 2), Axis("T"), Axis("H", 8), Axis("D", 128)]


def test_layouts_have_one_name() -> None:
    assert layout_name(AXES) == "L32.K2.T.H8.D128"
    assert layout_name(AXES, [Axis("L", 8), Axis("T"), Axis("D", 576)]) == (
        "L32.K2.T.H8.D128/L8.T.D576"
    )


@pytest.mark.parametrize(
    "groups",
    [[], [[]], [[Axis("Q", 1)]], [[Axis("L", 1), Axis("L", 1)]], [[Axis("L")]], [[Axis("T", 16)]],
     [[Axis("L", -1)]]],
    ids=["none", "empty", "unknown", "twice", "no length", "tokens twice", "negative"],
)
def test_layouts_that_name_nothing_are_refused(groups: list[list[Axis]]) -> None:
    with pytest.raises(CallerError, match=r"ax[ei]s"):
        layout_name(*groups)


class Vector(TypedDict):
    model: str
    revision: str
    kv_dtype: str
    layout: str
    block_tokens: int
    hashing: str
    ranks: list[tuple[str, int, int]]
    adapter: tuple[str, int, str] | None
    cache_salt_hex: str
    block_hash_hex: str
    group: int
    encoding_hex: str
    digest: str
    key_hex: str


GOLDEN: list[Vector] = json.loads(
    (Path(__file__).parents[2] / "golden" / "namespaces.json").read_text()
)


@pytest.mark.parametrize("vector", GOLDEN, ids=[each["model"] for each in GOLDEN])
def test_frozen_vectors(vector: Vector) -> None:
    """A change here makes every stored block and every other engine foreign."""
    adapter = vector["adapter"]
    namespace = Namespace(
        vector["model"], vector["revision"], vector["kv_dtype"], vector["layout"],
        vector["block_tokens"], vector["hashing"],
        tuple(Rank(*rank) for rank in vector["ranks"]),
        None if adapter is None
        else Adapter(adapter[0], AdapterSource(adapter[1]), bytes.fromhex(adapter[2])),
        bytes.fromhex(vector["cache_salt_hex"]),
    )
    assert namespace.encoding.hex() == vector["encoding_hex"]
    assert namespace.digest.hex() == vector["digest"]
    found = block_key(namespace, bytes.fromhex(vector["block_hash_hex"]), vector["group"])
    assert found.hex() == vector["key_hex"]


def test_the_example_in_the_document_is_a_frozen_one() -> None:
    text = (Path(__file__).parents[3] / "docs" / "keys.md").read_text(encoding="utf-8")
    assert f"digest {GOLDEN[1]['digest']}" in text
    for row in ("| 1 | contents |", "| 2 | path |", "| 3 | number |"):
        assert row in text
    assert [source.name.lower() for source in AdapterSource] == ["contents", "path", "number"]
