"""Stream over real sockets: deadlines, closing, waking and large transfers."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from memkv._hotpath import Stream, StreamClosed, StreamTimeout, chunk_sums

MIB = 1 << 20


def soon() -> int:
    return time.monotonic_ns() + 20_000_000_000


def past() -> int:
    return time.monotonic_ns() - 1


@pytest.fixture
def pair() -> Iterator[tuple[Stream, Stream]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    streams = Stream(near.detach()), Stream(far.detach())
    yield streams
    for stream in streams:
        stream.close()


def test_parts_arrive_in_order(pair: tuple[Stream, Stream]) -> None:
    near, far = pair
    near.send([b"head", b"", bytearray(b"body"), memoryview(b"tail")], soon())
    target = bytearray(12)
    far.receive(target, soon())
    assert target == b"headbodytail"


def test_many_parts_are_sent_in_several_calls(pair: tuple[Stream, Stream]) -> None:
    near, far = pair
    parts = [bytes([i % 256]) * (i % 7) for i in range(500)]
    near.send(parts, soon())
    target = bytearray(sum(map(len, parts)))
    far.receive(target, soon())
    assert target == b"".join(parts)


def test_a_large_transfer_is_summed_while_it_arrives(pair: tuple[Stream, Stream]) -> None:
    near, far = pair
    data = bytes(range(256)) * (5 * MIB // 256) + b"odd"
    sender = threading.Thread(target=near.send, args=([data], soon()))
    sender.start()
    target = bytearray(len(data))
    assert far.receive_and_sum(target, soon()) == chunk_sums(data)
    sender.join()
    assert target == data


def test_receive_some_and_discard(pair: tuple[Stream, Stream]) -> None:
    near, far = pair
    near.send([b"x" * 70_000, b"rest"], soon())
    far.discard(70_000, soon())
    target = bytearray(100)
    assert far.receive_some(target, soon()) == 4
    assert target[:4] == b"rest"
    near.close()
    assert far.receive_some(target, soon()) == 0


def test_a_closing_peer_ends_a_receive(pair: tuple[Stream, Stream]) -> None:
    near, far = pair
    near.send([b"abc"], soon())
    near.close()
    with pytest.raises(StreamClosed, match="the peer closed"):
        far.receive(bytearray(4), soon())
    with pytest.raises(StreamClosed):
        far.send([bytes(64 * MIB)], soon())


def test_a_silent_peer_costs_no_more_than_the_deadline(pair: tuple[Stream, Stream]) -> None:
    near, _ = pair
    deadline = time.monotonic_ns() + 30_000_000
    with pytest.raises(StreamTimeout):
        near.receive(bytearray(1), deadline)
    assert time.monotonic_ns() >= deadline


def test_a_peer_that_stops_reading_costs_no_more_than_the_deadline(
    pair: tuple[Stream, Stream],
) -> None:
    near, _ = pair
    with pytest.raises(StreamTimeout):
        near.send([bytes(64 * MIB)], time.monotonic_ns() + 50_000_000)


def test_past_the_deadline_nothing_is_read(pair: tuple[Stream, Stream]) -> None:
    near, far = pair
    near.send([b"late"], soon())
    target = bytearray(4)
    with pytest.raises(StreamTimeout):
        far.receive(target, past())
    assert target == bytes(4)


def test_shutdown_wakes_a_thread_inside(pair: tuple[Stream, Stream]) -> None:
    near, _ = pair
    faults: list[StreamClosed] = []

    def wait() -> None:
        try:
            near.receive(bytearray(1), soon())
        except StreamClosed as error:
            faults.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    near.shutdown()
    waiter.join(10)
    assert not waiter.is_alive()
    assert "shut down here" in str(faults[0])
    with pytest.raises(StreamClosed, match="shut down here"):
        near.send([b"x"], soon())


def test_close_from_another_thread_waits_for_the_call_inside(pair: tuple[Stream, Stream]) -> None:
    near, far = pair
    entered = threading.Event()
    faults: list[StreamClosed] = []

    def wait() -> None:
        entered.set()
        try:
            near.receive(bytearray(1), soon())
        except StreamClosed as error:
            faults.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    entered.wait(10)
    near.close()
    waiter.join(10)
    assert len(faults) == 1
    assert near.fd == -1
    assert far.receive_some(bytearray(1), soon()) == 0


def test_a_closed_stream_refuses_and_closes_again(pair: tuple[Stream, Stream]) -> None:
    near, _ = pair
    near.close()
    near.close()
    near.shutdown()
    assert near.fd == -1
    with pytest.raises(StreamClosed, match="closed"):
        near.receive(bytearray(1), soon())


def test_impossible_arguments_are_refused(pair: tuple[Stream, Stream]) -> None:
    near, _ = pair
    with pytest.raises(ValueError, match="read-only"):
        near.receive(b"x", soon())
    with pytest.raises(ValueError, match="empty"):
        near.receive_some(bytearray(), soon())
    with pytest.raises(OSError, match="cannot become a stream"):
        Stream(-1)
