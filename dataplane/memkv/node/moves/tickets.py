"""How a worker proves to other workers that it is one of them."""

from typing import Protocol

from memkv.clock import Clock
from memkv.errors import RetryLater
from memkv.wire.ticket import PEER_TENANT, Rights, anonymous_ticket


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


class GivenPeerTickets:
    """Signed tickets as the supervisor gets them from the metadata service. Thread-safe."""

    def __init__(self) -> None:
        self._ticket = b""

    def take(self, ticket: bytes) -> None:
        """Use this one from now on; empty: there is none."""
        self._ticket = ticket

    def ticket(self) -> bytes:
        if not self._ticket:
            raise RetryLater(
                "this node has no ticket for its peers yet: it gets one from the metadata service; "
                "the supervisor's log says why not"
            )
        return self._ticket
