"""Names of KV blocks: the engine's block hash inside a namespace.

A block hash says which tokens a block holds. It does not say by which model, in which dtype, laid
out how: that is the `Namespace`, and a block's key is its 32-byte digest, the cache group and the
hash. Whoever has the same bytes gets the same key, whatever the engine; whoever has others, another
key. Every field is tagged and length-prefixed, so no two namespaces share an encoding: a cache salt
can never stand for an adapter's name. The bytes are frozen (tests/golden/namespaces.json) and
described in docs/keys.md.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from memkv.errors import CallerError
from memkv.limits import NAMESPACE_BYTES_MAX, USER_KEY_BYTES_MAX

ENCODING_VERSION = 1
DIGEST_BYTES = 32
PERSON = b"memkv-namespace"
"""Of BLAKE2b, so that no digest of something else is a namespace's."""
ADAPTER_PERSON = b"memkv-adapter"
KEY_MAGIC = b"MKB1"
KEY_HEAD_BYTES = len(KEY_MAGIC) + DIGEST_BYTES + 4
BLOCK_HASH_BYTES_MAX = USER_KEY_BYTES_MAX - KEY_HEAD_BYTES

_FIELD = struct.Struct("<HI")  # tag, bytes that follow
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class AdapterSource(IntEnum):
    """What an adapter's digest was made of. Digests of different sources never agree, so an engine
    that knows the contents does not share with one that knows only a path."""

    CONTENTS = 1
    """Its files: the same adapter on every machine."""
    PATH = 2
    """Where it was loaded from: the same only where paths mean the same everywhere."""
    NUMBER = 3
    """The engine's number of it: the same only within one engine process."""


@dataclass(frozen=True)
class Adapter:
    """Which LoRA adapter changed the values. Two adapters with one name differ by their digest."""

    name: str
    source: AdapterSource
    digest: bytes

    def __post_init__(self) -> None:
        if len(self.digest) != DIGEST_BYTES:
            raise CallerError(
                f"an adapter's digest is {DIGEST_BYTES} bytes, not {len(self.digest)}; "
                "make it by Adapter.of_files, of_path or of_number"
            )

    @classmethod
    def of_files(cls, name: str, paths: Iterable[Path]) -> Adapter:
        """Read the adapter's files (weights and configuration). Their names count, their folder
        does not. Raises OSError for a file that cannot be read."""
        whole = hashlib.blake2b(digest_size=DIGEST_BYTES, person=ADAPTER_PERSON)
        for path in sorted(paths, key=lambda path: path.name):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, _content_digest).digest()
            whole.update(_prefixed(path.name.encode()) + content)
        return cls(name, AdapterSource.CONTENTS, whole.digest())

    @classmethod
    def of_path(cls, name: str, path: str) -> Adapter:
        """Stand for an adapter by where it was loaded from."""
        return cls(name, AdapterSource.PATH, _adapter_digest(path.encode()))

    @classmethod
    def of_number(cls, name: str, number: int) -> Adapter:
        """Stand for an adapter by the engine's number of it."""
        return cls(name, AdapterSource.NUMBER, _adapter_digest(str(number).encode()))


@dataclass(frozen=True)
class Rank:
    """A place on one axis of parallelism, such as 1 of 4 on "tp"."""

    axis: str
    index: int
    count: int

    def __post_init__(self) -> None:
        if not self.axis or not 0 <= self.index < self.count <= 0xFFFF_FFFF:
            raise CallerError(f"{self.index} of {self.count} on axis {self.axis!r} is no rank")


@dataclass(frozen=True)
class Namespace:
    """Everything but the tokens that decides what bytes a block has.

    Raises CallerError for what cannot be encoded. Texts are compared byte by byte: integrations
    spell them as docs/keys.md says.
    """

    model: str
    """Name or path, as users of the pool agree on it."""
    revision: str
    """Of the weights: a commit or a digest; "" where nothing is known."""
    kv_dtype: str
    """Of the cache, not of the weights: "bfloat16", "float8_e4m3fn"."""
    layout: str
    """Canonical name of the byte layout, by `layout_name`."""
    block_tokens: int
    """Tokens of a whole block."""
    hashing: str
    """How block hashes are made: algorithm and seed, since equal hashes must mean equal tokens."""
    ranks: tuple[Rank, ...] = ()
    """Only the axes on which the bytes of ranks differ; in any order."""
    adapter: Adapter | None = None
    cache_salt: bytes = b""
    """What separates users who must not notice each other's prompts; text as UTF-8."""

    def __post_init__(self) -> None:
        if not self.model or not self.kv_dtype or not self.layout:
            raise CallerError("a namespace needs at least model, kv_dtype and layout")
        if not 1 <= self.block_tokens <= 0xFFFF_FFFF:
            raise CallerError(f"block_tokens must be a 32-bit count, not {self.block_tokens}")
        if len({rank.axis for rank in self.ranks}) != len(self.ranks):
            raise CallerError("a namespace has one rank on each axis")
        if len(self.encoding) > NAMESPACE_BYTES_MAX:
            raise CallerError(
                f"the namespace takes {len(self.encoding)} bytes, over {NAMESPACE_BYTES_MAX}; "
                "shorten its texts, or salt with a digest"
            )

    @cached_property
    def encoding(self) -> bytes:
        """The canonical bytes: a version, then every field as tag, length and value."""
        parts = [
            (1, self.model.encode()),
            (2, self.revision.encode()),
            (3, self.kv_dtype.encode()),
            (4, self.layout.encode()),
            (5, _U64.pack(self.block_tokens)),
            (6, self.hashing.encode()),
            (7, b"".join(_rank(rank) for rank in sorted(self.ranks, key=lambda rank: rank.axis))),
            (8, b"" if self.adapter is None else _adapter(self.adapter)),
            (9, self.cache_salt),
        ]
        assert len(parts) == len(fields(self))
        return bytes((ENCODING_VERSION,)) + b"".join(_tagged(tag, value) for tag, value in parts)

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that stand for the namespace in keys and headers."""
        return hashlib.blake2b(self.encoding, digest_size=DIGEST_BYTES, person=PERSON).digest()


class Axis(NamedTuple):
    """One axis of a block's bytes: a name from AXES and its length."""

    name: str
    length: int = 0


