"""Hint records: where a slot went, as far as the answering worker knows."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from memkv import limits
from memkv.wire.errors import MalformedBody
from memkv.wire.opcodes import HINT_BYTES

_HINT = struct.Struct("<IIQIHBB16s")

assert _HINT.size == HINT_BYTES


@dataclass(frozen=True, slots=True)
class Hint:
    """For item `index` of the request: ask this worker. A hint is advice, not proof: a client
    believes it only when (map_term, map_epoch) is newer than what it holds."""

    index: int
    slot: int
    map_epoch: int
    map_term: int
    worker_uuid: bytes
    host: str
    port: int


def encode_hints(hints: Sequence[Hint]) -> bytes:
    """Return the records back to back."""
    parts: list[bytes] = []
    for hint in hints:
        host = hint.host.encode("ascii")
        record = _HINT.pack(
            hint.index, hint.slot, hint.map_epoch, hint.map_term, hint.port, len(host), 0,
            hint.worker_uuid,
        )  # fmt: skip
        parts.append(record + host)
    return b"".join(parts)


def decode_hints(data: bytes) -> list[Hint]:
    """Parse all of `data`. Raises MalformedBody."""
    hints: list[Hint] = []
    position = 0
    while position < len(data):
        if len(hints) == limits.ITEMS_PER_FRAME_MAX or position + HINT_BYTES > len(data):
            raise _malformed(len(hints))
        index, slot, epoch, term, port, host_length, _, uuid = _HINT.unpack_from(data, position)
        position += HINT_BYTES
        host = data[position : position + host_length]
        position += host_length
        if len(host) != host_length or not host.isascii():
            raise _malformed(len(hints))
        hints.append(Hint(index, slot, epoch, term, uuid, host.decode("ascii"), port))
    return hints


def _malformed(position: int) -> MalformedBody:
    return MalformedBody(
        f"hint record {position} is cut or has no ASCII host: the peer has a bug; compare the "
        "versions of both sides"
    )
