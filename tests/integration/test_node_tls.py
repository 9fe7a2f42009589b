"""A node under TLS and peers of every kind: slow, silent, hasty, broken, and not speaking it."""

import os
import socket
import ssl
import threading
from collections.abc import Iterator

import pytest

from memkv.status import Status
from memkv.testing.memory_store import MemoryStore
from memkv.testing.running_worker import NODE_NAME, RunningWorker, running_worker
from memkv.testing.wire_client import Block
from memkv.wire.frame import encode_frame
from memkv.wire.items import encode_get_request
from memkv.wire.messages import encode_keys
from memkv.wire.opcodes import HEADER_BYTES, Opcode

WAIT_S = 60
DEADLINE_MS = 30_000


@pytest.fixture
def handshake_timeout_ms() -> int:
    """How long a peer may owe something; a machine that starves its threads must not look so."""
    return 30_000


@pytest.fixture
def worker(handshake_timeout_ms: int) -> Iterator[RunningWorker]:
    store = MemoryStore()
    with running_worker(
        store, encrypted=True, handshake_timeout_ms=handshake_timeout_ms
    ) as running:
        yield running
        client = running.client("bystander")
        block = Block(os.urandom(32), os.urandom(60_000))
        assert client.lane().put([block]) == [Status.OK]
        assert client.lane(express=True).get(block.block_id)[0].payload == block.data
    assert store.pinned == 0
    assert running.server.statistics().events.internal_errors == 0


class Peer:
    """A peer that says when which bytes of its TLS go out."""

    def __init__(self, worker: RunningWorker) -> None:
        assert worker.authority is not None
        context = ssl.create_default_context(cadata=worker.authority.pem.decode())
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=NODE_NAME)
        self.socket = socket.create_connection(worker.address, timeout=WAIT_S)

    def hello(self) -> bytes:
        """Return the ClientHello."""
        with pytest.raises(ssl.SSLWantReadError):
            self._tls.do_handshake()
        return self._outgoing.read()

    def finish(self) -> bytes:
        """Read the node's flight; return this side's last one."""
        while True:
            self._incoming.write(self.socket.recv(65536))
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                continue
            return self._outgoing.read()

    def encrypt(self, data: bytes) -> bytes:
        self._tls.write(data)
        return self._outgoing.read()

    def receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                data += self._tls.read(size - len(data))
            except ssl.SSLWantReadError:
                received = self.socket.recv(65536)
                assert received, "the node closed"
                self._incoming.write(received)
        return data

    def is_closed(self) -> bool:
        """Wait for the end."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True


@pytest.fixture
def peer(worker: RunningWorker) -> Iterator[Peer]:
    made = Peer(worker)
    yield made
    made.socket.close()


def exists(count: int, number: int) -> bytes:
    body = encode_keys(0, os.urandom(32) * count)
    return encode_frame(Opcode.EXISTS, 0, number, body, count=count, deadline_ms=DEADLINE_MS)


def test_requests_that_come_in_one_record_are_all_answered(worker: RunningWorker) -> None:
    control = worker.client().control
    control.send(b"".join(exists(1, number) for number in range(2, 102)))
    assert [control.answer().header.request_id for _ in range(100)] == list(range(2, 102))


@pytest.mark.parametrize("express", [False, True])
def test_requests_of_a_lane_that_come_in_one_record_are_all_answered(
    worker: RunningWorker, express: bool
) -> None:
    client = worker.client()
    block = Block(os.urandom(32), os.urandom(20_000))
    assert client.lane().put([block]) == [Status.OK]
    lane = client.lane(express=express)
    body = encode_get_request(block.block_id, [1 << 20])
    frames = [
        encode_frame(Opcode.GET, 0, number, body, count=1, deadline_ms=DEADLINE_MS)
        for number in range(2, 32)
    ]
    lane.send(b"".join(frames))
    for number in range(2, 32):
        frame, payload = lane.receive()
        assert (frame.header.request_id, payload) == (number, block.data)


def test_handshake_and_requests_may_come_byte_by_byte(worker: RunningWorker, peer: Peer) -> None:
    peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in peer.hello():
        peer.socket.sendall(bytes([byte]))
    for byte in peer.finish():
        peer.socket.sendall(bytes([byte]))
    session = worker.client().session
    for byte in peer.encrypt(session.encode_hello()):
        peer.socket.sendall(bytes([byte]))
    assert peer.receive(HEADER_BYTES)


@pytest.mark.parametrize("handshake_timeout_ms", [5_000])
def test_half_a_handshake_holds_nobody_and_ends_in_time(
    worker: RunningWorker, peer: Peer
) -> None:
    hello = peer.hello()
    others = [Peer(worker) for _ in range(20)]
    for one in (peer, *others):
        one.socket.sendall(hello[: len(hello) // 2])
    assert worker.client().exists(os.urandom(32)) == [0]
    for one in (peer, *others):
        assert one.is_closed()
        one.socket.close()
    assert worker.server.statistics().events.timed_out >= len(others)


def test_half_a_record_holds_nobody(worker: RunningWorker, peer: Peer) -> None:
    peer.socket.sendall(peer.hello())
    peer.socket.sendall(peer.finish())
    record = peer.encrypt(worker.client().session.encode_hello())
    peer.socket.sendall(record[:30])
    clients = [worker.client() for _ in range(8)]
    assert all(client.exists(os.urandom(32)) == [0] for client in clients)
    peer.socket.sendall(record[30:])
    assert peer.receive(HEADER_BYTES)


def test_peer_that_goes_in_mid_handshake_costs_itself(worker: RunningWorker, peer: Peer) -> None:
    peer.socket.sendall(peer.hello())
    assert peer.socket.recv(1)
    peer.socket.close()
    assert worker.client().exists(os.urandom(32)) == [0]


@pytest.mark.parametrize(
    "said",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(100), b"\x00" * 64,
     encode_frame(Opcode.HELLO, 0, 0, bytes(64))],
    ids=["HTTP", "a record too long", "zeros", "a frame"],
)  # fmt: skip
def test_who_speaks_no_tls_is_told_so_and_closed(worker: RunningWorker, said: bytes) -> None:
    with socket.create_connection(worker.address, timeout=WAIT_S) as plain:
        plain.sendall(said)
        heard = b""
        while chunk := plain.recv(100):
            heard += chunk
    assert heard[:2] == b"\x15\x03"
    pause = threading.Event()
    for _ in range(WAIT_S * 50):
        if worker.server.statistics().events.tls_errors == 1:
            return
        pause.wait(0.02)
    raise AssertionError("it was not counted")


def test_changed_record_ends_the_connection(worker: RunningWorker, peer: Peer) -> None:
    peer.socket.sendall(peer.hello())
    peer.socket.sendall(peer.finish())
    record = bytearray(peer.encrypt(worker.client().session.encode_hello()))
    record[40] ^= 1
    peer.socket.sendall(record)
    assert peer.is_closed()