AXES = {
    "L": "layers, in the model's order",
    "K": "keys and values: 2, keys first",
    "T": "tokens of the block; has no length, block_tokens says it",
    "H": "KV heads that these bytes hold, of all or of this rank",
    "D": "elements of a head, or of the one latent vector of MLA",
}


def layout_name(*groups: Sequence[Axis]) -> str:
    """Return the canonical name of a layout: axes outermost first, a list for each cache group.

    `layout_name([Axis("L", 32), Axis("K", 2), Axis("T"), Axis("H", 8), Axis("D", 128)])` is
    "L32.K2.T.H8.D128"; groups are parted by "/". Elements are dense and little-endian. A layout
    that cannot be said so gets a name of the engine's own, with a colon: "vllm:mamba2/...".
    """
    if not groups or not all(groups):
        raise CallerError("a layout has at least one axis in each group")
    names: list[str] = []
    for axes in groups:
        found = [axis.name for axis in axes]
        if len(set(found)) != len(found) or not set(found) <= set(AXES):
            raise CallerError(f"axes {found}: once each, of {list(AXES)}")
        if any((axis.length == 0) != (axis.name == "T") or axis.length < 0 for axis in axes):
            raise CallerError("every axis but T has a length")
        names.append(".".join(f"{axis.name}{axis.length or ''}" for axis in axes))
    return "/".join(names)


def block_key(namespace: Namespace, block_hash: bytes, group: int = 0) -> bytes:
    """Return the user key of one block. `group`: the engine's KV cache group; 0 where it has one.

    Raises CallerError for an empty hash or one over BLOCK_HASH_BYTES_MAX, and for a group that is
    not 32 bits.
    """
    return block_keys(namespace, (block_hash,), group)[0]


def block_keys(namespace: Namespace, block_hashes: Sequence[bytes], group: int = 0) -> list[bytes]:
    """Return the user keys of blocks of one group; see `block_key`."""
    if not 0 <= group <= 0xFFFF_FFFF:
        raise CallerError(f"a cache group is a 32-bit number, not {group}")
    for block_hash in block_hashes:
        if not 1 <= len(block_hash) <= BLOCK_HASH_BYTES_MAX:
            raise CallerError(
                f"a block hash of {len(block_hash)} bytes; 1 to {BLOCK_HASH_BYTES_MAX} fit a key"
            )
    head = KEY_MAGIC + namespace.digest + _U32.pack(group)
    return [head + block_hash for block_hash in block_hashes]


def differing(one: bytes, other: bytes) -> list[str]:
    """Return the names of the fields by which two encodings differ, for people; all of them when
    one is not an encoding of this version."""
    names = [field.name for field in fields(Namespace)]
    found, theirs = _values(one), _values(other)
    return [
        name for tag, name in enumerate(names, 1)
        if found is None or theirs is None or found.get(tag) != theirs.get(tag)
    ]


def _values(encoding: bytes) -> dict[int, bytes] | None:
    """Return what is under each tag; None when it is cut or of another version."""
    if encoding[:1] != bytes((ENCODING_VERSION,)):
        return None
    found: dict[int, bytes] = {}
    offset = 1
    while offset < len(encoding):
        if offset + _FIELD.size > len(encoding):
            return None
        tag, length = _FIELD.unpack_from(encoding, offset)
        offset += _FIELD.size
        found[tag] = encoding[offset : offset + length]
        offset += length
    return found if offset == len(encoding) else None


def _tagged(tag: int, value: bytes) -> bytes:
    return _FIELD.pack(tag, len(value)) + value


def _prefixed(value: bytes) -> bytes:
    return _U32.pack(len(value)) + value


def _rank(rank: Rank) -> bytes:
    return _prefixed(rank.axis.encode()) + _U32.pack(rank.index) + _U32.pack(rank.count)


def _adapter(adapter: Adapter) -> bytes:
    return _prefixed(adapter.name.encode()) + _U32.pack(adapter.source) + adapter.digest


def _adapter_digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES, person=ADAPTER_PERSON).digest()


def _content_digest() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=DIGEST_BYTES, person=ADAPTER_PERSON)
