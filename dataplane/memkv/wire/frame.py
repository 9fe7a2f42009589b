"""Frames: a 64-byte header, a body, a payload. Bytes in, frames out; no socket, no clock.

Rule 1: nothing is stored before its length passed the table of its operation, so a reader never
holds more than one header and one body.
Rule 2: payload is never stored here. The reader says how many bytes follow, and either passes
pieces through or lets the caller take them from the stream straight into the place they belong.
"""

import struct
from collections.abc import Callable
from typing import NamedTuple

from memkv import limits
from memkv._hotpath import xxh3_64
from memkv.status import Status
from memkv.wire.errors import (
    BadMagic,
    BadSum,
    MalformedBody,
    Oversized,
    Truncated,
    UnknownOpcode,
    VersionSkew,
)
from memkv.wire.opcodes import (
    FLAGS_KNOWN,
    LANE_READ_BYTES,
    REQUEST_LIMITS,
    RESPONSE_LIMITS,
    Flag,
    FrameLimits,
)

MAGIC = b"MKV1"
FRAME_VERSION = 1
HEADER_BYTES = limits.FRAME_HEADER_BYTES

_SUMMED = struct.Struct("<4sBBHQiIIIQQII")
_HEADER = struct.Struct("<4sBBHQiIIIQQIIQ")
_SUM = struct.Struct("<Q")
_RESPONSE = int(Flag.RESPONSE)
_LOW_32 = 0xFFFF_FFFF

assert _HEADER.size == HEADER_BYTES
assert _SUMMED.size + _SUM.size == HEADER_BYTES


class FrameHeader(NamedTuple):
    """A validated header. Field by field as in docs/wire-protocol.md; magic and sums left out."""

    opcode: int
    flags: int
    request_id: int
    status: int
    item_count: int
    body_bytes: int
    deadline_ms: int
    payload_bytes: int
    map_epoch: int
    map_term: int
    body_sum: int


class Frame(NamedTuple):
    """A header and its whole body, sums checked. `header.payload_bytes` of payload follow."""

    header: FrameHeader
    body: bytes


def encode_frame(
    opcode: int,
    flags: int,
    request_id: int,
    body: bytes = b"",
    *,
    status: int = 0,
    count: int = 0,
    deadline_ms: int = 0,
    payload_bytes: int = 0,
    map_epoch: int = 0,
    map_term: int = 0,
) -> bytes:
    """Return header and body as one bytes object; the caller sends the payload behind it."""
    summed = _SUMMED.pack(
        MAGIC, FRAME_VERSION, opcode, flags, request_id, status, count, len(body), deadline_ms,
        payload_bytes, map_epoch, map_term, xxh3_64(body) & _LOW_32,
    )  # fmt: skip
    return summed + _SUM.pack(xxh3_64(summed)) + body


def encode_error(opcode: int, request_id: int, status: Status, text: str) -> bytes:
    """Return the response that fails a whole request: negative status, LAST, text as its body."""
    body = text.encode("utf-8", "replace")[: limits.ERROR_TEXT_BYTES_MAX]
    return encode_frame(opcode, Flag.RESPONSE | Flag.LAST, request_id, body, status=int(status))


def parse_header(data: bytes | bytearray | memoryview, *, responses: bool) -> FrameHeader:
    """Parse and validate the first 64 bytes of `data`.

    `responses`: True on a client, which reads responses only; False on a node.
    Raises a `WireError` subclass; never reads beyond the header.
    """
    (
        magic, version, opcode, flags, request_id, status, count, body_bytes, deadline_ms,
        payload_bytes, map_epoch, map_term, body_sum, header_sum,
    ) = _HEADER.unpack_from(data)  # fmt: skip
    if magic != MAGIC:
        raise bad_magic(magic)
    if version != FRAME_VERSION:
        raise VersionSkew(
            f"frame version {version}, this build reads {FRAME_VERSION}: the peer runs another "
            "release of MemKV; upgrade the older side",
            request_id=request_id,
        )
    if header_sum != xxh3_64(data[: _SUMMED.size]):
        raise BadSum(
            "the sum of a frame header does not match: the stream is out of step or was changed "
            "on the way; look for a proxy between client and node, or report a bug"
        )
    limit = (RESPONSE_LIMITS if responses else REQUEST_LIMITS).get(opcode)
    if limit is None or flags & ~FLAGS_KNOWN:
        raise UnknownOpcode(
            f"opcode {opcode} with flags {flags:#x} is in no protocol up to 2: the peer is newer "
            "and did not keep to the version agreed in HELLO; upgrade this side",
            request_id=request_id,
        )
    if bool(flags & _RESPONSE) is not responses:
        side = "a request where responses" if responses else "a response where requests"
        raise MalformedBody(
            f"got {side} belong: the two ends of the stream are mixed up; check the address and "
            "port the client was given",
            request_id=request_id,
            opcode=opcode,
        )
    if (
        body_bytes > limit.body_bytes_max
        or payload_bytes > limit.payload_bytes_max
        or count > limit.count_max
    ):
        raise _oversized(opcode, request_id, (body_bytes, payload_bytes, count), limit)
    return FrameHeader(
        opcode, flags, request_id, status, count, body_bytes, deadline_ms, payload_bytes,
        map_epoch, map_term, body_sum,
    )  # fmt: skip


def check_body(header: FrameHeader, body: bytes) -> None:
    """Raise BadSum unless `body` is what the header was made for."""
    if xxh3_64(body) & _LOW_32 != header.body_sum:
        raise BadSum(
            "the sum of a frame body does not match: bytes changed on the way; look for a proxy "
            "or failing memory between client and node",
            request_id=header.request_id,
            opcode=header.opcode,
        )


