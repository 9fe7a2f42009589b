"""Names of LMCache's objects and chunks: every field that changes bytes changes the key."""

from dataclasses import dataclass, field, replace

import pytest

from memkv.integrations.lmcache_names import ChunkNames, L2Names, hashing_name, salt_bytes
from memkv.integrations.settings import PoolSettings


@dataclass(frozen=True)
class Dtype:
    name: str
    itemsize: int

    def __str__(self) -> str:
        return f"torch.{self.name}"


BFLOAT16, FLOAT16, FP8 = Dtype("bfloat16", 2), Dtype("float16", 2), Dtype("float8_e4m3fn", 1)


@dataclass(frozen=True)
class Key:
    chunk_hash: bytes = b"h" * 32
    model_name: str = "llama"
    kv_rank: int = 0x01000100
    object_group_id: int = 0
    cache_salt: str = ""


@dataclass(frozen=True)
class Said:
    key: Key = field(default_factory=Key)
    shapes: tuple[tuple[int, ...], ...] = ((2, 4, 256, 512),)
    dtypes: tuple[Dtype, ...] = (BFLOAT16,)
    hashing: str = "lmcache/blake3"
    revision: str = ""
    layout: str = ""

    def keys(self) -> list[bytes]:
        names = L2Names(PoolSettings(revision=self.revision), self.hashing, self.layout)
        return names.kind(self.key, self.shapes, self.dtypes).keys(self.key.chunk_hash)


CHANGES: dict[str, dict[str, object]] = {
    "hash": {"key": Key(chunk_hash=b"i" * 32)},
    "model": {"key": Key(model_name="llama2")},
    "rank": {"key": Key(kv_rank=0x02000200)},
    "group": {"key": Key(object_group_id=1)},
    "salt": {"key": Key(cache_salt="alice")},
    "dtype": {"dtypes": (FLOAT16,)},
    "narrower dtype": {"dtypes": (FP8,)},
    "chunk size": {"shapes": ((2, 4, 128, 512),)},
    "axes": {"shapes": ((2, 256, 4, 512),)},
    "groups of layers": {"shapes": ((2, 2, 256, 512),) * 2, "dtypes": (BFLOAT16,) * 2},
    "hashing": {"hashing": "lmcache/sha256_cbor/0"},
    "revision": {"revision": "0e9e39f"},
    "serde": {"layout": "fp8"},
}  # fmt: skip


def changed(change: dict[str, object]) -> Said:
    return replace(Said(), **change)  # type: ignore[arg-type]  # by name


@pytest.mark.parametrize("change", CHANGES)
def test_each_field_of_an_object_is_in_its_key(change: str) -> None:
    assert Said().keys() != changed(CHANGES[change]).keys()


def test_all_changes_differ_from_each_other() -> None:
    others = [changed(change) for change in CHANGES.values()]
    assert len({tuple(said.keys()) for said in others}) == len(CHANGES)


def test_a_lookup_and_the_memory_of_an_object_agree() -> None:
    names = L2Names(PoolSettings(), "lmcache/blake3")
    looked_up = names.kind(Key(), ((2, 4, 256, 512),), (BFLOAT16,))
    stored = names.kind(Key(), [[2, 4, 256, 512]], [BFLOAT16], 2 * 4 * 256 * 512 * 2)
    assert looked_up == stored
    assert (stored.payload_bytes, stored.namespace.block_tokens) == (2 << 20, 256)


def test_with_a_serde_lookup_and_memory_agree_by_the_name_of_the_layout() -> None:
    names = L2Names(PoolSettings(), "lmcache/blake3", "fp8")
    looked_up = names.kind(Key(), ((2, 4, 256, 512),), (BFLOAT16,))
    stored = names.kind(Key(), ((1 << 20,),), (Dtype("uint8", 1),), 1 << 20)
    assert looked_up.keys(b"h") == stored.keys(b"h")


@dataclass(frozen=True)
class Chunk:
    model_name: str = "llama"
    world_size: int = 2
    worker_id: int = 0
    chunk_hash_hex: str = "abc"
    dtype: object = BFLOAT16
    tags: tuple[tuple[str, object], ...] | None = None


@dataclass(frozen=True)
class LayerChunk(Chunk):
    layer_id: int = 0


@dataclass(frozen=True)
class Metadata:
    kv_shape: tuple[int, ...] = (32, 2, 256, 8, 128)
    chunk_size: int = 256


def chunk_key(chunk: Chunk, metadata: Metadata | None = None, hashing: str = "builtin/0") -> bytes:
    names = ChunkNames(PoolSettings(), metadata or Metadata(), hashing)
    return names.kind(chunk, 1000).keys(chunk.chunk_hash_hex.encode())[0]


OTHERS = {
    "model": chunk_key(Chunk(model_name="qwen")),
    "world": chunk_key(Chunk(world_size=4)),
    "worker": chunk_key(Chunk(worker_id=1)),
    "hash": chunk_key(Chunk(chunk_hash_hex="abd")),
    "dtype": chunk_key(Chunk(dtype=FP8)),
    "tag": chunk_key(Chunk(tags=(("user", "alice"),))),
    "two tags": chunk_key(Chunk(tags=(("user", "alice"), ("x", "y")))),
    "tag like two": chunk_key(Chunk(tags=(("user", "alice1:x1:y"),))),
    "layer": chunk_key(LayerChunk()),
    "other layer": chunk_key(LayerChunk(layer_id=1)),
    "layers of the model": chunk_key(Chunk(), Metadata((33, 2, 256, 8, 128))),
    "heads": chunk_key(Chunk(), Metadata((32, 2, 256, 4, 128))),
    "latent": chunk_key(Chunk(), Metadata((32, 1, 256, 8, 128))),
    "chunk size": chunk_key(Chunk(), Metadata((32, 2, 512, 8, 128), 512)),
    "seed": chunk_key(Chunk(), hashing="builtin/1"),
}


def test_each_field_of_a_chunk_is_in_its_key() -> None:
    assert len({*OTHERS.values(), chunk_key(Chunk())}) == len(OTHERS) + 1


def test_a_chunk_is_laid_out_as_docs_say() -> None:
    names = ChunkNames(PoolSettings(), Metadata(), "builtin/0")
    assert names.kind(Chunk(), 1000).namespace.layout == "K2.L32.T.H8.D128"
    latent = ChunkNames(PoolSettings(), Metadata((61, 1, 256, 1, 576)), "builtin/0")
    assert latent.kind(Chunk(), 1000).namespace.layout == "L61.T.H1.D576"


def test_hashes_that_depend_on_a_seed_name_it() -> None:
    assert hashing_name("blake3", {"PYTHONHASHSEED": "7"}) == "lmcache/blake3"
    assert hashing_name("builtin", {"PYTHONHASHSEED": "7"}) == "lmcache/builtin/7"
    assert hashing_name("builtin", {}) == "lmcache/builtin/unset"


def test_long_salts_fit_all_the_same() -> None:
    long, longer = salt_bytes(b"s" * 600), salt_bytes(b"s" * 601)
    assert len(long) < 100
    assert long != longer
    assert salt_bytes(b"short") == b"short"
