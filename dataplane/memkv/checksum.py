"""Chunk sums and roots: made by the producer before the first copy, checked by every reader.

A block is cut into chunks of 256 KiB, each with an xxh3_64 sum; the root (xxh3_128) binds the sums
to block id, tenant and length. Bytes are right when their sums are right *and* the root is: sums
alone would accept another block's bytes that came with their own sums.
"""

from typing import TYPE_CHECKING, NamedTuple

from memkv import _hotpath
from memkv.limits import CHUNK_BYTES, CHUNKS_PER_BLOCK_MAX

if TYPE_CHECKING:
    from typing_extensions import Buffer

SUM_BYTES = 8


class Seal(NamedTuple):
    """What travels beside a block: its length, its chunk sums and the root over them."""

    length: int
    sums: bytes
    root: bytes


class ChunkSpan(NamedTuple):
    """The chunks [first, end) that a range touches, and the bytes [start, stop) they cover."""

    first: int
    end: int
    start: int
    stop: int


def chunk_count(length: int) -> int:
    """Return how many chunks, and so sums, a block of `length` bytes has."""
    return -(-length // CHUNK_BYTES)


def seal(data: "Buffer", block_id: bytes, tenant_tag: bytes) -> Seal:
    """Sum a block and bind the sums to its id and tenant."""
    length = memoryview(data).nbytes
    sums = _hotpath.chunk_sums(data)
    return Seal(length, sums, _hotpath.block_root(block_id, tenant_tag, length, sums))


def verify_root(block_id: bytes, tenant_tag: bytes, length: int, sums: bytes, root: bytes) -> bool:
    """Say whether these sums are the ones `root` was made for. Never raises on odd lengths."""
    count = chunk_count(length)
    if length < 1 or count > CHUNKS_PER_BLOCK_MAX or len(sums) != SUM_BYTES * count:
        return False
    return _hotpath.block_root(block_id, tenant_tag, length, sums) == root


def verify_payload(
    data: "Buffer", block_id: bytes, tenant_tag: bytes, length: int, sums: bytes, root: bytes
) -> bool:
    """Say whether `data` is exactly the block that `root` was made for."""
    if memoryview(data).nbytes != length:
        return False
    if not verify_root(block_id, tenant_tag, length, sums, root):
        return False
    return _hotpath.chunk_sums(data) == sums


def covering_chunks(offset: int, length: int, block_length: int) -> ChunkSpan:
    """Return the chunks that must be read to check bytes [offset, offset + length) of a block.

    Raises ValueError unless the range is not empty and lies inside the block.
    """
    if offset < 0 or length < 1 or offset + length > block_length:
        raise ValueError(f"range {offset}+{length} is empty or outside {block_length} bytes")
    first, end = offset // CHUNK_BYTES, chunk_count(offset + length)
    return ChunkSpan(first, end, first * CHUNK_BYTES, min(end * CHUNK_BYTES, block_length))


def verify_chunks(data: "Buffer", span: ChunkSpan, sums: bytes) -> bool:
    """Say whether `data`, the bytes of `span`, has its part of the whole block's `sums`."""
    if memoryview(data).nbytes != span.stop - span.start:
        return False
    return _hotpath.chunk_sums(data) == sums[SUM_BYTES * span.first : SUM_BYTES * span.end]