def bad_magic(start: bytes) -> BadMagic:
    """Return the error for a stream that starts with `start`, guessing who is calling."""
    if start[:1] == b"\x16":
        return BadMagic(
            "the peer speaks TLS and this port is plain: set network.payloadEncryption the same "
            "on both sides"
        )
    if start[:4] in {b"GET ", b"POST", b"HEAD", b"PRI "}:
        return BadMagic(
            "the peer speaks HTTP or gRPC to a data port: give it the metadata port (7443) or, "
            "for metrics, the HTTP port (9471)"
        )
    return BadMagic(
        f"a frame starts with {bytes(start[:4])!r} instead of {MAGIC!r}: the peer is no MemKV "
        "client or the stream is out of step; check the address and port"
    )


def _oversized(
    opcode: int, request_id: int, got: tuple[int, int, int], limit: FrameLimits
) -> Oversized:
    return Oversized(
        f"opcode {opcode}: body {got[0]}, payload {got[1]}, count {got[2]}; at most "
        f"{limit.body_bytes_max}, {limit.payload_bytes_max}, {limit.count_max}: the peer ignores "
        "the limits it was told in HELLO; split the batch or upgrade the client",
        request_id=request_id,
        opcode=opcode,
    )


class FrameReader:
    """Incremental reader of one direction of one connection.

    Memory: at most one header and one body within the limits of its operation. After any error
    the reader is spent: the stream has no known frame boundary left.
    """

    def __init__(
        self, *, responses: bool, admit: Callable[[FrameHeader], object] | None = None
    ) -> None:
        """`admit` sees each valid header before its body is stored; it may raise a `WireError`."""
        self._responses = responses
        self._admit = admit
        self._buffer = bytearray()
        self._header: FrameHeader | None = None
        self._payload_pending = 0
        self._held = 0

    @property
    def payload_pending(self) -> int:
        """Payload bytes of the last frame that neither passed through nor were taken."""
        return self._payload_pending

    @property
    def buffered_bytes(self) -> int:
        return len(self._buffer)

    @property
    def is_between_frames(self) -> bool:
        """Whether nothing of a next frame has arrived, nor anything of this one is missing."""
        return not (self._buffer or self._header is not None or self._payload_pending)

    def bytes_wanted(self) -> int:
        """Return how many bytes a lane may read now without running into a payload; never 0."""
        if self._payload_pending:
            return self._payload_pending
        if self._header is not None:
            return self._header.body_bytes - len(self._buffer)
        return LANE_READ_BYTES - len(self._buffer)

    def payload_taken(self) -> None:
        """Tell the reader that the caller consumed the pending payload from the stream itself."""
        self._payload_pending = 0

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame | memoryview]:
        """Take bytes in any split; return frames and pieces of payload in stream order.

        Pieces are views into `data`: use or copy them before `data` changes. Raises a `WireError`;
        frames before the faulty one in the same call are lost with the connection.
        """
        events: list[Frame | memoryview] = []
        if self.is_between_frames and len(data) >= HEADER_BYTES:
            # Whole frames in one piece are the rule; this is the loop below without its states.
            header = parse_header(data, responses=self._responses)
            end = HEADER_BYTES + header.body_bytes
            if len(data) >= end:
                if self._admit is not None:
                    self._admit(header)
                body = bytes(data[HEADER_BYTES:end])
                check_body(header, body)
                self._payload_pending = header.payload_bytes
                events.append(Frame(header, body))
                if len(data) == end:
                    return events
                data = data[end:]
        view = memoryview(data)
        while True:
            if self._payload_pending:
                piece = view[: self._payload_pending]
                if piece.nbytes:
                    events.append(piece)
                    view = view[piece.nbytes :]
                    self._payload_pending -= piece.nbytes
                if self._payload_pending:
                    return events
            if self._header is None:
                start = self._next(view, HEADER_BYTES)
                if start is None:
                    self._check_prefix()
                    return events
                view = view[HEADER_BYTES - self._held :]
                self._header = parse_header(start, responses=self._responses)
                self._buffer.clear()
                if self._admit is not None:
                    self._admit(self._header)
            header = self._header
            whole = self._next(view, header.body_bytes)
            if whole is None:
                return events
            view = view[header.body_bytes - self._held :]
            body = bytes(whole)
            self._buffer.clear()
            self._header = None
            check_body(header, body)
            self._payload_pending = header.payload_bytes
            events.append(Frame(header, body))
            if not view.nbytes:
                return events

    def finish(self) -> None:
        """Say that the stream ended. Raises Truncated unless it ended between frames."""
        if not self.is_between_frames:
            raise Truncated(
                "the connection ended inside a frame: the peer died or the network cut it; the "
                "request is lost and can be sent again"
            )

    def _next(self, view: memoryview, wanted: int) -> memoryview | bytearray | None:
        """Return `wanted` bytes in a row, or keep what there is of them and return None.

        Bytes that arrived in one piece, the usual case, are not copied into the buffer.
        `_held`: how many of them were kept earlier.
        """
        self._held = len(self._buffer)
        if not self._held and view.nbytes >= wanted:
            return view[:wanted]
        self._buffer += view[: wanted - self._held]
        return self._buffer if len(self._buffer) == wanted else None

    def _check_prefix(self) -> None:
        # A stranger's first few bytes are enough to refuse it at once instead of at a timeout.
        start = bytes(self._buffer[: len(MAGIC)])
        if start != MAGIC[: len(start)]:
            raise bad_magic(start)
