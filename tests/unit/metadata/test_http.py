"""The plain HTTP server: what it answers, and that it ends at once."""

import http.client
import threading

import pytest

from memkv.errors import ConfigError
from memkv.metadata.http import Page, PlainHttpServer, probe_page

WAIT_S = 60.0


def get(server: PlainHttpServer, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_it_serves_until_it_is_stopped() -> None:
    server = PlainHttpServer("127.0.0.1", 0, {
        "/metrics": lambda: Page(b"one 1\n"), "/readyz": lambda: probe_page(False, "not yet"),
    })  # fmt: skip
    assert get(server, "/metrics?name=one") == (200, b"one 1\n")
    assert get(server, "/readyz") == (503, b"not yet\n")
    assert get(server, "/elsewhere") == (404, b"not found\n")
    server.stop()
    with pytest.raises(OSError):
        get(server, "/metrics")


def test_a_port_that_is_taken_is_said() -> None:
    server = PlainHttpServer("127.0.0.1", 0, {})
    try:
        with pytest.raises(ConfigError, match="choose another --http-port"):
            PlainHttpServer("127.0.0.1", server.port, {})
    finally:
        server.stop()


def test_it_ends_while_a_peer_says_nothing_and_leaves_no_thread_that_listens() -> None:
    before = set(threading.enumerate())
    server = PlainHttpServer("127.0.0.1", 0, {})
    silent = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
    silent.connect()
    listening = [t for t in threading.enumerate() if t not in before and "_serve" in t.name]
    server.stop()
    silent.close()
    assert len(listening) == 1
    assert not listening[0].is_alive()
