"""A TCP proxy that lies: it flips, cuts and holds back what a worker sends.

Tests put it between a client and a worker to show that no such answer becomes a hit.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from functools import partial

Fault = Callable[[int, bytearray], bool]
"""(bytes sent so far on this connection, piece) -> keep the connection; may change the piece."""

PIECE_BYTES = 64 * 1024


def faithful(sent: int, piece: bytearray) -> bool:
    """Pass everything on."""
    return True


def cut_after(kept: int) -> Fault:
    """Return a fault that passes `kept` more bytes, all connections together, then ends each."""
    passed = 0
    lock = threading.Lock()

    def fault(sent: int, piece: bytearray) -> bool:
        nonlocal passed
        with lock:
            left = kept - passed
            passed += len(piece)
        if len(piece) <= left:
            return True
        del piece[max(0, left) :]
        return False

    return fault


class FaultProxy:
    """Forwards connections to `target`; `fault` sees what the worker sends back, `request_fault`
    what the client sends. What a fault leaves of its last piece is passed on before the end.

    `hold` stops answers: they are read from the worker and kept until `release`.
    """

    def __init__(self, target: tuple[str, int], at: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        """`at`: where to listen; port 0: any free one."""
        self.fault: Fault = faithful
        self.request_fault: Fault = faithful
        self._target = target
        self._open = threading.Event()
        self._open.set()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(at)
        self.port: int = self._listener.getsockname()[1]
        self._spawn(self._accept)

    def hold(self) -> None:
        """Keep answers back from now on; the connections stay open."""
        self._open.clear()

    def release(self) -> None:
        """Let kept answers go, late as they are."""
        self._open.set()

    def cut(self) -> None:
        """Reset every connection of the moment."""
        for connection in self._sockets:
            _shut(connection)

    def close(self) -> None:
        self._open.set()
        _shut(self._listener)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()
        for connection in self._sockets:
            connection.close()

    def _spawn(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:  # the worker is away; it may come back
                near.close()
                continue
            self._sockets += [near, far]
            self._spawn(partial(self._pump, near, far, None))
            self._spawn(partial(self._pump, far, near, self._open))

    def _pump(
        self, source: socket.socket, sink: socket.socket, gate: threading.Event | None
    ) -> None:
        sent = 0
        try:
            while piece := bytearray(source.recv(PIECE_BYTES)):
                if gate is not None:
                    gate.wait()
                fault = self.fault if gate is not None else self.request_fault
                goes_on = fault(sent, piece)
                sink.sendall(piece)
                sent += len(piece)
                if not goes_on:
                    break
        except OSError:
            pass
        _shut(sink)
        _shut(source)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # it was closed by its peer already
        return
