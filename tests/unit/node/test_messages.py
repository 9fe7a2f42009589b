"""Messages between supervisor and worker, and what else comes through a socket."""

import socket
import struct
from collections.abc import Iterator

import pytest

from memkv.errors import ProtocolError
from memkv.node.messages import (
    Failed,
    Message,
    MessageChannel,
    Quota,
    Quotas,
    Report,
    Sample,
    Start,
    Stop,
    TenantUsage,
    decode_message,
    encode_message,
    map_bytes,
    map_message,
)

QUOTAS = (Quota("a", 5, 6), Quota("b", 0, 7))
START = Start("p/q", "n", 0, "/dev/x", 1, 2, "127.0.0.1", 0, 4096, 8, "/s", True, QUOTAS)
USAGES = (TenantUsage("a", 1, 2, 3, 4),)
SAMPLES = (
    Sample("memkv_a", "A", {"b": "c"}, 1.5, counter=True),
    Sample("memkv_h", "H", {}, 2.0, ((0.5, 1), (float("inf"), 3))),
)
MESSAGES: list[Message] = [
    START,
    map_message(bytes(range(256))),
    Stop(),
    Quotas(QUOTAS),
    Report("00" * 16, 3, 7070, 10, 5, "11" * 16, 4, ((1, 2), (3, 4)), 8, 9, USAGES,
           "suspect", "reads failed (EIO)", SAMPLES),
    Failed("no such drive: mount it"),
]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, MessageChannel]]:
    ours, theirs = socket.socketpair()
    channel = MessageChannel(theirs)
    yield ours, channel
    ours.close()
    channel.close()


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_round_trip(pair: tuple[socket.socket, MessageChannel], message: Message) -> None:
    ours, channel = pair
    ours.sendall(encode_message(message) + encode_message(Stop()))
    assert channel.receive() == message
    assert channel.receive() == Stop()


def test_map_comes_out_as_it_went_in() -> None:
    assert map_bytes(map_message(b"\x00\xff map")) == b"\x00\xff map"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        b'{"kind": "else"}',
        b'{"kind": "stop", "more": 1}',
        b'{"kind": "failed"}',
        b'{"kind": "report", "uuid": "", "incarnation": 1, "port": 0}',
        b'{"kind": "report", "finished": [[1]], "samples": [], "uuid": "", "port": 1}',
    ],
)
def test_strange_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_message(data)


def test_end_of_the_stream_anywhere_means_the_other_side_is_gone() -> None:
    data = encode_message(Failed("x" * 10))
    for cut in range(len(data)):
        ours, theirs = socket.socketpair()
        channel = MessageChannel(theirs)
        ours.sendall(data[:cut])
        ours.close()
        assert channel.receive() is None
        channel.close()


def test_oversized_message_is_refused_before_it_is_read(
    pair: tuple[socket.socket, MessageChannel],
) -> None:
    ours, channel = pair
    ours.sendall(struct.pack("<I", 0xFFFFFFFF))
    with pytest.raises(ProtocolError, match="4294967295 bytes"):
        channel.receive()


def test_sending_to_nobody_says_so(pair: tuple[socket.socket, MessageChannel]) -> None:
    ours, channel = pair
    ours.close()
    assert not channel.send(Failed("x" * 1_000_000))
