"""Frames and the incremental reader: good ones in any split, bad ones, garbage."""

import struct
from contextlib import suppress
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    WireError,
)
from memkv.wire.frame import (
    HEADER_BYTES,
    Frame,
    FrameReader,
    encode_error,
    encode_frame,
)
from memkv.wire.messages import error_text
from memkv.wire.opcodes import LANE_READ_BYTES, REQUEST_LIMITS, Flag, Opcode


def with_header(data: bytes, offset: int, layout: str, value: int) -> bytes:
    """Change one header field and make the header's sum right again."""
    changed = bytearray(data)
    struct.pack_into(layout, changed, offset, value)
    struct.pack_into("<Q", changed, 56, xxh3_64(bytes(changed[:56])))
    return bytes(changed)


STAT = encode_frame(Opcode.STAT, 0, 77, deadline_ms=5)
PUT = encode_frame(Opcode.PUT, Flag.LAST, 78, bytes(96), count=1, payload_bytes=1000)


def frames_of(events: list[Frame | memoryview]) -> list[Frame]:
    return [event for event in events if isinstance(event, Frame)]


@pytest.mark.parametrize(
    ("situation", "data", "error", "hint"),
    [
        ("HTTP to the data port", b"GET / HTTP/1.1\r\n\r\n", BadMagic, "9471"),
        ("gRPC to the data port", b"PRI * HTTP/2.0\r\n", BadMagic, "7443"),
        ("TLS to a plain port", b"\x16\x03\x01\x02\x00", BadMagic, "payloadEncryption"),
        ("a single wrong byte", b"\x00", BadMagic, "port"),
        ("a later frame layout", with_header(STAT, 4, "<B", 2), VersionSkew, "upgrade"),
        ("a flipped bit in the header", STAT[:40] + b"\x01" + STAT[41:], BadSum, "proxy"),
        ("an opcode of the future", with_header(STAT, 5, "<B", 99), UnknownOpcode, "newer"),
        ("opcode 0", with_header(STAT, 5, "<B", 0), UnknownOpcode, "newer"),
        ("a flag of the future", with_header(STAT, 6, "<H", 64), UnknownOpcode, "newer"),
        ("a response", with_header(STAT, 6, "<H", 1), MalformedBody, "mixed up"),
        ("a body on STAT", with_header(STAT, 24, "<I", 1), Oversized, "limits"),
        ("a body of 4 GiB", with_header(PUT, 24, "<I", 2**32 - 1), Oversized, "limits"),
        ("a payload of 2**63", with_header(PUT, 32, "<Q", 2**63), Oversized, "limits"),
        ("a payload on STAT", with_header(STAT, 32, "<Q", 1), Oversized, "limits"),
        ("a count of 2**32 - 1", with_header(PUT, 20, "<I", 2**32 - 1), Oversized, "limits"),
        ("a flipped bit in the body", PUT[:100] + b"\x01" + PUT[101:], BadSum, "body"),
    ],
)
def test_bad_frame_is_a_typed_error_that_names_cause_and_fix(
    situation: str, data: bytes, error: type[WireError], hint: str
) -> None:
    with pytest.raises(error, match=hint) as caught:
        FrameReader(responses=False).feed(data)
    assert type(caught.value) is error, situation
    assert caught.value.status is Status.PROTOCOL


def test_error_carries_the_request_it_belongs_to() -> None:
    with pytest.raises(Oversized) as caught:
        FrameReader(responses=False).feed(with_header(STAT, 24, "<I", 1))
    assert (caught.value.request_id, caught.value.opcode) == (77, Opcode.STAT)


@pytest.mark.parametrize("length", range(1, len(PUT) + 999, 37))
def test_end_of_stream_inside_a_frame_is_truncated(length: int) -> None:
    reader = FrameReader(responses=False)
    reader.feed((PUT + bytes(1000))[:length])
    with pytest.raises(Truncated, match="sent again"):
        reader.finish()


def test_end_of_stream_between_frames_is_clean() -> None:
    reader = FrameReader(responses=False)
    reader.feed(PUT + bytes(1000) + STAT)
    reader.finish()


def test_payload_passes_through_without_being_stored() -> None:
    reader = FrameReader(responses=False)
    assert len(frames_of(reader.feed(PUT))) == 1
    assert reader.payload_pending == 1000
    source = bytes(range(250)) * 3
    [piece] = reader.feed(source)
    assert isinstance(piece, memoryview)
    assert piece.obj is source
    assert reader.buffered_bytes == 0
    [rest, frame] = reader.feed(bytes(250) + STAT)
    assert isinstance(rest, memoryview)
    assert rest.nbytes == 250
    assert isinstance(frame, Frame)


