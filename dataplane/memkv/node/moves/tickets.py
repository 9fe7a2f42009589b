"""How a worker proves to other workers that it is one of them."""

from typing import Protocol

from memkv.clock import Clock
from memkv.wire.ticket import Rights, anonymous_ticket

PEER_TENANT = "memkv-peer"  # moves are of all tenants; a session needs some tenant's name


class PeerTickets(Protocol):
    """Gives tickets with the right PEER. Called by one thread at a time."""

    def ticket(self) -> bytes:
        """Return an encoded ticket that is valid now. Raises RetryLater when there is none."""


class AnonymousPeerTickets:
    """Unsigned tickets, for a pool that listens on loopback alone."""

    def __init__(self, pool: str, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock

    def ticket(self) -> bytes:
        now_s = self._clock.wall_s()
        return anonymous_ticket(self._pool, PEER_TENANT, now_s, rights=Rights.PEER).encode()
