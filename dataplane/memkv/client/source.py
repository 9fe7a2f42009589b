"""Where maps and tickets come from: the metadata service, or a fixed map in tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from memkv.shardmap.map import ShardMap


@dataclass(frozen=True, slots=True)
class TicketGrant:
    """A ticket as the metadata service gave it.

    `ticket` is opaque here and shown to nodes; `salt` keys the hash of user keys; `renew_at_ns`
    and `expires_at_ns` are on the client's monotonic clock.
    """

    ticket: bytes
    salt: bytes
    tenant: str
    renew_at_ns: int
    expires_at_ns: int


class MapSource(Protocol):
    """Delivers maps as they change and tickets when asked. Implementations own their threads."""

    def start(self, on_map: Callable[[ShardMap], None]) -> None:
        """Begin to deliver; `on_map` is called from the source's thread, never concurrently."""

    def fetch_ticket(self, timeout_ms: int) -> TicketGrant:
        """Return a fresh ticket. Raises RetryLater when nobody answers, MemKVError when refused."""

    def map_age_s(self) -> float:
        """Seconds since the source last confirmed that the map is current."""

    def stop(self) -> None: ...