def test_payload_may_be_taken_from_the_stream_itself() -> None:
    reader = FrameReader(responses=False)
    reader.feed(PUT)
    reader.payload_taken()
    assert frames_of(reader.feed(STAT))[0].header.request_id == 77


@pytest.mark.parametrize("frame", [PUT, STAT * 3 + PUT, STAT + PUT])
def test_reads_of_bytes_wanted_never_run_into_a_payload(frame: bytes) -> None:
    reader = FrameReader(responses=False)
    stream = memoryview(frame + bytes(1000))
    while not reader.payload_pending:
        wanted = reader.bytes_wanted()
        assert 0 < wanted <= LANE_READ_BYTES
        reader.feed(stream[:wanted])
        stream = stream[wanted:]
    assert len(stream) == reader.payload_pending == reader.bytes_wanted()


def test_error_frame_reads_back_with_its_text_cut_to_the_limit() -> None:
    data = encode_error(Opcode.LIST, 5, Status.DENIED, "é" * limits.ERROR_TEXT_BYTES_MAX)
    [frame] = frames_of(FrameReader(responses=True).feed(data))
    assert frame.header.status == Status.DENIED
    assert frame.header.flags == Flag.RESPONSE | Flag.LAST
    assert len(error_text(frame.body)) == limits.ERROR_TEXT_BYTES_MAX // 2


U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)


@given(
    opcode=st.sampled_from([Opcode.GET, Opcode.EXISTS, Opcode.HELLO]),
    request_id=U64,
    status=st.integers(-(2**31), 2**31 - 1),
    body=st.binary(max_size=300),
    deadline_ms=U32,
    epoch=U64,
    term=U32,
    splits=st.lists(st.integers(1, 60), max_size=20),
)
def test_any_frame_in_any_split_reads_back(
    opcode: Opcode, request_id: int, status: int, body: bytes, deadline_ms: int, epoch: int,
    term: int, splits: list[int],
) -> None:  # fmt: skip
    data = encode_frame(
        opcode, 0, request_id, body, status=status, deadline_ms=deadline_ms, map_epoch=epoch,
        map_term=term,
    )  # fmt: skip
    reader = FrameReader(responses=False)
    frames: list[Frame] = []
    view = memoryview(data)
    for size in splits:
        frames += frames_of(reader.feed(view[:size]))
        view = view[size:]
    frames += frames_of(reader.feed(view))
    [frame] = frames
    assert frame.body == body
    assert frame.header[:3] == (opcode, 0, request_id)
    assert frame.header.status == status
    assert (frame.header.map_term, frame.header.map_epoch) == (term, epoch)
    assert frame.header.deadline_ms == deadline_ms


FUZZ_BYTES = 100_000
SEEDS = st.integers(0, 2**32)


def feed_in_splits(reader: FrameReader, data: bytes, step: int) -> None:
    body_max = max(limit.body_bytes_max for limit in REQUEST_LIMITS.values())
    for start in range(0, len(data), step):
        reader.feed(data[start : start + step])
        assert reader.buffered_bytes <= HEADER_BYTES + body_max


@given(seed=SEEDS, step=st.integers(1, 70_000), responses=st.booleans())
def test_garbage_is_a_typed_error(seed: int, step: int, responses: bool) -> None:
    garbage = Random(seed).randbytes(FUZZ_BYTES)
    with pytest.raises(WireError):
        feed_in_splits(FrameReader(responses=responses), garbage, step)


@given(
    position=st.integers(0, 63),
    value=st.integers(0, 255),
    resummed=st.booleans(),
    tail_seed=SEEDS,
    step=st.integers(1, 70_000),
)
def test_one_changed_byte_and_garbage_behind_it_give_frames_or_a_typed_error(
    position: int, value: int, resummed: bool, tail_seed: int, step: int
) -> None:
    data = bytearray(PUT)
    data[position] = value
    if resummed:
        struct.pack_into("<Q", data, 56, xxh3_64(bytes(data[:56])))
    tail = tail_seed.to_bytes(8, "little") * (FUZZ_BYTES // 8)
    with suppress(WireError):
        feed_in_splits(FrameReader(responses=False), bytes(data) + tail, step)
