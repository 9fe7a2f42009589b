"""What users of every integration may say about the pool, in their engine's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, get_args

from memkv.client.options import DEFAULT_POOL, Durability, PutOptions
from memkv.errors import CallerError
from memkv.integrations.blocks import PAYLOAD_BYTES_MAX
from memkv.limits import (
    BLOCK_BYTES_MAX,
    BLOCK_HEADER_BYTES,
    DEADLINE_MS_DEFAULT,
    LOAD_DEADLINE_MS_DEFAULT,
    STORE_BACKLOG_BYTES_DEFAULT,
)

if TYPE_CHECKING:
    from memkv.client.sync import Client
    from memkv.integrations.transfers import Transfers


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Raises CallerError for values that mean nothing.

    `endpoint`: of the metadata service, HOST:PORT; "" takes MEMKV_ENDPOINT, then the pod's
    connection file. `deadline_ms`: of each request to the pool. `load_deadline_ms`: after it a load
    of many blocks asks for no more. `store_backlog_bytes`: of stores under way; more are dropped.
    `ttl_s`: 0 keeps blocks until they are evicted. `block_bytes_max`: the longest block that the
    pool takes, header included; longer objects are cut into several. `revision`: of the model's
    weights, where the engine does not tell.
    """

    endpoint: str = ""
    pool: str = DEFAULT_POOL
    tenant: str = "default"
    deadline_ms: int = DEADLINE_MS_DEFAULT
    load_deadline_ms: int = LOAD_DEADLINE_MS_DEFAULT
    store_backlog_bytes: int = STORE_BACKLOG_BYTES_DEFAULT
    durability: Durability = "cached"
    ttl_s: int = 0
    block_bytes_max: int = BLOCK_BYTES_MAX
    revision: str = ""

    def __post_init__(self) -> None:
        for name in ("deadline_ms", "load_deadline_ms", "store_backlog_bytes"):
            if getattr(self, name) < 1:
                raise CallerError(f"{name} must be positive, not {getattr(self, name)}")
        if not 2 * BLOCK_HEADER_BYTES <= self.block_bytes_max <= BLOCK_BYTES_MAX:
            raise CallerError(
                f"block_bytes_max must be {2 * BLOCK_HEADER_BYTES} to {BLOCK_BYTES_MAX}, "
                f"not {self.block_bytes_max}"
            )
        _ = self.put_options  # says what is wrong with durability and ttl_s

    @classmethod
    def of(cls, values: Mapping[str, object], where: str) -> PoolSettings:
        """Take settings by name; names of others are the caller's to refuse. `where` they stand is
        for messages."""
        types = {field.name: field.type for field in fields(cls)}
        taken: dict[str, object] = {}
        for name, value in values.items():
            if name not in types or value is None:
                continue
            wanted = int if types[name] == "int" else str
            if not isinstance(value, wanted) or isinstance(value, bool):
                raise CallerError(f"{where}: {name} must be {wanted.__name__}, not {value!r}")
            taken[name] = value
        if taken.get("durability", "cached") not in get_args(Durability):
            raise CallerError(f"{where}: durability must be one of {get_args(Durability)}")
        try:
            return cls(**taken)  # type: ignore[arg-type]  # checked above
        except CallerError as error:
            raise CallerError(f"{where}: {error}") from None

    @property
    def put_options(self) -> PutOptions:
        return PutOptions(self.ttl_s or None, self.durability)

    @property
    def part_bytes_max(self) -> int:
        """Payload of the longest block."""
        return min(self.block_bytes_max - BLOCK_HEADER_BYTES, PAYLOAD_BYTES_MAX)

    def connect(self) -> Client:
        """Return a client; at once or nearly so, whether or not the pool is there."""
        import memkv

        return memkv.connect(
            self.endpoint or None, pool=self.pool, tenant=self.tenant, deadline_ms=self.deadline_ms
        )

    def transfers(self, client: Client) -> Transfers:
        """Return what moves blocks; it owns the client."""
        from memkv.integrations.transfers import Transfers

        return Transfers(
            client, load_deadline_ms=self.load_deadline_ms,
            store_backlog_bytes=self.store_backlog_bytes,
        )


SETTING_NAMES = frozenset(field.name for field in fields(PoolSettings))


def refuse_unknown(values: Mapping[str, object], known: frozenset[str], where: str) -> None:
    """Raise CallerError for a name that nobody reads: a misspelt one would be ignored for ever."""
    if unknown := sorted(values.keys() - known):
        names = ", ".join(sorted(known))
        raise CallerError(f"{where}: unknown {', '.join(unknown)}; known: {names}")
