"""TLS of data connections: contexts that follow their files.

A certificate that was replaced is shown on the next connection; those that are open keep theirs.
Files that do not fit each other (they are being replaced just now) leave what was in use before.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from memkv._hotpath import TlsContext
from memkv.clock import Clock
from memkv.errors import ConfigError

log = logging.getLogger(__name__)

LOOK_INTERVAL_NS = 1_000_000_000  # between looks at the files: a rotation takes hours


class ClientContexts:
    """Gives the context with which a pool's nodes are believed. Thread-safe."""

    def __init__(self, authorities: Callable[[], bytes], server_name: str) -> None:
        """`authorities()`: certificates in PEM as they are now, or ConfigError; `server_name`: in
        the certificates of nodes."""
        self._authorities = authorities
        self._server_name = server_name
        self._lock = threading.Lock()
        self._seen = b""
        self._context: TlsContext | None = None

    def __call__(self) -> TlsContext:
        """Return the context for a new connection. ConfigError for an unfit CA."""
        pem = self._authorities()
        with self._lock:
            if self._context is None or pem != self._seen:
                try:
                    self._context = TlsContext.client(pem, self._server_name)
                except ValueError as error:
                    raise ConfigError(f"the pool's CA: {error}; check its file") from error
                self._seen = pem
            return self._context


class ServerContexts:
    """Gives the context with which a node shows its certificate. Thread-safe."""

    def __init__(self, certificate: Path, key: Path, clock: Clock) -> None:
        """Read the files: ConfigError when they are unfit."""
        self._certificate = certificate
        self._key = key
        self._clock = clock
        self._lock = threading.Lock()
        self._seen = self._read()
        self._context = self._made(self._seen)
        self._look_at_ns = clock.monotonic_ns() + LOOK_INTERVAL_NS

    def __call__(self) -> TlsContext:
        """Return the context for a new connection."""
        with self._lock:
            now_ns = self._clock.monotonic_ns()
            if now_ns >= self._look_at_ns:
                self._look_at_ns = now_ns + LOOK_INTERVAL_NS
                self._look()
            return self._context

    def _look(self) -> None:
        try:
            files = self._read()
            if files != self._seen:
                self._context = self._made(files)
                self._seen = files
                log.info("a new certificate is shown on new data connections")
        except ConfigError as error:
            log.warning("going on with the certificate before: %s", error)

    def _read(self) -> tuple[bytes, bytes]:
        try:
            return self._certificate.read_bytes(), self._key.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"cannot read the TLS file {error.filename}: {error.strerror}"
            ) from error

    def _made(self, files: tuple[bytes, bytes]) -> TlsContext:
        try:
            return TlsContext.server(*files)
        except ValueError as error:
            raise ConfigError(f"{self._certificate} and {self._key}: {error}") from error


def explain(why: str) -> str:
    """Return what a failure of TLS with a node means, and what to do."""
    lower = why.lower()
    if "hostname mismatch" in lower:
        return f"it is no node of this pool ({why}): check the pool's name and the endpoint"
    if "version number" in lower or "record" in lower or "packet length" in lower:
        return (
            f"it speaks no TLS ({why}): the pool's payload encryption is None, so say so to the "
            "client (payload_encryption), or give the node its certificate"
        )
    return (
        f"its certificate is not believed ({why}): is the CA that of the pool, and not an old one?"
    )
