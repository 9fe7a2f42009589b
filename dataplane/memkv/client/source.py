"""Where maps and tickets come from: the metadata service, or a fixed map in tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from memkv.shardmap.cache import OwnerHint, Route


@dataclass(frozen=True, slots=True)
class TicketGrant:
    """A ticket as the metadata service gave it.

    `ticket` is opaque here and shown to nodes; `salt` keys the hash of user keys; `tenant_tag`
    is bound into checksums; `renew_at_ns`
    and `expires_at_ns` are on the client's monotonic clock.
    """

    ticket: bytes
    salt: bytes
    tenant_tag: bytes
    renew_at_ns: int
    expires_at_ns: int


class MapSource(Protocol):
    """Keeps a route up to date and gives tickets. Implementations own their threads."""

    def start(self, route_changed: Callable[[], None]) -> None:
        """Begin; `route_changed` is called from the source's thread after each new map."""

    @property
    def route(self) -> Route | None:
        """What to send requests by; None while no map ever came."""

    @property
    def last_error(self) -> str:
        """Why the last try to reach the source failed; empty when none did."""

    def learn(self, hint: OwnerHint) -> bool:
        """Route one slot as a node's answer said; False when that is not news."""

    def fetch_ticket(self, timeout_ms: int) -> TicketGrant:
        """Return a fresh ticket. Raises RetryLater when nobody answers, MemKVError when refused."""

    def stop(self) -> None: ...
