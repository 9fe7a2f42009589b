"""Streams under TLS: whom they believe, what they say when they do not, and the same bytes."""

import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from memkv._hotpath import (
    Stream,
    StreamClosed,
    StreamTimeout,
    TlsContext,
    TlsFailed,
    chunk_sums,
)
from memkv.testing.certificates import Authority, Pair

MIB = 1 << 20
NAME = "node.kv.prod.memkv"
AUTHORITY = Authority()
PAIR = AUTHORITY.issue(NAME)
Sockets = tuple[socket.socket, socket.socket]


def soon() -> int:
    return time.monotonic_ns() + 60_000_000_000


def server_of(pair: Pair = PAIR) -> TlsContext:
    return TlsContext.server(pair.certificate, pair.key)


def client_of(authority: Authority = AUTHORITY, name: str = NAME) -> TlsContext:
    return TlsContext.client(authority.pem, name)


def sockets() -> Sockets:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


def join(client: TlsContext | None, server: TlsContext | None) -> tuple[Stream, Stream]:
    near, far = sockets()
    return Stream(near.detach(), tls=client), Stream(far.detach(), tls=server)


def together(*steps: Callable[[], object]) -> list[object]:
    """Run steps in threads; return what each gave or raised."""
    results: list[object] = [None] * len(steps)

    def run(index: int, step: Callable[[], object]) -> None:
        try:
            results[index] = step()
        except (StreamClosed, StreamTimeout) as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(steps)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture
def pair() -> Iterator[tuple[Stream, Stream]]:
    near, far = join(client_of(), server_of())
    assert together(lambda: near.handshake(soon()), lambda: far.handshake(soon())) == [None, None]
    yield near, far
    near.close()
    far.close()


def exchange(near: Stream, far: Stream, data: bytes) -> None:
    target = bytearray(len(data))
    assert together(
        lambda: near.send([data[:7], b"", data[7:]], soon()),
        lambda: far.receive_and_sum(target, soon()) == chunk_sums(data),
    ) == [None, True]
    assert target == data


