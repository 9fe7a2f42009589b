"""Self-describing blocks: one page that says what the bytes after it are.

A stored block is a header page of 4096 bytes and the payload. A process that knows nothing but the
key reads the header alone (`HEADER_RANGE` with `batch_get_ranges`) and has namespace, dtype, shape
and lengths; a process that expects something compares the page with what it expects, one memcmp.

Why a page, and in front:
- header and payload are separate pieces of `batch_put_from_multi` and `batch_get_into_multi`, so
  the payload lies in the engine's own memory, uncopied. Flash is read straight into memory by
  O_DIRECT only where pieces begin and end at multiples of 4096; behind a shorter header every byte
  would be copied. RDMA sends a piece by a WRITE of its own, at any length.
- It is at a fixed place, so it can be read by who does not know the block's length.
- The page costs 0.2% of a block of 2 MiB and 0.8% of one of 512 KiB, on flash and on the way.
- It has room for the namespace itself, not only its digest: what lies in a pool can be named, and a
  miss says by which field namespaces differ.

All whole blocks of a namespace and group have the same header: it is made once, puts share one
buffer, and the caches of the CPU keep it. The store has proved that block and key belong together.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from memkv._hotpath import xxh3_64
from memkv.errors import CallerError
from memkv.integrations.keys import DIGEST_BYTES, Namespace, differing
from memkv.limits import BLOCK_BYTES_MAX, BLOCK_HEADER_BYTES, NAMESPACE_BYTES_MAX
from memkv.reasons import MissReason, reason_of

MAGIC = b"MKVB"
VERSION = 1
HEADER_RANGE = ((0, BLOCK_HEADER_BYTES),)
"""What to ask `batch_get_ranges` for."""
PAYLOAD_BYTES_MAX = BLOCK_BYTES_MAX - BLOCK_HEADER_BYTES
DIMENSIONS_MAX = 8
NAME_BYTES_MAX = 24

# magic, version, dimensions, sum, namespace digest, payload bytes, tokens, group, dtype, coding,
# shape, bytes of the namespace, bytes of details; both follow
_HEADER = struct.Struct(f"<4sHHQ{DIGEST_BYTES}sQII{NAME_BYTES_MAX}s{NAME_BYTES_MAX}s"
                        f"{DIMENSIONS_MAX}QHH")
_SUM = slice(8, 16)
DETAILS_BYTES_MAX = BLOCK_HEADER_BYTES - _HEADER.size - NAMESPACE_BYTES_MAX

assert _HEADER.size == 180
assert DETAILS_BYTES_MAX >= 1024


@dataclass(frozen=True)
class BlockFormat:
    """What a reader needs to know of a block's payload. Raises CallerError for what fits no
    header."""

    namespace_encoding: bytes
    """`Namespace.encoding` of who stored it."""
    namespace_digest: bytes
    payload_bytes: int
    tokens: int
    """Held by this block; fewer than the namespace's `block_tokens` at the end of a prompt."""
    group: int
    dtype: str
    """Of the elements; "uint8" where only bytes are known."""
    shape: tuple[int, ...]
    """Of the payload, outermost axis first; () where the layout says it all."""
    coding: str = "raw"
    """How the elements are coded: "raw", or an engine's own name of a coding."""
    details: bytes = b""
    """The engine's own, opaque here."""

    def __post_init__(self) -> None:
        if not 1 <= self.payload_bytes <= PAYLOAD_BYTES_MAX:
            raise CallerError(
                f"a payload of {self.payload_bytes} bytes; 1 to {PAYLOAD_BYTES_MAX} fit a block, "
                "choose fewer tokens a block"
            )
        if len(self.shape) > DIMENSIONS_MAX:
            raise CallerError(f"{len(self.shape)} axes; a header has {DIMENSIONS_MAX}")
        for name in (self.dtype, self.coding):
            if not 1 <= len(name.encode()) <= NAME_BYTES_MAX or "\0" in name:
                raise CallerError(f"{name!r} is no name of 1 to {NAME_BYTES_MAX} bytes")
        if len(self.details) > DETAILS_BYTES_MAX:
            raise CallerError(f"{len(self.details)} bytes of details; {DETAILS_BYTES_MAX} fit")

    @classmethod
    def of(
        cls, namespace: Namespace, payload_bytes: int, *, shape: Sequence[int] = (), group: int = 0,
        tokens: int | None = None, dtype: str | None = None, coding: str = "raw",
        details: bytes = b"",
    ) -> BlockFormat:
        """Return the format of blocks of a namespace; a whole block of its dtype if not said."""
        return cls(
            namespace.encoding, namespace.digest, payload_bytes,
            namespace.block_tokens if tokens is None else tokens, group,
            namespace.kv_dtype if dtype is None else dtype, tuple(shape), coding, details,
        )

    @cached_property
    def header(self) -> bytes:
        """The page that goes in front of the payload."""
        page = bytearray(BLOCK_HEADER_BYTES)
        shape = (*self.shape, *[0] * (DIMENSIONS_MAX - len(self.shape)))
        try:
            _HEADER.pack_into(
                page, 0, MAGIC, VERSION, len(self.shape), 0, self.namespace_digest,
                self.payload_bytes, self.tokens, self.group, self.dtype.encode(),
                self.coding.encode(), *shape, len(self.namespace_encoding), len(self.details),
            )
        except struct.error as error:
            raise CallerError(f"not a block's format: {error}") from None
        end = _HEADER.size + len(self.namespace_encoding)
        page[_HEADER.size : end] = self.namespace_encoding
        page[end : end + len(self.details)] = self.details
        page[_SUM] = xxh3_64(page).to_bytes(8, "little")
        return bytes(page)

    @classmethod
    def read(cls, page: bytes | bytearray | memoryview) -> BlockFormat | None:
        """Return what a header page says; None when it is none, of another version, or damaged."""
        if len(page) != BLOCK_HEADER_BYTES:
            return None
        (magic, version, dimensions, found, digest, payload_bytes, tokens, group, dtype, coding,
         *shape, namespace_bytes, details_bytes) = _HEADER.unpack_from(page)
        blank = bytearray(page)
        blank[_SUM] = bytes(8)
        if magic != MAGIC or version != VERSION or xxh3_64(blank) != found:
            return None
        end = _HEADER.size + namespace_bytes
        try:
            return cls(
                bytes(page[_HEADER.size : end]), digest, payload_bytes, tokens, group,
                dtype.rstrip(b"\0").decode(), tuple(shape[:dimensions]),
                coding.rstrip(b"\0").decode(), bytes(page[end : end + details_bytes]),
            )
        except (CallerError, UnicodeDecodeError):
            return None


