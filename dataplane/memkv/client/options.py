"""What a caller may say about a connection and about a put."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from memkv.client.credentials import CREDENTIAL_NAMES, Credentials, credentials_of
from memkv.client.rdma_settings import RDMA_AUTO, RDMA_OFF, RDMA_ON, RdmaSettings
from memkv.clock import Clock, SystemClock
from memkv.errors import CallerError
from memkv.limits import (
    DEADLINE_MS_DEFAULT,
    LANES_PER_SESSION_MAX,
    MAP_BOOTSTRAP_TIMEOUT_MS,
)
from memkv.rdma.client_memory import RdmaOptions
from memkv.rdma.driver import PyVerbs
from memkv.rdma.verbs import Verbs

if TYPE_CHECKING:
    from memkv._hotpath import TlsContext

HINT_ID_BYTES = 8
TTL_S_MAX = 10 * 365 * 24 * 3600  # ten years: the expiry of a record is 32 bits of seconds

LOCAL_OFF = "off"
DEFAULT_ENDPOINT = "127.0.0.1:7443"
DEFAULT_POOL = "default/local"
CONNECTION_FILE = Path("/etc/memkv/connection.json")

Durability = Literal["cached", "durable"]


@dataclass(frozen=True, slots=True)
class BlockHint:
    """Where a block stands in its prompt: what eviction and prefetch can use, never needed.

    `prefix_id` and `session_id` are 8 bytes of the engine's choice; `depth` counts blocks from the
    head of the prompt (0 is the head).
    """

    prefix_id: bytes = bytes(HINT_ID_BYTES)
    depth: int = 0
    session_id: bytes = bytes(HINT_ID_BYTES)

    def __post_init__(self) -> None:
        for name, value in (("prefix_id", self.prefix_id), ("session_id", self.session_id)):
            if len(value) != HINT_ID_BYTES:
                raise CallerError(f"BlockHint.{name} must be {HINT_ID_BYTES} bytes, "
                                  f"not {len(value)}")
        if not 0 <= self.depth <= 0xFFFF_FFFF:
            raise CallerError(f"BlockHint.depth must be a 32-bit count, not {self.depth}")


@dataclass(frozen=True, slots=True)
class PutOptions:
    """How blocks of one put are kept.

    `durability="cached"`: acknowledged once the node holds verified bytes; a crash may lose them.
    `"durable"`: acknowledged once they are flushed to flash. `hints` has one entry a key, or one
    for all keys.
    """

    ttl_s: int | None = None
    durability: Durability = "cached"
    hints: Sequence[BlockHint] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if self.ttl_s is not None and not 1 <= self.ttl_s <= TTL_S_MAX:
            raise CallerError(f"ttl_s must be 1..{TTL_S_MAX} seconds or None, not {self.ttl_s}")
        if self.durability not in ("cached", "durable"):
            raise CallerError(f'durability must be "cached" or "durable", not {self.durability!r}')

    def hint_of(self, position: int, count: int) -> BlockHint:
        """Return the hint of key `position` of `count`."""
        if not self.hints:
            return NO_HINT
        if len(self.hints) == 1:
            return self.hints[0]
        if len(self.hints) != count:
            raise CallerError(f"{len(self.hints)} hints for {count} keys: give one hint a key, "
                              "one for all, or none")
        return self.hints[position]


@dataclass(frozen=True, slots=True)
class CopyOptions(PutOptions):
    """Of a background put of what a previous owner had; the owner refuses what was deleted."""


NO_HINT = BlockHint()
DEFAULT_PUT = PutOptions()
COPY_PUT = CopyOptions()


def no_context() -> None:
    """Return what encrypts connections of a client without credentials: nothing."""


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """Everything `connect()` needs, resolved.

    `bulk_lanes` and `express_lanes` are TCP connections to each worker beside its control
    connection; up to `local_lanes` are opened when memory is registered with an fd. `local_dir`
    holds the Unix sockets of workers on this machine; "" asks each worker at an address of this
    machine where its socket is, "off" turns the local transport off. Up to `rdma_lanes` are opened
    when memory is registered and the worker serves RDMA: `rdma` is "on", "off", or "auto", which
    means on unless payload is encrypted, which RDMA is not. `cache_dir` keeps the last
    shard map and ticket for a start without the metadata service.
    """

    endpoint: str
    pool: str = DEFAULT_POOL
    tenant: str = "default"
    deadline_ms: int = DEADLINE_MS_DEFAULT
    credentials: Credentials | None = None
    bulk_lanes: int = 2
    express_lanes: int = 1
    local_lanes: int = 4
    rdma_lanes: int = 4
    rdma: str = RDMA_AUTO
    rdma_options: RdmaOptions = field(default_factory=RdmaOptions)
    verbs: Callable[[], Verbs] = PyVerbs
    local_dir: str = ""
    cache_dir: Path | None = None
    bootstrap_timeout_ms: int = MAP_BOOTSTRAP_TIMEOUT_MS
    clock: Clock = field(default_factory=SystemClock)

    node_context: Callable[[], TlsContext | None] = field(init=False)
    """Gives what connections to nodes are encrypted with; None: they are not. ConfigError."""

    def __post_init__(self) -> None:
        proof = self.credentials
        contexts: Callable[[], TlsContext | None] = no_context
        if proof is not None and proof.payload_encryption:
            from memkv.metadata.certificates import node_name
            from memkv.tcp.tls import ClientContexts

            contexts = ClientContexts(proof.authorities, node_name(self.pool))
        object.__setattr__(self, "node_context", contexts)
        if self.deadline_ms < 1:
            raise CallerError(f"deadline_ms must be positive, not {self.deadline_ms}")
        if min(self.bulk_lanes, self.express_lanes, self.local_lanes, self.rdma_lanes) < 1:
            raise CallerError("the numbers of lanes must be at least 1")
        if self.rdma not in (RDMA_AUTO, RDMA_ON, RDMA_OFF):
            raise CallerError(f'rdma must be "auto", "on" or "off", not {self.rdma!r}')

    def lanes_beside_tcp(self, wanted: int) -> int:
        """Return how many of `wanted` lanes a session has room for, beside those of TCP and the
        registrar, which is a lane, too. At least one."""
        others = self.bulk_lanes + self.express_lanes + 1
        return max(1, min(wanted, LANES_PER_SESSION_MAX - others))

    @property
    def wants_rdma(self) -> bool:
        """Whether memory is registered with RDMA devices, and workers are asked for RDMA."""
        if self.rdma == RDMA_AUTO:
            return self.credentials is None or not self.credentials.payload_encryption
        return self.rdma == RDMA_ON

    @classmethod
    def resolve(
        cls, endpoint: str | None, pool: str, tenant: str, deadline_ms: int,
        credentials: Credentials | None,
    ) -> ConnectOptions:
        """Fill in what the caller left out: the environment first, then a pod's connection file.

        Raises CallerError for an endpoint that is not HOST:PORT and for a broken connection file.
        """
        found = endpoint or os.environ.get("MEMKV_ENDPOINT")
        if credentials is None:
            credentials = credentials_of(
                {name: os.environ.get(f"MEMKV_{name.upper()}", "") for name in CREDENTIAL_NAMES},
                "MEMKV_* variables",
            )
        document: Mapping[str, object] = {}
        if found is None and CONNECTION_FILE.exists():
            document = _read_connection_file(CONNECTION_FILE)
            found, pool, given = _named_pool(document, CONNECTION_FILE, pool)
            credentials = credentials or given
        found = found or DEFAULT_ENDPOINT
        host, _, port = found.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise CallerError(f"endpoint {found!r} is not HOST:PORT, such as {DEFAULT_ENDPOINT}")
        rdma = RdmaSettings(os.environ, document, str(CONNECTION_FILE))
        return cls(
            found, pool, tenant, deadline_ms, credentials,
            local_dir=os.environ.get("MEMKV_LOCAL_DIR", ""),
            rdma=rdma.switch,
            rdma_options=rdma.options,
            cache_dir=Path(cache) if (cache := os.environ.get("MEMKV_CACHE_DIR")) else None,
        )


def _read_connection_file(path: Path) -> Mapping[str, object]:
    """Return the file that the operator mounts into inference pods; it may have more keys than this
    version knows."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _not_a_connection(path, repr(error)) from error
    if not isinstance(content, dict):
        raise _not_a_connection(path, f"{type(content).__name__}, not an object")
    return content


def _named_pool(
    content: Mapping[str, object], path: Path, pool: str
) -> tuple[str, str, Credentials | None]:
    """Return (endpoint, pool, credentials). A pool that the caller names wins over the file's."""
    endpoint = content.get("endpoint")
    if endpoint is None:
        raise _not_a_connection(path, "it has no endpoint")
    named = content.get("pool", pool) if pool == DEFAULT_POOL else pool
    texts = {name: str(content.get(name) or "") for name in CREDENTIAL_NAMES}
    if not isinstance(endpoint, str) or not isinstance(named, str):
        raise CallerError(f"{path}: endpoint and pool must be text")
    if texts["ca"]:
        texts["ca"] = str(path)  # a program lives longer than a CA: it is read there anew
    return endpoint, named, credentials_of(texts, str(path))


def _not_a_connection(path: Path, why: str) -> CallerError:
    return CallerError(
        f"{path} does not name a pool ({why}); it is the ConfigMap <pool>-connection: mount it "
        "whole, or pass the endpoint"
    )