@pytest.mark.parametrize("size", [1, 16 * 1024 - 1, 16 * 1024, 16 * 1024 + 1, 5 * MIB + 3])
def test_bytes_arrive_both_ways(pair: tuple[Stream, Stream], size: int) -> None:
    near, far = pair
    data = bytes(range(251)) * (size // 251 + 1)
    exchange(near, far, data[:size])
    exchange(far, near, data[:size])


def test_handshake_is_made_with_the_first_bytes() -> None:
    near, far = join(client_of(), server_of())
    exchange(near, far, b"no handshake was asked for")


def test_many_small_parts_travel_together(pair: tuple[Stream, Stream]) -> None:
    near, far = pair
    parts = [bytes([i % 256]) * (i % 700) for i in range(500)]
    target = bytearray(sum(map(len, parts)))
    together(lambda: near.send(parts, soon()), lambda: far.receive(target, soon()))
    assert target == b"".join(parts)


def test_sending_keys_change_in_the_middle(pair: tuple[Stream, Stream]) -> None:
    near, far = pair
    near.rekey_after(50_000)
    for _ in range(3):
        exchange(near, far, bytes(range(256)) * 1000)
        exchange(far, near, b"and back")


def test_what_came_with_the_bytes_before_is_told(pair: tuple[Stream, Stream]) -> None:
    near, far = pair
    near.send([b"x" * 100], soon())
    target = bytearray(10)
    far.receive(target, soon())
    assert far.is_ahead
    rest = bytearray(90)
    assert far.receive_ready(rest) == 90
    assert far.receive_ready(rest) is None
    assert not far.is_ahead


def test_receiver_does_not_wait_for_half_a_record(pair: tuple[Stream, Stream]) -> None:
    near, far = pair
    assert far.receive_ready(bytearray(10)) is None
    near.send([b"whole"], soon())
    target = bytearray(5)
    far.receive(target, soon())
    assert target == b"whole"


def test_receiver_ends_at_its_deadline(pair: tuple[Stream, Stream]) -> None:
    _, far = pair
    with pytest.raises(StreamTimeout):
        far.receive(bytearray(1), time.monotonic_ns() + 20_000_000)


def test_end_of_the_peer_is_an_end(pair: tuple[Stream, Stream]) -> None:
    near, far = pair
    near.close()
    assert far.receive_some(bytearray(10), soon()) == 0


def test_shutdown_wakes_a_waiting_receiver(pair: tuple[Stream, Stream]) -> None:
    _, far = pair
    shut = threading.Timer(0.05, far.shutdown)
    shut.start()
    with pytest.raises(StreamClosed):
        far.receive(bytearray(1), soon())
    shut.join()


STRANGER = Authority("someone else's CA")
REFUSED: dict[str, tuple[TlsContext, str]] = {
    "another authority": (client_of(STRANGER), "local issuer|certificate signature failure"),
    "another name": (client_of(name="node.other.prod.memkv"), "[Hh]ostname mismatch"),
    "a longer name": (client_of(name=f"a.{NAME}"), "[Hh]ostname mismatch"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_client_refuses_and_both_sides_hear_of_it(case: str) -> None:
    context, words = REFUSED[case]
    near, far = join(context, server_of())
    client, server = together(
        lambda: near.handshake(soon()), lambda: far.receive_some(bytearray(1), soon())
    )
    assert isinstance(client, TlsFailed)
    assert re.search(words, str(client)), client
    assert isinstance(server, TlsFailed), server


MIDDLE = Authority("in the middle", AUTHORITY)


@pytest.mark.parametrize(
    ("believed", "chain"), [(AUTHORITY, MIDDLE.pem), (MIDDLE, b""), (MIDDLE, MIDDLE.pem)],
    ids=["the first, by a chain", "the middle one", "the middle one, by a chain"],
)  # fmt: skip
def test_authorities_that_others_have_signed_are_believed(
    believed: Authority, chain: bytes
) -> None:
    pair = MIDDLE.issue(NAME)
    server = TlsContext.server(pair.certificate + chain, pair.key)
    near, far = join(client_of(believed), server)
    results = together(lambda: near.handshake(soon()), lambda: far.handshake(soon()))
    assert results == [None, None]
    near.close()
    far.close()


def test_an_authority_beside_is_not_believed() -> None:
    pair = MIDDLE.issue(NAME)
    server = TlsContext.server(pair.certificate + MIDDLE.pem, pair.key)
    near, far = join(client_of(Authority("beside", AUTHORITY)), server)
    results = together(lambda: near.handshake(soon()), lambda: far.handshake(soon()))
    assert all(isinstance(result, TlsFailed) for result in results), results
    near.close()
    far.close()


def test_wildcard_certificates_are_for_nobody() -> None:
    near, far = join(client_of(), server_of(AUTHORITY.issue("*.kv.prod.memkv")))
    client, _ = together(lambda: near.handshake(soon()), lambda: far.handshake(soon()))
    assert isinstance(client, TlsFailed)


def test_plain_peer_is_noticed_by_the_server() -> None:
    near, far = join(None, server_of())
    near.send([b"MKV1 this is no ClientHello, and longer than a record's head"], soon())
    with pytest.raises(TlsFailed, match=r"version|record|request"):
        far.receive_some(bytearray(10), soon())


def test_plain_peer_is_noticed_by_the_client() -> None:
    near, far = join(client_of(), None)
    far.send([b"MKV1 this is no ServerHello, and longer than a record's head"], soon())
    with pytest.raises(TlsFailed, match=r"version|record"):
        near.handshake(soon())


def test_older_versions_of_tls_are_refused() -> None:
    near, far = sockets()
    stream = Stream(far.detach(), tls=server_of())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    def shake() -> object:
        with pytest.raises(ssl.SSLError):
            context.wrap_socket(near)
        return None

    client, server = together(shake, lambda: stream.handshake(soon()))
    assert client is None
    assert isinstance(server, TlsFailed)


def test_python_speaks_the_same() -> None:
    near, far = sockets()
    stream = Stream(far.detach(), tls=server_of())
    context = ssl.create_default_context(cadata=AUTHORITY.pem.decode())

    def speak() -> object:
        with context.wrap_socket(near, server_hostname=NAME) as wrapped:
            wrapped.sendall(b"ping")
            return wrapped.recv(4), wrapped.version()

    def answer() -> object:
        target = bytearray(4)
        stream.receive(target, soon())
        stream.send([b"pong"], soon())
        return bytes(target)

    assert together(speak, answer) == [(b"pong", "TLSv1.3"), b"ping"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: TlsContext.client(b"", NAME),
        lambda: TlsContext.client(b"no certificate", NAME),
        lambda: TlsContext.client(AUTHORITY.pem, ""),
        lambda: TlsContext.client(AUTHORITY.pem, "n" * 300),
        lambda: TlsContext.server(b"", PAIR.key),
        lambda: TlsContext.server(PAIR.certificate, b""),
        lambda: TlsContext.server(PAIR.certificate, AUTHORITY.issue("x").key),
        lambda: TlsContext.server(PAIR.key, PAIR.certificate),
    ],
)  # fmt: skip
def test_unfit_files_are_refused_with_a_reason(make: Callable[[], TlsContext]) -> None:
    with pytest.raises(ValueError, match=r"\w+ .*"):
        make()


def test_streams_outlive_their_context() -> None:
    near, far = join(client_of(), server_of())
    exchange(near, far, b"both contexts are gone by now")