class Verdict:
    """What came of one lookup."""

    __slots__ = ("reason", "text")

    def __init__(self, reason: MissReason, text: str = "") -> None:
        self.reason = reason
        self.text = text
        """For a log: which fields differ."""

    @property
    def is_hit(self) -> bool:
        return self.reason is MissReason.PRESENT


HIT = Verdict(MissReason.PRESENT)


def judge(
    result: int, page: bytes | bytearray | memoryview, expected: BlockFormat
) -> Verdict:
    """Say whether a get of header and payload brought what was expected.

    `result`: what the get returned for the key; `page`: where its header was to go. Anything but a
    hit must be treated as a miss, and the payload as undefined.
    """
    if result == BLOCK_HEADER_BYTES + expected.payload_bytes and bytes(page) == expected.header:
        return HIT
    if result < 0:
        reason = reason_of(result)
        return Verdict(reason, "the block is longer" if reason is MissReason.WRONG_FORMAT else "")
    found = BlockFormat.read(page) if result >= BLOCK_HEADER_BYTES else None
    if found is None:
        return Verdict(MissReason.WRONG_FORMAT, "no block of an engine")
    if found.namespace_digest != expected.namespace_digest:
        fields = differing(found.namespace_encoding, expected.namespace_encoding)
        return Verdict(MissReason.WRONG_NAMESPACE, "another " + ", ".join(fields))
    return Verdict(MissReason.WRONG_FORMAT, f"{found.payload_bytes} bytes of {found.tokens} tokens "
                   f"as {found.coding} {found.dtype}{list(found.shape)}")
