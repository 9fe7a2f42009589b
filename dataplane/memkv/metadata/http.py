"""A plain HTTP server for kubelet and Prometheus: a few GET routes, nothing else."""

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from memkv.errors import ConfigError

REQUEST_TIMEOUT_S = 5  # a peer that sends no request does not keep its thread
CONNECTIONS_MAX = 32  # a scraper or two and kubelet; the rest is refused


@dataclass(frozen=True, slots=True)
class Page:
    """What a route answers."""

    body: bytes
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"


Route = Callable[[], Page]
Request = socket.socket | tuple[bytes, socket.socket]


def metrics_page(registry: CollectorRegistry) -> Page:
    """Return a registry's metrics as Prometheus reads them."""
    return Page(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def probe_page(healthy: bool, reason: str) -> Page:
    """Return the answer to a probe: 200 or 503, with the reason for a person."""
    return Page(f"{reason}\n".encode(), 200 if healthy else 503)


class PlainHttpServer:
    """Serves routes in threads until it is stopped."""

    def __init__(self, host: str, port: int, routes: Mapping[str, Route]) -> None:
        """Listen; port 0: any free one. ConfigError when the port is taken."""
        handler = type("Handler", (_Handler,), {"routes": dict(routes)})
        try:
            self._server = _Server((host, port), handler)
        except OSError as error:
            raise ConfigError(
                f"cannot serve HTTP on {host}:{port}: {error.strerror}; choose another --http-port "
                "(each role on a machine wants its own), or stop what has it"
            ) from error
        self.port: int = self._server.server_address[1]
        self._stopping, self._stop = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError):  # stopped already
            self._stop.shutdown(socket.SHUT_RDWR)  # a copy that a fork left open keeps nothing back
        self._thread.join()
        self._stop.close()
        self._stopping.close()
        self._server.server_close()

    def _serve(self) -> None:
        """As `serve_forever`, which looks several times a second whether it shall end: this one
        sleeps until there is something to do, and ends at once."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._server, selectors.EVENT_READ)
            selector.register(self._stopping, selectors.EVENT_READ)
            while self._stopping not in [key.fileobj for key, _ in selector.select()]:
                self._server.handle_request()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    timeout = 0  # of handle_request: a connection that went away is not waited for

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._slots = threading.BoundedSemaphore(CONNECTIONS_MAX)
        super().__init__(address, handler)

    def process_request(self, request: Request, client_address: object) -> None:
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Request, client_address: object) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """A peer that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    timeout = REQUEST_TIMEOUT_S
    routes: ClassVar[dict[str, Route]] = {}

    def do_GET(self) -> None:
        route = self.routes.get(self.path.partition("?")[0])
        page = route() if route is not None else Page(b"not found\n", 404)
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        self.end_headers()
        self.wfile.write(page.body)

    def log_message(self, format: str, *args: object) -> None:
        """Probes every few seconds would fill the log."""
