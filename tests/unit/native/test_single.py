"""The short way of a GET of one block, against the codec that it must agree with."""

import os
import socket
import time
from collections.abc import Iterator

import pytest

from memkv._hotpath import SingleGet, Stream, StreamClosed, chunk_sums, receive_get, send_hit
from memkv.wire.frame import Frame, FrameReader, encode_frame
from memkv.wire.items import decode_get_result, encode_get_request
from memkv.wire.opcodes import LANE_READ_BYTES, Flag, Opcode

BLOCK_ID = bytes(range(32))


def soon() -> int:
    return time.monotonic_ns() + 20_000_000_000


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Stream]]:
    near, far = socket.socketpair()
    stream = Stream(far.detach())
    yield near, stream
    near.close()
    stream.close()


def get_frame(
    ids: bytes = BLOCK_ID, opcode: int = Opcode.GET, flags: int = 0, payload_bytes: int = 0
) -> bytes:
    count = len(ids) // 32
    return encode_frame(
        opcode, flags, 2**64 - 2, encode_get_request(ids, [2**63] * count), count=count,
        deadline_ms=1234, payload_bytes=payload_bytes, map_epoch=2**40, map_term=77,
    )  # fmt: skip


def received(pair: tuple[socket.socket, Stream], data: bytes) -> SingleGet | int | None:
    """Return what the short way makes of bytes, which lie in its buffer in any case."""
    near, stream = pair
    near.sendall(data)
    target = bytearray(512)
    got = receive_get(stream, target, soon())
    assert target[: len(data)] == data
    return got


def test_a_single_get_is_read(pair: tuple[socket.socket, Stream]) -> None:
    got = received(pair, get_frame())
    assert isinstance(got, SingleGet)
    assert got.block_id == BLOCK_ID
    assert got.max_length == 2**63
    assert got.request_id == 2**64 - 2
    assert got.deadline_ms == 1234
    assert (got.map_term, got.map_epoch) == (77, 2**40)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(get_frame(bytes(64)), id="two blocks"),
        pytest.param(get_frame(flags=Flag.VERIFY), id="a flag"),
        pytest.param(get_frame(opcode=Opcode.PUT), id="another operation"),
        pytest.param(get_frame(payload_bytes=1), id="payload"),
        pytest.param(get_frame()[:-1], id="a part"),
        pytest.param(get_frame() + b"M", id="more"),
        pytest.param(b"M", id="a byte"),
        pytest.param(bytes(112), id="zeros"),
    ],
)
def test_anything_else_is_left_to_the_codec(
    pair: tuple[socket.socket, Stream], data: bytes
) -> None:
    assert received(pair, data) == len(data)


@pytest.mark.parametrize("position", range(len(get_frame())))
def test_a_flipped_bit_is_left_to_the_codec(
    pair: tuple[socket.socket, Stream], position: int
) -> None:
    data = bytearray(get_frame())
    data[position] ^= 1 << position % 8
    assert received(pair, bytes(data)) == len(data)


def test_a_peer_that_closed(pair: tuple[socket.socket, Stream]) -> None:
    near, stream = pair
    near.close()
    assert receive_get(stream, bytearray(LANE_READ_BYTES), soon()) == 0
    stream.shutdown()
    with pytest.raises(StreamClosed):
        receive_get(stream, bytearray(LANE_READ_BYTES), soon())


def test_a_target_must_have_room(pair: tuple[socket.socket, Stream]) -> None:
    with pytest.raises(ValueError, match="empty"):
        receive_get(pair[1], bytearray(), soon())


@pytest.mark.parametrize("length", [1, 4096, 256 * 1024 + 1])
def test_a_hit_is_what_the_codec_expects(
    pair: tuple[socket.socket, Stream], length: int
) -> None:
    near, stream = pair
    payload, root = os.urandom(length), os.urandom(16)
    sums = chunk_sums(payload)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * length)
    send_hit(stream, 99, root, sums, payload[:1024], 1, soon())
    [frame, piece] = FrameReader(responses=True).feed(near.recv(1 << 20))
    assert isinstance(frame, Frame)
    assert frame.header.opcode == Opcode.GET
    assert frame.header.flags == Flag.RESPONSE | Flag.LAST
    assert (frame.header.request_id, frame.header.status, frame.header.item_count) == (99, 0, 1)
    result = decode_get_result(frame.body, hints=False)
    assert (result.index, result.status, result.source) == (0, 0, 1)
    assert (result.root, result.sums) == (root, sums)
    assert result.length == frame.header.payload_bytes == min(length, 1024)
    assert isinstance(piece, memoryview)
    assert bytes(piece) == payload[:1024]


def test_roots_and_sums_have_their_lengths(pair: tuple[socket.socket, Stream]) -> None:
    for root, sums in ((bytes(15), bytes(8)), (bytes(16), bytes(7)), (bytes(16), bytes(8 * 65))):
        with pytest.raises(ValueError, match="wrong length"):
            send_hit(pair[1], 1, root, sums, b"x", 0, soon())
